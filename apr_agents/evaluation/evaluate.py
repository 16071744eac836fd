"""Many problems through their agents at once, and the means of what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from statistics import fmean

from pydantic import BaseModel, ConfigDict

from apr_agents.evaluation import AT_ONCE
from apr_agents.evaluation.run import Agent, Case, Configuration, ProblemResult, solve
from apr_agents.evaluation.store import RunStore


async def evaluate(
    cases: Sequence[tuple[Case, Agent]],
    store: RunStore,
    *,
    retry_errors: bool = False,
    at_once: int = AT_ONCE,
    on_result: Callable[[ProblemResult], None] | None = None,
) -> None:
    """Solve the problems of ``cases`` that have no result in ``store`` yet.

    A run that breaks off counts as a wrong answer and costs no other run anything.

    Args:
        retry_errors: run those again that broke off.
        on_result: called with each result as soon as it is in the store.

    Raises:
        UnusableFile: a result cannot be written; those before are.
    """
    places = asyncio.Semaphore(at_once)

    async def run(case: Case, agent: Agent, index: int) -> None:
        async with places:
            result = await solve(agent, case.task, case.problems[index])
        store.add(case.keys[index], result)
        if on_result is not None:
            on_result(result)

    try:
        async with asyncio.TaskGroup() as group:
            for case, agent in cases:
                for index in store.missing(case, retry_errors=retry_errors):
                    group.create_task(run(case, agent, index))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


class Report(BaseModel):
    """How an agent did on all problems of a case.

    Means are over the runs that did not break off.

    Attributes:
        accuracy: share of all problems that were answered correctly.
        activation_rate: share of the runs that split.
        errors: runs that broke off.
    """

    model_config = ConfigDict(frozen=True)

    configuration: Configuration
    n: int
    accuracy: float
    activation_rate: float
    mean_threads: float
    max_threads: int
    mean_total_tokens: float
    mean_critical_path: float
    mean_peak_context: float
    mean_seconds: float
    errors: int
    problems: list[ProblemResult]

    @classmethod
    def of(cls, case: Case, store: RunStore) -> Report:
        """Sum up a case, of which all results are in ``store``."""
        problems = store.results_of(case)
        ended = [each for each in problems if each.error is None] or problems
        return cls(
            configuration=case.configuration,
            n=len(problems),
            accuracy=fmean(each.correct for each in problems),
            activation_rate=fmean(each.spawned for each in ended),
            mean_threads=fmean(each.threads for each in ended),
            max_threads=max(each.threads for each in ended),
            mean_total_tokens=fmean(each.total_tokens for each in ended),
            mean_critical_path=fmean(each.critical_path for each in ended),
            mean_peak_context=fmean(each.peak_context for each in ended),
            mean_seconds=fmean(each.seconds for each in ended),
            errors=len(problems) - sum(each.error is None for each in problems),
            problems=problems,
        )
