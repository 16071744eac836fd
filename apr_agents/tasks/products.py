"""Products of several numbers, and of two long ones.

As in the multiplication set of ThreadWeaver's released code: 5 to 8 factors up to 1000 (those
below 2 left out). ``factors=2,digits=8`` asks for a multiplication of two long numbers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, combinations
from typing import Annotated, ClassVar

from pydantic import Field

from apr_agents.tasks.answers import REQUEST, number
from apr_agents.tasks.base import Demonstration, Drawn, Problem
from apr_agents.tasks.teaching import added_up, block, cheapest, contiguous_runs

FACTORS, LARGEST_FACTOR = range(5, 9), 1000
"""How many factors there are and how large they are, if no option says so."""


@dataclass(frozen=True)
class ProductsTask(Drawn):
    """Problems whose answer is one exact integer.

    Work is counted in products of two digits: whatever the order, every digit of a factor meets
    every digit of every other. The parts are the two halves of the factors; what they come to has
    yet to be multiplied. With two factors, the parts are the rows of long multiplication, one
    for each digit of the second factor; to add up what the threads made of them is one row more.

    Attributes:
        factors: how many factors; from 5 to 8 if not given.
        digits: of each factor; if not given, the factors are drawn from 2 to 1000.
    """

    family: ClassVar[str] = "products"

    factors: Annotated[int, Field(ge=2, le=64)] | None = None
    digits: Annotated[int, Field(ge=1, le=64)] | None = None

    def draw(self, rng: random.Random, index: int) -> Problem:
        count = self.factors or rng.choice(FACTORS)
        low, high = 2, LARGEST_FACTOR
        if self.digits is not None:
            low, high = max(2, 10 ** (self.digits - 1)), 10**self.digits - 1
        factors = [rng.randint(low, high) for _ in range(count)]
        share, parts = _parallel(factors)
        return Problem(
            f"What is {' * '.join(map(str, factors))}? {REQUEST}",
            str(math.prod(factors)),
            parallel_share=share,
            parts=parts,
            facts={"factors": factors},
        )

    def check(self, problem: Problem, answer: str) -> bool:
        return number(answer) == int(problem.answer)

    def demonstrate(self, problem: Problem, budget: int) -> Demonstration:
        """The ideal behaviour: long multiplication, of runs of the factors at once if that pays."""
        factors: list[int] = problem.facts["factors"]
        shown = partial(Demonstration, problem.question, budget, answer=problem.answer)
        alone = shown(thinking=multiplied(factors))

        def rows_apart(threads: int) -> Demonstration:
            first, second = factors
            runs = contiguous_runs(_places(second), threads)
            results = [first * sum(run) for run in runs]
            return shown(
                thinking=added_up(results),
                block=block(
                    outlines=[f"{first}*{_joined('+', run)}" for run in runs],
                    threads=[_multiplied_out(first, run) for run in runs],
                    conclusions=list(map(str, results)),
                ),
            )

        def factors_apart(threads: int) -> Demonstration:
            runs = contiguous_runs(factors, threads)
            results = list(map(math.prod, runs))
            return shown(
                thinking=multiplied(results),
                block=block(
                    outlines=[_joined("*", run) for run in runs],
                    threads=list(map(multiplied, runs)),
                    conclusions=list(map(str, results)),
                ),
            )

        if len(factors) == 2:
            return cheapest(alone, rows_apart, min(budget, len(_places(factors[1]))))
        # A run of one factor leaves its thread nothing to do.
        return cheapest(alone, factors_apart, min(budget, len(factors) // 2))


def _parallel(factors: Sequence[int]) -> tuple[float, int]:
    """The share of the work that can be done at once, and in how many parts."""
    digits = [len(str(factor)) for factor in factors]
    if len(digits) == 2:
        rows = digits[1]
        return (rows / (rows + 1), rows) if rows > 1 else (0.0, 1)
    halves = contiguous_runs(digits, 2)
    if len(halves[1]) == 1:  # no work in it
        return 0.0, 1
    return sum(map(_met, halves)) / _met(digits), 2


def _met(digits: Sequence[int]) -> int:
    return sum(first * second for first, second in combinations(digits, 2))


def multiplied(factors: Sequence[int]) -> str:
    """Long multiplication, factor after factor, one row for each digit; the result ends it."""
    lines = [str(factors[0])] if len(factors) == 1 else []
    products = accumulate(factors, int.__mul__)
    for product, factor in zip(products, factors[1:], strict=False):
        lines += [f"{product}*{factor}", _multiplied_out(product, _places(factor))]
    return "\n".join(lines)


def _places(factor: int) -> list[int]:
    """What the digits stand for, zeros left out: 4, 30 and 100 in 134."""
    digits = map(int, reversed(str(factor)))
    return [digit * 10**place for place, digit in enumerate(digits) if digit]


def _multiplied_out(factor: int, places: Sequence[int]) -> str:
    rows = [factor * place for place in places]
    lines = [f"{factor}*{place}={row}" for place, row in zip(places, rows, strict=True)]
    return "\n".join([*lines, added_up(rows)] if len(rows) > 1 else lines)


def _joined(sign: str, numbers: Sequence[int]) -> str:
    return sign.join(map(str, numbers))
