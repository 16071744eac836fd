"""Game of 24: make 24 of four numbers from 1 to 13, each used exactly once, with ``+ - * /``.

As in Tree of Thoughts (Yao et al. 2023, section 4.1), which takes puzzles 900 to 999 of a list of
the 1,362 that have a solution, ordered by the time people take. That list is not ours to ship: name
your copy of it with ``ranking``. Without one, the same 1,362 puzzles are ordered by how easily a
way to 24 is come by: each way counts the product of ``1 / (1 + v)`` over its
results ``v``, and ways through negative numbers or fractions count nothing. The ranks of
the two orders correlate with 0.70 (Spearman), so 900 to 999 are rather hard here too, but not the
same puzzles.
"""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import combinations, combinations_with_replacement
from pathlib import Path
from random import Random
from typing import Annotated, ClassVar

from pydantic import Field

from apr_agents.errors import UnusableFile
from apr_agents.tasks.answers import REQUEST, calculation
from apr_agents.tasks.base import Drawn, Problem
from apr_agents.tasks.countdown import first_steps, nodes

TARGET, CARDS, HIGHEST = 24, 4, 13
SOLVABLE = 1362

Puzzle = tuple[int, ...]


@dataclass(frozen=True)
class Game24Task(Drawn):
    """The puzzles in order, from number ``first`` on; after the last comes number 0.

    Work is counted as in `CountdownTask`. The seed changes nothing.

    Attributes:
        first: where to begin; the easiest is number 0.
        ranking: a CSV file with a column ``Puzzles``, the easiest first, to be used instead of
            this module's order.
    """

    family: ClassVar[str] = "game24"

    first: Annotated[int, Field(ge=0, lt=SOLVABLE)] = 900
    ranking: Path | None = None

    def draw(self, rng: Random, index: int) -> Problem:
        puzzles = by_difficulty() if self.ranking is None else read_ranking(self.ranking)
        puzzle = puzzles[(self.first + index) % len(puzzles)]
        return Problem(
            f"Make {TARGET} from the numbers {', '.join(map(str, puzzle))} with +, -, * and /. "
            f"Use each number exactly once. The answer is the calculation. {REQUEST}",
            solution(puzzle) or "",
            parallel_share=1 - 1 / nodes(CARDS),
            parts=first_steps(CARDS),
            facts={"numbers": puzzle},
        )

    def check(self, problem: Problem, answer: str) -> bool:
        made = calculation(answer)
        return (
            made is not None
            and made.value == TARGET
            and Counter(made.numbers) == Counter(problem.facts["numbers"])
        )


@cache
def by_difficulty() -> list[Puzzle]:
    """All puzzles that have a solution, the easiest first."""
    puzzles = combinations_with_replacement(range(1, HIGHEST + 1), CARDS)
    return sorted(
        (puzzle for puzzle in puzzles if _ease(puzzle)[TARGET] or solution(puzzle)),
        key=lambda puzzle: (-_ease(puzzle)[TARGET], puzzle),
    )


@cache
def read_ranking(path: Path) -> list[Puzzle]:
    """The puzzles of a CSV file, from its column ``Puzzles``.

    Raises:
        UnusableFile: the file cannot be read, or has no such puzzles.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            puzzles = [tuple(map(int, row["Puzzles"].split())) for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, AttributeError, csv.Error) as error:
        why = getattr(error, "strerror", None) or "it needs a column 'Puzzles' such as '4 4 6 8'"
        raise UnusableFile(str(path), why) from error
    if not puzzles or any(len(puzzle) != CARDS for puzzle in puzzles):
        raise UnusableFile(str(path), "its puzzles do not have four numbers each")
    return puzzles


def solution(puzzle: Puzzle) -> str | None:
    """A calculation that makes 24 of all numbers, if there is one."""
    for left, right in _splits(puzzle):
        for first, how in _reach(left).items():
            for second, how_second in _reach(right).items():
                for value, made in _results(first, how, second, how_second):
                    if value == TARGET:
                        return made[1:-1]
    return None


@cache
def _reach(numbers: Puzzle) -> dict[Fraction, str]:
    """Everything that can be made of all ``numbers``, and one way to make it."""
    if len(numbers) == 1:
        return {Fraction(numbers[0]): str(numbers[0])}
    reached: dict[Fraction, str] = {}
    for left, right in _splits(numbers):
        for first, how in _reach(left).items():
            for second, how_second in _reach(right).items():
                for value, made in _results(first, how, second, how_second):
                    reached.setdefault(value, made)
    return reached


def _results(
    first: Fraction, how: str, second: Fraction, how_second: str
) -> Iterator[tuple[Fraction, str]]:
    yield first + second, f"({how}+{how_second})"
    yield first * second, f"({how}*{how_second})"
    yield first - second, f"({how}-{how_second})"
    yield second - first, f"({how_second}-{how})"
    if second:
        yield first / second, f"({how}/{how_second})"
    if first:
        yield second / first, f"({how_second}/{how})"


@cache
def _ease(numbers: Puzzle) -> dict[int, float]:
    """For each whole number, how easily it is come by from all ``numbers``."""
    ease: dict[int, float] = defaultdict(float)
    if len(numbers) == 1:
        ease[numbers[0]] = 1.0
    for left, right in _splits(numbers):
        for first, ease_first in _ease(left).items():
            for second, ease_second in _ease(right).items():
                low, high = sorted((first, second))
                results = [low + high, low * high, high - low]
                results += [high // low] if low and high % low == 0 else []
                for value in results:
                    ease[value] += ease_first * ease_second / (1 + value)
    return ease


@cache
def _splits(numbers: Puzzle) -> list[tuple[Puzzle, Puzzle]]:
    """All ways to part ``numbers`` in two, each once."""
    places = range(len(numbers))
    parted: set[tuple[Puzzle, Puzzle]] = set()
    for size in range(1, len(numbers) // 2 + 1):
        for some in combinations(places, size):
            left = tuple(numbers[place] for place in some)
            right = tuple(numbers[place] for place in places if place not in some)
            parted.add((min(left, right), max(left, right)))
    return sorted(parted)
