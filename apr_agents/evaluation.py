"""How well an agent does on problems: accuracy, and what its threads cost and saved.

Knows problems, verifiers and trajectories; never how an agent was built.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from langchain_core.messages import HumanMessage
from langchain_core.runnables import Runnable
from pydantic import BaseModel, ConfigDict

from apr_agents.tasks.base import Problem, Task
from apr_agents.trace.trajectory import Trajectory

AT_ONCE = 32
"""Problems in progress at once. How many of their model calls run is the agent's own limit."""


class ProblemResult(BaseModel):
    """How one problem went. Token counts are 0 when the run broke off with an error.

    Attributes:
        predicted: the agent's answer; ``None`` when it gave none.
        spawned: whether the model split its thinking.
        threads: threads of the whole run, the root not counted.
        status: how the root thread ended; ``failed`` also when the run broke off.
        error: what the run broke off with, in one line.
        seconds: time the run took.
    """

    model_config = ConfigDict(frozen=True)

    question: str
    answer: str
    predicted: str | None
    correct: bool
    spawned: bool = False
    threads: int = 0
    total_tokens: int = 0
    critical_path: int = 0
    peak_context: int = 0
    status: str
    error: str | None = None
    seconds: float = 0.0


class Report(BaseModel):
    """How an agent did on all problems; means are over all of them.

    Attributes:
        accuracy: share of the problems that were answered correctly.
        activation_rate: share of the problems for which the model split its thinking.
        seconds: time for all of them together.
    """

    model_config = ConfigDict(frozen=True)

    n: int
    accuracy: float
    activation_rate: float
    mean_threads: float
    max_threads: int
    mean_total_tokens: float
    mean_critical_path: float
    mean_peak_context: float
    errors: int
    seconds: float
    problems: list[ProblemResult]

    @classmethod
    def of(cls, problems: list[ProblemResult], *, seconds: float) -> Report:
        """Sum up at least one result."""
        return cls(
            n=len(problems),
            accuracy=fmean(each.correct for each in problems),
            activation_rate=fmean(each.spawned for each in problems),
            mean_threads=fmean(each.threads for each in problems),
            max_threads=max(each.threads for each in problems),
            mean_total_tokens=fmean(each.total_tokens for each in problems),
            mean_critical_path=fmean(each.critical_path for each in problems),
            mean_peak_context=fmean(each.peak_context for each in problems),
            errors=sum(each.error is not None for each in problems),
            seconds=seconds,
            problems=problems,
        )


async def evaluate(
    agent: Runnable[Any, Any],
    task: Task,
    problems: Sequence[Problem],
    *,
    on_result: Callable[[ProblemResult], None] | None = None,
) -> Report:
    """Run ``problems`` through ``agent`` and check its answers with ``task``.

    Results are in the order of the problems. A run that breaks off counts as a wrong
    answer and costs no other run anything.

    Args:
        agent: what `create_parallel_agent` returns.
        on_result: called with each result as soon as it is there.
    """
    places = asyncio.Semaphore(AT_ONCE)

    async def solve(problem: Problem) -> ProblemResult:
        async with places:
            result = await _solve(agent, task, problem)
        if on_result is not None:
            on_result(result)
        return result

    started = time.monotonic()
    async with asyncio.TaskGroup() as group:
        runs = [group.create_task(solve(problem)) for problem in problems]
    return Report.of([run.result() for run in runs], seconds=time.monotonic() - started)


async def _solve(agent: Runnable[Any, Any], task: Task, problem: Problem) -> ProblemResult:
    started = time.monotonic()
    try:
        state = await agent.ainvoke({"messages": [HumanMessage(problem.question)]})
    except Exception as error:
        return ProblemResult(
            question=problem.question,
            answer=problem.answer,
            predicted=None,
            correct=False,
            status="failed",
            error=" ".join(f"{type(error).__name__}: {error}".split()),
            seconds=time.monotonic() - started,
        )
    trajectory = Trajectory.model_validate(state["trajectory"])
    metrics = trajectory.metrics()
    return ProblemResult(
        question=problem.question,
        answer=problem.answer,
        predicted=trajectory.answer,
        correct=task.verify(problem, trajectory.answer),
        spawned=metrics.activated,
        threads=metrics.threads,
        total_tokens=metrics.total_tokens,
        critical_path=metrics.critical_path,
        peak_context=metrics.peak_context,
        status=trajectory.root.status,
        seconds=time.monotonic() - started,
    )
