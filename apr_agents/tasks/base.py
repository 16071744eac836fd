"""What a task is: problems with a verifier, and optionally a teacher's demonstrations."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol, runtime_checkable

from apr_agents.tasks.answers import final_answer
from apr_agents.types import Outline


@dataclass(frozen=True)
class Problem:
    """A question, a right answer, and how much of the work could be done at once.

    Work is counted in steps of one kind (a record read, a digit multiplied, a node of a search
    visited), as the task's docstring says, for someone who works through it one by one.

    Attributes:
        answer: the right answer, or one of them; empty where only a given one can be checked.
        parallel_share: share of the work, 0 to 1, that lies in parts of which none needs another's
            result. With P threads, P up to ``parts``, the critical path is at best
            ``(1 - parallel_share) + parallel_share / P`` of the whole; parts of unequal length
            make it longer. 0 if every step needs the one before; ``None`` if nobody knows.
        parts: how many such parts there are: more threads than that shorten nothing.
            ``None`` if nobody knows, 1 if ``parallel_share`` is 0.
        facts: what the verifier and the teacher know beside question and answer.
    """

    question: str
    answer: str
    parallel_share: float | None = None
    parts: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)


class Task(Protocol):
    """A named family of problems whose answers can be checked."""

    @property
    def name(self) -> str:
        """How reports call it: for all but a file, what `resolve` makes it of."""

    def problems(self, count: int, seed: int) -> list[Problem]:
        """``count`` problems; the same seed gives the same ones."""

    def verify(self, problem: Problem, predicted: str | None) -> bool:
        """Whether ``predicted`` answers ``problem``; ``None`` never does.

        Never raises, whatever the text is, and takes bounded time. May be called from any
        thread; it may block for seconds.
        """


@runtime_checkable
class Teacher(Protocol):
    """A task that can show how its problems are solved."""

    def demonstrate(self, problem: Problem, budget: int) -> Demonstration:
        """The ideal behaviour on ``problem`` when ``budget`` threads are allowed."""


@dataclass(frozen=True)
class Drawn(ABC):
    """A task whose problems are drawn one by one, each with random numbers of its own.

    So the first problems of a seed are the same however many are drawn. Subclasses are frozen
    dataclasses; their fields are the options of the task.
    """

    family: ClassVar[str]

    @property
    def name(self) -> str:
        """The family and the options that differ from their defaults."""
        options = [
            f"{each.name}={getattr(self, each.name)}"
            for each in fields(self)
            if getattr(self, each.name) != each.default
        ]
        return f"{self.family}:{','.join(options)}" if options else self.family

    def problems(self, count: int, seed: int) -> list[Problem]:
        """``count`` problems; the same seed gives the same ones, on every platform."""
        return [
            self.draw(random.Random(f"{self.name}/{seed}/{index}"), index) for index in range(count)
        ]

    def verify(self, problem: Problem, predicted: str | None) -> bool:
        """Whether the final answer in ``predicted`` is right; see `answers.final_answer`."""
        answer = final_answer(predicted)
        return answer is not None and self.check(problem, answer)

    @abstractmethod
    def draw(self, rng: random.Random, index: int) -> Problem:
        """The problem with this index."""

    @abstractmethod
    def check(self, problem: Problem, answer: str) -> bool:
        """Whether ``answer``, nothing but an answer, is right. Never raises."""


@dataclass(frozen=True)
class Block:
    """A parallel block of a demonstration: outlines, what each thread writes, what it concludes."""

    outlines: tuple[Outline, ...]
    threads: tuple[str, ...]
    conclusions: tuple[str, ...]


@dataclass(frozen=True)
class Demonstration:
    """One ideal run, free of any protocol's syntax.

    ``block`` comes first when there is one; ``thinking`` is what the parent then
    writes (everything, in a sequential run), ``answer`` is the final answer.
    """

    question: str
    budget: int
    thinking: str
    answer: str
    block: Block | None = None
