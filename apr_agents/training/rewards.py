"""What a run is worth: correct answers first, then a shorter critical path.

A reward judges the runs of one question together, since what a run saves depends on what the
question takes. Knows records; never tokens or models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from apr_agents.trace.metrics import critical_path, shingles
from apr_agents.types import ThreadResult

REPEATED = 0.5
"""Share of a thread's shingles that siblings before it wrote, from which on it is a repetition."""


class Outcome(NamedTuple):
    """How one run ended.

    Attributes:
        root: its threads; ``None`` if the run broke off.
        correct: whether its answer is right.
        price: what each of its threads costs, in units of the reward.
    """

    root: ThreadResult | None
    correct: bool
    price: float = 0.0


class Reward(ABC):
    """Judges the runs of one question."""

    @abstractmethod
    def __call__(self, outcomes: Sequence[Outcome]) -> list[float]:
        """What each run is worth; one with a wrong answer never more than one with a right one."""


@dataclass(frozen=True)
class Correctness(Reward):
    """1 for a right answer, 0 for a wrong one."""

    def __call__(self, outcomes: Sequence[Outcome]) -> list[float]:
        return [float(outcome.correct) for outcome in outcomes]


@dataclass(frozen=True)
class ParallelEfficiency(Reward):
    """``1 + min(rho · (1 - critical path / total tokens), clip)`` for a right answer, else 0.

    As in P-GRPO (ThreadWeaver, section on reinforcement learning). What the threads cost at
    their price is taken off, though never more than ``clip``: a right answer stays worth more.

    Attributes:
        rho: what efficiency is worth.
        clip: what it is worth at most.
    """

    rho: float = 0.5
    clip: float = 0.2

    def __call__(self, outcomes: Sequence[Outcome]) -> list[float]:
        return [
            self._of(outcome.root, work, outcome.price) if outcome.correct and outcome.root else 0.0
            for outcome, work in zip(outcomes, self.work(outcomes), strict=True)
        ]

    def work(self, outcomes: Sequence[Outcome]) -> list[int]:
        """The tokens that each run's critical path is compared with."""
        return [outcome.root.tokens if outcome.root else 0 for outcome in outcomes]

    def _of(self, root: ThreadResult, work: int, price: float) -> float:
        efficiency = max(0.0, 1 - critical_path(root) / work) if work else 0.0
        threads = sum(1 for _ in root.walk()) - 1
        return 1 + max(-self.clip, min(self.rho * efficiency, self.clip) - price * threads)


@dataclass(frozen=True)
class UsefulEfficiency(ParallelEfficiency):
    """The same, but only work that the question takes can be saved.

    Tokens of threads that repeat a sibling or come to nothing are not counted, and no run is
    compared with more tokens than the least with which any run of the group was right. So
    spawning threads for their own sake, or having them write more, earns nothing.
    """

    def work(self, outcomes: Sequence[Outcome]) -> list[int]:
        useful = [useful_tokens(outcome.root) if outcome.root else 0 for outcome in outcomes]
        right = [work for outcome, work in zip(outcomes, useful, strict=True) if outcome.correct]
        return [min([work, *right]) for work in useful]


REWARDS: dict[str, type[Reward]] = {
    "useful_efficiency": UsefulEfficiency,
    "parallel_efficiency": ParallelEfficiency,
    "correctness": Correctness,
}


def useful_tokens(thread: ThreadResult) -> int:
    """Tokens of a thread and of those below it that are done and do not repeat a sibling."""
    below = [child for block in thread.blocks for child in block.threads]
    total = thread.tokens - sum(child.tokens for child in below)
    for block in thread.blocks:
        repeated = repetitions(block.threads)
        total += sum(
            useful_tokens(child)
            for child, repeats in zip(block.threads, repeated, strict=True)
            if child.status == "done" and not repeats
        )
    return total


def repetitions(threads: Sequence[ThreadResult]) -> list[bool]:
    """Of each thread of a block, whether most of it stands in siblings before it."""
    before: set[tuple[str, ...]] = set()
    repeated = []
    for thread in threads:
        own = shingles(thread)
        repeated.append(bool(own) and len(own & before) >= REPEATED * len(own))
        before |= own
    return repeated
