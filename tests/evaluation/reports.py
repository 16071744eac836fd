"""Reports written down by hand."""

from __future__ import annotations

from typing import Any

from apr_agents.evaluation.evaluate import Report
from apr_agents.evaluation.run import Case, Configuration, ProblemResult
from apr_agents.evaluation.store import RunStore
from apr_agents.tasks.arithmetic import ArithmeticTask
from apr_agents.tasks.base import Problem


def result(correct: bool = True, **measured: Any) -> ProblemResult:
    return ProblemResult(
        question="q", answer="7", predicted="7", correct=correct, status="done", **measured
    )


def report(*results: ProblemResult, task: str = "sums", **configured: Any) -> Report:
    problems = [Problem(f"q{i}", "7") for i in range(len(results))]
    case = Case(Configuration(task=task, **configured), ArithmeticTask(), problems)
    store = RunStore()
    for key, each in zip(case.keys, results, strict=True):
        store.add(key, each)
    return Report.of(case, store)
