"""Numbers to be sorted."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from apr_agents.tasks.answers import REQUEST, items
from apr_agents.tasks.base import Drawn, Problem

LARGEST = 9999


@dataclass(frozen=True)
class MergeSortTask(Drawn):
    """Problems whose answer is the exact list.

    Work is counted in the comparisons of merge sort, ``n log n``. The parts are the two halves;
    the last merge has to wait for both. Threads that split again do the same within each half.

    Attributes:
        numbers: how many there are; some may occur more than once.
    """

    family: ClassVar[str] = "merge_sort"

    numbers: Annotated[int, Field(ge=2, le=10_000)] = 64

    def draw(self, rng: random.Random, index: int) -> Problem:
        numbers = [rng.randint(0, LARGEST) for _ in range(self.numbers)]
        share = 1 - 1 / math.log2(self.numbers)
        return Problem(
            f"Sort these numbers, the smallest first: {_listed(numbers)}. "
            f"The answer is the list, separated by commas. {REQUEST}",
            _listed(sorted(numbers)),
            parallel_share=share,
            parts=2 if share else 1,
        )

    def check(self, problem: Problem, answer: str) -> bool:
        return items(answer) == items(problem.answer)


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
