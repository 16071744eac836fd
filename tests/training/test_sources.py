"""Data sets from teachers, a model's own runs, recorded runs and written traces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from apr_agents import Limits, create_parallel_agent
from apr_agents.backends.base import Request
from apr_agents.backends.scripted import ScriptedBackend
from apr_agents.errors import InvalidOption, UnusableFile
from apr_agents.tasks.registry import resolve
from apr_agents.training.runs import serving
from apr_agents.training.scripts import Script, read, text_protocol
from apr_agents.training.sources import Harvest, converted, recorded, sampled, taught
from tests.protocols.test_apr import EXPLORED, PATH, RESULTS, ROOT
from tests.protocols.test_apr import TRACES as APR_TRACES
from tests.protocols.test_threadweaver import TRACES
from tests.training.toy import CHAIN, WIDE, Toy, script, undecided


def lines(path: Path, *rows: dict[str, Any] | str) -> Path:
    written = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(written), encoding="utf-8")
    return path


# --- teachers ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["arithmetic:wide", "products", "chained:steps=3"])
def test_a_teacher_shows_its_problems_at_every_budget(name: str, tmp_path: Path) -> None:
    task = resolve(name)
    problems = task.problems(6, seed=1)
    harvest = taught(task, problems, (0, 4), protocol="threadweaver", merge="conclusions")
    assert harvest.left_out == []
    assert [each.budget for each in harvest.scripts] == [0, 4] * 3
    assert [each.question for each in harvest.scripts] == [each.question for each in problems]
    harvest.save(tmp_path / "data.jsonl")
    assert read([tmp_path / "data.jsonl"]).scripts == harvest.scripts


def test_a_task_without_a_teacher_is_refused() -> None:
    with pytest.raises(InvalidOption, match="teacher"):
        taught(Toy(), [], (0,), protocol="threadweaver", merge="full")


# --- a model's own runs ----------------------------------------------------------------------


def test_of_a_models_own_runs_the_right_ones_are_kept_the_shortest_first() -> None:
    with serving(*undecided(), temperature=1.0) as backend:
        harvest = sampled(
            Toy(), [WIDE, CHAIN], (3,), backend, protocol="threadweaver", merge="conclusions",
            samples=12, keep=1, temperature=1.0, max_tokens=100,
        )  # fmt: skip
    wide, chain = harvest.scripts
    assert len(wide.calls) == 4
    assert list(chain.calls) == ["0"]
    assert any("its answer is wrong" in why for why in harvest.left_out)


# --- recorded runs ---------------------------------------------------------------------------


def run_of(shown: Script) -> dict[str, Any]:
    def say(request: Request) -> str:
        thread, _, step = request.key.partition("/")
        return shown.calls[thread][int(step) // 2]

    agent = create_parallel_agent(ScriptedBackend(say), limits=Limits(max_threads=shown.budget))
    trajectory: dict[str, Any] = agent.invoke({"messages": [("user", shown.question)]})[
        "trajectory"
    ]
    return trajectory


def test_recorded_runs_are_kept_if_they_went_well_and_are_right(tmp_path: Path) -> None:
    wide, chain = script(WIDE, split=True), script(CHAIN, split=False)
    wrong = run_of(script(CHAIN, split=True))
    alone = run_of(wide.model_copy(update={"calls": {"0": ["<Outlines></Outlines>", "</think>7"]}}))
    path = lines(
        tmp_path / "runs.jsonl",
        {"question": "1", "answer": "7.0", "trajectory": run_of(wide)},
        {"question": "2", "answer": "5", "trajectory": run_of(chain), "more": "is ignored"},
        {"question": "2", "answer": "5", "trajectory": wrong},
        {"question": "1", "answer": "7", "trajectory": alone},
        {"question": "1", "answer": "7"},
        "not JSON",
    )
    scripts, left_out = recorded(path)
    assert [each.calls for each in scripts] == [wide.calls, chain.calls]
    assert sorted(why.partition(": ")[0] for why in left_out) == [
        f"{path}, line {number}" for number in (3, 4, 5, 6)
    ]
    assert any("its answer is wrong: '0'" in why for why in left_out)
    assert any("is malformed" in why for why in left_out)


# --- written traces --------------------------------------------------------------------------


def convert(
    path: Path, source: str, target: str, *rows: dict[str, Any], merge: str = "full"
) -> Harvest:
    lines(path / "traces.jsonl", *rows)
    protocols = text_protocol(source), text_protocol(target)
    return converted(path / "traces.jsonl", *protocols, merge=merge)


WRITTEN = TRACES["as the models write it"][0]


def test_a_trace_of_threadweaver_becomes_the_calls_that_wrote_it(tmp_path: Path) -> None:
    row = {"question": "How far?", "trace": WRITTEN}
    harvest = convert(tmp_path, "threadweaver", "threadweaver", row)
    assert harvest.left_out == []
    [made] = harvest.scripts
    assert made.answer == "The distance is 3·sqrt(13)."
    assert made.budget == 8
    opened, closed = made.calls["0"]
    assert opened == "\nThe distance is sqrt(dx² + dy²).\n\n" + text_protocol("threadweaver").block(
        text_protocol("threadweaver").read_trace(WRITTEN)[0].outlines
    )
    assert closed == ("\n</Parallel>\n\n\nTogether 117.\n\n</think>\nThe distance is 3·sqrt(13).")
    assert made.calls["0.1"] == [" dx = 6, so dx² = 36.\n</Thread>"]
    assert made.calls["0.2"] == [" dy = -9, so dy² = 81.\n</Thread>"]


@pytest.mark.parametrize("target", ["threadweaver", "multiverse", "npr", "apr"])
@pytest.mark.parametrize("name", ["as the models write it", "two blocks, one within a thread"])
def test_it_can_be_told_in_other_words(name: str, target: str, tmp_path: Path) -> None:
    trace = f"{TRACES[name][0].partition('</think>')[0]}\n</think>\n42"
    harvest = convert(tmp_path, "threadweaver", target, {"question": "Q", "trace": trace})
    assert harvest.left_out == []
    threads = {"0", "0.1", "0.2"} | ({"0.1.1"} if name.startswith("two") else set())
    assert set(harvest.scripts[0].calls) == threads


def test_a_trace_with_another_answer_than_the_right_one_is_left_out(tmp_path: Path) -> None:
    rows = [
        {"question": "How far?", "answer": answer, "trace": WRITTEN, "budget": 2}
        for answer in ("The distance is 3·sqrt(13).", "4")
    ]
    harvest = convert(tmp_path, "threadweaver", "threadweaver", *rows)
    assert [each.budget for each in harvest.scripts] == [2]
    assert harvest.left_out == [
        f"{tmp_path / 'traces.jsonl'}, line 2: its answer is wrong: 'The distance is 3·sqrt(13).'"
    ]


def test_lines_that_are_no_trace_are_named(tmp_path: Path) -> None:
    harvest = convert(tmp_path, "threadweaver", "threadweaver", {"question": "Q"})
    assert harvest.scripts == []
    [why] = harvest.left_out
    assert why.startswith(f"{tmp_path / 'traces.jsonl'}, line 1: ")
    with pytest.raises(UnusableFile):
        converted(tmp_path / "none", text_protocol("apr"), text_protocol("apr"), merge="full")


@pytest.mark.parametrize("target", ["threadweaver", "apr"])
def test_functions_of_apr_become_threads(target: str, tmp_path: Path) -> None:
    trace = APR_TRACES["functions, threads written out"][0].rpartition(" spawn(")[0] + ' join("8")'
    row = {"question": "Q", "trace": trace}
    harvest = convert(tmp_path, "apr", target, row, merge="conclusions")
    assert harvest.left_out == []
    [made] = harvest.scripts
    assert made.answer == "8"
    assert set(made.calls) == {"0", "0.1", "0.2", "0.2.1"}
    ending = text_protocol(target).end("4", thread=True)
    assert made.calls["0.1"] == [f"\nLeft is 4.\n4{ending}"]


SEARCH = {
    "main_calls": ["…", f"{ROOT}{EXPLORED}{RESULTS}27,27 equal: Goal Reached\n{PATH}"],
    "sub_calls": [[{"main_calls": [f"{node}\nNo solution found."], "sub_calls": []} for node in (
        "Moving to Node #0,0\nCurrent State: 27:[26, 31, 31], Operations: ['53-22=31']",
    )] + [{"main_calls": [PATH]}]],
}  # fmt: skip


@pytest.mark.parametrize("target", ["threadweaver", "apr"])
def test_a_search_of_aprs_generator_keeps_the_text_of_every_sub_search(
    target: str, tmp_path: Path
) -> None:
    harvest = convert(tmp_path, "apr", target, {"nums": [22], "trace_dict": SEARCH})
    assert harvest.left_out == []
    [made] = harvest.scripts
    assert made.question == ROOT
    assert "Goal Reached" in made.answer
    first, second = made.calls["0.1"][0], made.calls["0.2"][0]
    assert "No solution found." in first
    assert "27*1=27" in second
    # In APR a thread is asked its state; in ThreadWeaver it writes it.
    assert ("Current State" in second.partition("Exploring")[0]) == (target == "threadweaver")
