"""Scripts: what teachers, traces and recorded runs become, in every protocol, and files of them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import jsonschema_rs
import pytest

from apr_agents import Limits, Trajectory, create_parallel_agent
from apr_agents.backends.base import Request
from apr_agents.backends.scripted import Reply, ScriptedBackend
from apr_agents.errors import InvalidOption, UnusableFile
from apr_agents.tasks.base import Problem, Teacher
from apr_agents.tasks.registry import resolve
from apr_agents.training.runs import Rehearsal, rehearse
from apr_agents.training.scripts import (
    Script,
    fault_of,
    from_demonstration,
    from_trajectory,
    read,
    text_protocol,
)
from tests.training.toy import CHAIN, WIDE, script

PROTOCOLS = ["threadweaver", "multiverse", "npr", "parallel_r1", "apr"]
MERGES = ["conclusions", "full", "summary"]


def played(*scripts: Script) -> list[Rehearsal]:
    return asyncio.run(rehearse(scripts))


def teacher(problem: Problem, protocol: str, merge: str, budget: int) -> Script:
    task = resolve("arithmetic:wide")
    assert isinstance(task, Teacher)
    return from_demonstration(
        task.demonstrate(problem, budget), text_protocol(protocol), merge=merge
    )


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_demonstration_plays_in_every_protocol(protocol: str, merge: str) -> None:
    task = resolve("arithmetic:wide")
    [problem] = task.problems(1, seed=3)
    for budget in (0, 2):
        shown = teacher(problem, protocol, merge, budget)
        [(run, fault)] = played(shown)
        assert fault is None
        assert run is not None
        assert task.verify(problem, run.trajectory.answer)
        assert run.trajectory.metrics().threads == budget
        assert run.trajectory.merge == merge
        # What was recorded of the run is the script again.
        again = from_trajectory(shown.question, shown.answer, run.trajectory)
        assert again == shown.model_copy(update={"budget": budget})


def test_threads_may_split_again() -> None:
    calls = {
        "0": [
            "<Parallel>\n<Outlines>\n<Outline>1: a</Outline>\n<Outline>2: b</Outline>\n</Outlines>",
            "\n</Parallel>\n</think>\n7",
        ],
        "0.1": [
            " so <Parallel>\n<Outlines>\n<Outline>1.1: c</Outline>\n</Outlines>",
            "\n</Parallel>\n3</Thread>",
        ],
        "0.2": [" 4</Thread>"],
        "0.1.1": [" 3</Thread>"],
    }
    nested = Script(question="Q", answer="7", budget=2, calls=calls)
    assert nested.rules.depth == 2
    [(run, fault)] = played(nested)
    assert fault is None
    assert run is not None
    assert set(run.trajectory.threads()) == set(calls)


SPLIT, ALONE = script(WIDE, split=True), script(CHAIN, split=False)


def writing(given: Script, **calls: list[str]) -> Script:
    """The script with other calls: those of thread ``0.1`` are called ``_0_1``."""
    named = {name[1:].replace("_", "."): texts for name, texts in calls.items()}
    return given.model_copy(update={"calls": given.calls | named})


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (writing(SPLIT, _0=SPLIT.calls["0"][:1]), "says nothing more"),
        (writing(SPLIT, _0_1=[]), "thread 0.1 is failed"),
        (writing(SPLIT, _0_9=["x"]), "does not read all"),
        (writing(SPLIT, _0_1=[f"{SPLIT.calls['0.1'][0]} and on"]), "does not read all"),
        (writing(ALONE, _0=["<Outlines></Outlines>", "</think>5"]), "is malformed"),
        (SPLIT.model_copy(update={"budget": 0}), "is declined"),
        (SPLIT.model_copy(update={"merge": "nothing"}), "InvalidOption"),
    ],
)
def test_a_script_that_does_not_go_well_says_why(broken: Script, why: str) -> None:
    [(run, fault)] = played(broken)
    assert run is None
    assert fault is not None
    assert why in fault


def test_one_script_costs_another_nothing() -> None:
    good, bad, again = played(SPLIT, SPLIT.model_copy(update={"budget": 0}), ALONE)
    assert (good.fault, again.fault) == (None, None)
    assert bad.fault is not None


# --- recorded runs ---------------------------------------------------------------------------


def recorded(replies: dict[str, Reply | str], **limits: int) -> Trajectory:
    def say(request: Request) -> Reply | str:
        return replies[request.key]

    agent = create_parallel_agent(ScriptedBackend(say), limits=Limits(**limits))
    output = asyncio.run(agent.ainvoke({"messages": [("user", "1")]}))
    return Trajectory.model_validate(output["trajectory"])


BLOCK, END = SPLIT.calls["0"]
WHOLE: dict[str, Reply | str] = {
    "0/0": BLOCK, "0/2": END, "0.1/0": "3</Thread>", "0.2/0": "4</Thread>", "0.3/0": "5</Thread>",
}  # fmt: skip


def test_a_recorded_run_becomes_what_its_model_wrote() -> None:
    run = recorded(WHOLE)
    assert fault_of(run) is None
    made = from_trajectory("1", "7", run)
    assert made.calls == {
        "0": [BLOCK, END], "0.1": ["3</Thread>"], "0.2": ["4</Thread>"], "0.3": ["5</Thread>"],
    }  # fmt: skip
    assert made.budget == 8


@pytest.mark.parametrize(
    ("replies", "limits", "why"),
    [
        (WHOLE | {"0.2/0": Reply("4", fails=OSError("gone"))}, {}, "thread 0.2 is failed"),
        (WHOLE | {"0/0": "<Outlines></Outlines>", "0/2": "</think>5"}, {}, "is malformed"),
        (WHOLE | {"0/0": BLOCK, "0/2": "</think>5"}, {"max_threads": 0}, "is declined"),
        ({"0/0": "and on and on"}, {"max_tokens_per_thread": 3}, "no answer"),
    ],
)
def test_a_run_that_did_not_go_well_is_no_example(
    replies: dict[str, Reply | str], limits: dict[str, int], why: str
) -> None:
    assert why in (fault_of(recorded(replies, **limits)) or "")


# --- files -----------------------------------------------------------------------------------


def test_lines_that_are_no_script_are_named_and_cost_the_others_nothing(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    line = SPLIT.model_dump_json().encode()
    path.write_bytes(
        b"\n".join([line, b'{"question": "Q"', b"\xff\xfe", b"", b"[]", b'{"budget": -1}', line])
    )
    scripts, skipped = read([path])
    assert scripts == [SPLIT, SPLIT]
    assert [(each.path, each.line) for each in skipped] == [(str(path), n) for n in (2, 3, 5, 6)]
    assert all(str(each).startswith(f"{path}, line {each.line}: ") for each in skipped)


def test_files_without_any_script_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableFile, match="No such file"):
        read([tmp_path / "missing.jsonl"])
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UnusableFile, match="no script"):
        read([tmp_path / "empty.jsonl"])


def test_the_schema_allows_what_scripts_are() -> None:
    validator = jsonschema_rs.validator_for(Script.model_json_schema())
    assert validator.is_valid(json.loads(SPLIT.model_dump_json()))
    assert not validator.is_valid({"question": "Q"})


def test_a_protocol_of_chat_models_has_no_scripts() -> None:
    with pytest.raises(InvalidOption, match="continues text"):
        text_protocol("tool_calls")
