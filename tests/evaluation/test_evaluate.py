"""Problems through an agent, and the report."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from apr_agents import Limits, create_parallel_agent
from apr_agents.backends.base import Request
from apr_agents.backends.scripted import Reply, ScriptedBackend
from apr_agents.errors import PromptTooLong, UnusableFile
from apr_agents.evaluation import AT_ONCE
from apr_agents.evaluation.evaluate import Report, evaluate
from apr_agents.evaluation.run import LONGEST_QUESTION, Case, Configuration, ProblemResult
from apr_agents.evaluation.store import RunStore
from apr_agents.tasks.arithmetic import ArithmeticTask
from apr_agents.tasks.base import Problem

OUTLINES = "<Parallel>\n<Outlines>\n<Outline>1: a</Outline>\n<Outline>2: b</Outline>\n</Outlines>"


def script(request: Request) -> Reply | str:
    question = request.prompt.split("\n")[0]
    if question.startswith("long"):
        return Reply("", fails=PromptTooLong(9, 1))
    if question.startswith("silent"):
        return ""
    if request.prompt.endswith("<Thread>\n1:") or request.prompt.endswith("<Thread>\n2:"):
        return " 1</Thread>"
    if question.startswith("split") and "<Outlines>" not in request.prompt:
        return OUTLINES
    return "</think>7"


def asked(*problems: Problem) -> Case:
    return Case(Configuration(task="arithmetic"), ArithmeticTask(), problems)


async def reported(case: Case, store: RunStore | None = None, **options: Any) -> Report:
    store = store or RunStore()
    await evaluate([(case, create_parallel_agent(ScriptedBackend(script)))], store, **options)
    return Report.of(case, store)


async def test_a_report_says_what_was_right_and_what_it_cost() -> None:
    case = asked(
        Problem("split 1", "7", parallel_share=0.5),
        Problem("plain", "8", parallel_share=0.0),
        Problem("long", "7"),
        Problem("silent", "7"),
    )
    heard: list[ProblemResult] = []
    report = await reported(case, on_result=heard.append)
    split, plain, long, silent = report.problems
    assert [each.question for each in report.problems] == [each.question for each in case.problems]
    assert (split.predicted, split.correct, split.spawned, split.threads) == ("7", True, True, 2)
    assert split.total_tokens > split.critical_path > 0
    assert split.peak_context > plain.peak_context > 0
    assert 0 < split.parallel_ratio < 1
    assert (split.outline_balance, split.redundancy, split.parallel_share) == (1.0, 1.0, 0.5)
    assert (plain.predicted, plain.correct, plain.spawned) == ("7", False, False)
    assert (plain.outline_balance, plain.parallel_share) == (None, 0.0)
    assert (long.predicted, long.correct, long.status, long.total_tokens) == (
        None,
        False,
        "failed",
        0,
    )
    assert long.error is not None
    assert long.error.startswith("PromptTooLong: The prompt has 9 tokens")
    assert (silent.predicted, silent.correct, silent.error) == (None, False, None)
    assert report.n == 4
    assert report.accuracy == 1 / 4
    assert report.activation_rate == 1 / 3  # the run that broke off had no choice
    assert (report.mean_threads, report.max_threads, report.errors) == (2 / 3, 2, 1)
    assert report.mean_total_tokens == pytest.approx(
        sum(each.total_tokens for each in report.problems) / 3
    )
    assert sorted(map(id, heard)) == sorted(map(id, report.problems))


async def test_runs_that_all_break_off_cost_nothing() -> None:
    report = await reported(asked(Problem("long", "7")))
    assert (report.accuracy, report.errors, report.mean_total_tokens) == (0.0, 1, 0.0)


async def test_many_problems_share_the_agents_gate_and_are_not_all_open_at_once() -> None:
    backend = ScriptedBackend(script)
    agent = create_parallel_agent(backend, limits=Limits(max_concurrency=4))
    case, store = asked(*(Problem(f"split {i}", "7") for i in range(3 * AT_ONCE))), RunStore()
    await evaluate([(case, agent)], store)
    assert Report.of(case, store).accuracy == 1
    assert backend.peak_in_flight == 4
    backend.peak_in_flight = 0
    wide = create_parallel_agent(backend, limits=Limits(max_concurrency=100))
    await evaluate([(case, wide)], RunStore(), at_once=3)
    assert backend.peak_in_flight == 6  # two threads of each


async def test_only_what_is_missing_runs() -> None:
    case, store = asked(Problem("plain", "7"), Problem("long", "7")), RunStore()
    await reported(case, store)
    backend = ScriptedBackend(lambda request: "</think>7")
    agent = create_parallel_agent(backend)
    await evaluate([(case, agent)], store)
    assert backend.requests == []
    await evaluate([(case, agent)], store, retry_errors=True)
    assert [request.prompt.split("\n")[0] for request in backend.requests] == ["long"]
    assert Report.of(case, store).accuracy == 1


async def test_a_verifier_that_breaks_costs_its_own_problem_only() -> None:
    class Picky(ArithmeticTask):
        def verify(self, problem: Problem, predicted: str | None) -> bool:
            if problem.question == "a":
                raise ValueError("no such answer")
            return True

    case = Case(Configuration(task="picky"), Picky(), [Problem("a", "1"), Problem("b", "1")])
    broken, fine = (await reported(case)).problems
    assert (broken.error, broken.correct) == ("ValueError: no such answer", False)
    assert fine.correct


async def test_a_document_is_not_kept_with_every_result() -> None:
    (result,) = (await reported(asked(Problem("plain " * 1000, "7")))).problems
    assert len(result.question) == LONGEST_QUESTION
    assert result.correct


async def test_half_a_character_in_an_answer_can_be_written(tmp_path: Path) -> None:
    backend = ScriptedBackend(lambda request: "</think>\ud800")
    case, store = asked(Problem("q", "7")), RunStore(tmp_path / "runs.jsonl")
    await evaluate([(case, create_parallel_agent(backend))], store)
    assert RunStore(tmp_path / "runs.jsonl").results_of(case)[0].predicted == "?"


async def test_a_disk_that_fills_up_ends_the_evaluation_and_keeps_what_was_written(
    tmp_path: Path,
) -> None:
    case, store = asked(*(Problem(f"plain {i}", "7") for i in range(9))), RunStore()
    left = 3

    class Filling(RunStore):
        def add(self, key: Any, result: ProblemResult) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise UnusableFile("runs.jsonl", "No space left on device")
            store.add(key, result)

    with pytest.raises(UnusableFile, match="No space left"):
        await reported(case, Filling())
    assert len(store.results) == 3
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
