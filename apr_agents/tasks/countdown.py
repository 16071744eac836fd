"""Countdown: reach a target from given numbers with ``+ - * /``.

The problem of Stream of Search (Gandhi et al. 2024) and APR (Pan et al. 2025). Here each has a
solution with all numbers whose results are positive and whole; the target lies from 10 to 100.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from operator import itemgetter
from typing import Annotated, ClassVar, NamedTuple

from pydantic import Field

from apr_agents.tasks.answers import REQUEST, calculation
from apr_agents.tasks.base import Demonstration, Drawn, Problem
from apr_agents.tasks.teaching import block, contiguous_runs

LARGEST_NUMBER = 99
TARGETS = range(10, 101)
LEAST_NUMBERS_TO_SPLIT = 4
"""With three numbers a whole search takes some 400 characters."""

NOTHING = "none"
"""What a search that found no solution says."""

OPERATIONS = 6
"""Ways to join two numbers: ``a+b``, ``a*b``, ``a-b``, ``b-a``, ``a/b``, ``b/a``."""


@dataclass(frozen=True)
class CountdownTask(Drawn):
    """Problems whose answer is a calculation that comes to the target exactly.

    Each number may be used once. Work is counted in nodes of the whole search tree, in which every
    pair of numbers is joined by every operation; the parts are the subtrees below the first step.

    Attributes:
        numbers: how many numbers are given.
    """

    family: ClassVar[str] = "countdown"

    numbers: Annotated[int, Field(ge=2, le=6)] = 4

    def draw(self, rng: random.Random, index: int) -> Problem:
        while True:
            given = [rng.randint(1, LARGEST_NUMBER) for _ in range(self.numbers)]
            target, how = join_at_random(rng, given)
            if target in TARGETS and target not in given:
                break
        listed = ", ".join(map(str, given))
        return Problem(
            f"Make {target} from the numbers {listed} with +, -, * and /. "
            f"Use each number at most once. The answer is the calculation. {REQUEST}",
            how[1:-1],
            parallel_share=1 - 1 / nodes(self.numbers),
            parts=first_steps(self.numbers),
            facts={"numbers": given, "target": target},
        )

    def check(self, problem: Problem, answer: str) -> bool:
        made = calculation(answer)
        return (
            made is not None
            and made.value == problem.facts["target"]
            and Counter(made.numbers) <= Counter(problem.facts["numbers"])
        )

    def demonstrate(self, problem: Problem, budget: int) -> Demonstration:
        """The ideal behaviour: depth-first search, below several first steps at once.

        Whether it splits depends on how many numbers there are, not on where the solution lies,
        which nobody knows beforehand. It shortens the longest searches, not the lucky ones.
        """
        target: int = problem.facts["target"]
        first = list(steps([Reached(number, str(number)) for number in problem.facts["numbers"]]))
        threads = min(budget, len(first))
        if self.numbers < LEAST_NUMBERS_TO_SPLIT or threads < 2:
            thinking, found = search(first, target)
            return Demonstration(problem.question, budget, thinking, found)
        runs = contiguous_runs(first, threads)
        texts, results = zip(*(search(run, target) for run in runs), strict=True)
        found = next(result for result in results if result != NOTHING)
        outlines = [", ".join(step.text for step in run) for run in runs]
        shown = block(outlines, texts, results)
        return Demonstration(problem.question, budget, found, found, block=shown)


def first_steps(numbers: int) -> int:
    """Ways to join two of ``numbers`` numbers."""
    return OPERATIONS * numbers * (numbers - 1) // 2


def nodes(numbers: int) -> int:
    """Nodes of the search tree of ``numbers`` numbers, its root included."""
    return 1 + first_steps(numbers) * nodes(numbers - 1) if numbers > 1 else 1


class Reached(NamedTuple):
    """A number, and how it came about."""

    value: int
    how: str


class Step(NamedTuple):
    """Two numbers joined: what to write, what came of it, and the numbers then left, it first."""

    text: str
    result: Reached
    left: list[Reached]


def steps(left: Sequence[Reached]) -> Iterator[Step]:
    """All ways to join two numbers to a positive whole one, the larger number in front."""
    for pair in combinations(range(len(left)), 2):
        second, first = sorted((left[place] for place in pair), key=itemgetter(0))
        others = [each for place, each in enumerate(left) if place not in pair]
        for value, sign in whole_results(first.value, second.value):
            result = Reached(value, f"({first.how}{sign}{second.how})")
            yield Step(f"{first.value}{sign}{second.value}", result, [result, *others])


def search(first: Iterable[Step], target: int) -> tuple[str, str]:
    """A depth-first search below these steps, up to the first solution, a line for each step.

    Returns:
        What to write, and the calculation found, which ends it, or `NOTHING`.
    """
    lines: list[str] = []

    def found(steps_here: Iterable[Step], depth: int) -> str | None:
        for step in steps_here:
            value = step.result.value
            lines.append(f"{' ' * depth}{step.text}={value}")
            if value == target:
                return step.result.how[1:-1]
            if len(step.left) > 1 and (how := found(steps(step.left), depth + 1)) is not None:
                return how
        return None

    result = found(first, 0) or NOTHING
    return "\n".join([*lines, result]), result


def join_at_random(rng: random.Random, numbers: list[int]) -> Reached:
    """What comes of joining all ``numbers``, step by step."""
    left = [Reached(number, str(number)) for number in numbers]
    while len(left) > 1:
        left = rng.choice(list(steps(left))).left
    return left[0]


def whole_results(first: int, second: int) -> Iterator[tuple[int, str]]:
    """Positive whole results of two positive numbers, and the sign of the operation."""
    yield first + second, "+"
    yield first * second, "*"
    if first > second:
        yield first - second, "-"
    if first % second == 0:
        yield first // second, "/"
