"""What a task is: problems with a verifier, and optionally a teacher's demonstrations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from apr_agents.types import Outline


@dataclass(frozen=True)
class Problem:
    """A question and its reference answer."""

    question: str
    answer: str


class Task(Protocol):
    """A named family of problems whose answers can be checked."""

    @property
    def name(self) -> str: ...

    def problems(self, count: int, seed: int) -> list[Problem]:
        """``count`` problems; the same seed gives the same ones."""

    def verify(self, problem: Problem, predicted: str | None) -> bool:
        """Whether ``predicted`` answers ``problem``; ``None`` never does."""


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
