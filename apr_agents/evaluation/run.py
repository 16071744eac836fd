"""One problem through one agent: what was asked of it, and what came of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import sha256
from typing import Any, Literal, TypeAlias

from langchain_core.messages import HumanMessage
from langchain_core.runnables import Runnable
from pydantic import BaseModel, ConfigDict

from apr_agents.tasks.base import Problem, Task
from apr_agents.tokens import well_formed
from apr_agents.trace.trajectory import Trajectory

Agent: TypeAlias = Runnable[Any, Any]
"""What `create_parallel_agent` returns."""

LONGEST_QUESTION = 1000
"""Characters of a question that its record keeps: some are whole documents."""


class Configuration(BaseModel):
    """Everything that a result depends on, by name: which problems, and which agent.

    Attributes:
        seed: which problems were drawn.
        protocol: ``None`` for the model's own; likewise ``temperature``.
        threads: threads that a run might use in all, or ``"auto"``; see `Limits`.
        tools: files of the tools that it had.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    seed: int = 0
    model: str = "bundled"
    strategy: str = "adaptive"
    protocol: str | None = None
    temperature: float | None = None
    merge: str = "conclusions"
    join: str = "all"
    threads: int | Literal["auto"] | None = None
    max_depth: int = 2
    tools: tuple[str, ...] = ()


@dataclass(frozen=True)
class Key:
    """Names a run: two runs with the same key are the same run.

    Attributes:
        index: place of the problem among those drawn.
        problem: a digest of its question and answer: no result is taken for that of another.
    """

    configuration: Configuration
    index: int
    problem: str


@dataclass(frozen=True)
class Case:
    """Problems that are to be solved in one configuration."""

    configuration: Configuration
    task: Task
    problems: Sequence[Problem]

    @cached_property
    def keys(self) -> list[Key]:
        """The runs that this takes, in the order of the problems."""
        return [
            Key(self.configuration, index, _digest(problem))
            for index, problem in enumerate(self.problems)
        ]


def _digest(problem: Problem) -> str:
    text = f"{problem.question}\0{problem.answer}"
    return sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


class ProblemResult(BaseModel):
    """How one problem went. Counts are 0 when the run broke off with an error.

    Attributes:
        question: the question, cut after `LONGEST_QUESTION` characters.
        predicted: the agent's answer; ``None`` when it gave none.
        parallel_share: share of the work that could be done at once; see `Problem`.
        spawned: whether the run split.
        threads: threads of the whole run, the root not counted.
        status: how the root thread ended; ``failed`` also when the run broke off.
        error: what the run broke off with, in one line.
        seconds: time the run took.

    The other measures are those of `Metrics`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str
    answer: str
    predicted: str | None
    correct: bool
    parallel_share: float | None = None
    spawned: bool = False
    threads: int = 0
    total_tokens: int = 0
    critical_path: int = 0
    peak_context: int = 0
    parallel_ratio: float = 0.0
    outline_balance: float | None = None
    redundancy: float | None = None
    status: str
    error: str | None = None
    seconds: float = 0.0


async def solve(agent: Agent, task: Task, problem: Problem) -> ProblemResult:
    """Run ``problem`` through ``agent`` and check the answer with ``task``.

    A run that breaks off counts as a wrong answer.
    """
    started = time.monotonic()
    result = partial(
        ProblemResult,
        question=well_formed(problem.question[:LONGEST_QUESTION]),
        answer=well_formed(problem.answer),
        parallel_share=problem.parallel_share,
    )
    try:
        state = await agent.ainvoke({"messages": [HumanMessage(problem.question)]})
        seconds = time.monotonic() - started
        trajectory = Trajectory.model_validate(state["trajectory"])
        metrics = trajectory.metrics()
        # On a thread of its own: a verifier may block for seconds.
        correct = await asyncio.to_thread(task.verify, problem, trajectory.answer)
    except Exception as error:
        return result(
            predicted=None,
            correct=False,
            status="failed",
            error=well_formed(" ".join(f"{type(error).__name__}: {error}".split())),
            seconds=time.monotonic() - started,
        )
    return result(
        predicted=None if trajectory.answer is None else well_formed(trajectory.answer),
        correct=correct,
        spawned=metrics.activated,
        threads=metrics.threads,
        total_tokens=metrics.total_tokens,
        critical_path=metrics.critical_path,
        peak_context=metrics.peak_context,
        parallel_ratio=metrics.parallel_ratio,
        outline_balance=metrics.outline_balance,
        redundancy=metrics.redundancy,
        status=trajectory.root.status,
        seconds=seconds,
    )
