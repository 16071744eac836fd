"""Controls: problems in which every step needs the result of the one before.

Threads have nothing to do here: an agent that splits these only pays for it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field

from apr_agents.tasks.answers import REQUEST, number
from apr_agents.tasks.base import Demonstration, Drawn, Problem

MODULUS = 1000
PAGES_PER_LINK = 4


class Rule(NamedTuple):
    """What to do with a number."""

    text: str
    apply: Callable[[int], int]


def _halve_or_add(rng: random.Random) -> Rule:
    number = 2 * rng.randint(1, 49) + 1
    return Rule(
        f"if it is even, halve it, otherwise add {number}",
        lambda value: value + number if value % 2 else value // 2,
    )


def _subtract_or_double(rng: random.Random) -> Rule:
    number = rng.randint(11, 99)
    return Rule(
        f"if it is above {5 * number}, subtract {number}, otherwise double it",
        lambda value: value - number if value > 5 * number else 2 * value,
    )


def _add_and_reverse(rng: random.Random) -> Rule:
    number = rng.randint(11, 99)
    return Rule(
        f"add {number}, then write the digits backwards and drop zeros in front",
        lambda value: int(str(value + number)[::-1]),
    )


def _multiply(rng: random.Random) -> Rule:
    number = rng.choice((3, 7, 9, 11, 13))
    return Rule(
        f"multiply it by {number} and keep the remainder after division by {MODULUS}",
        lambda value: value * number % (MODULUS),
    )


RULES = (_halve_or_add, _subtract_or_double, _add_and_reverse, _multiply)


def draw_rules(rng: random.Random, count: int) -> list[Rule]:
    """Rules of which no two neighbours are of one kind, so that none can be drawn together."""
    drawn: list[Rule] = []
    last = None
    for _ in range(count):
        last = rng.choice([kind for kind in RULES if kind is not last])
        drawn.append(last(rng))
    return drawn


@dataclass(frozen=True)
class ChainedTask(Drawn):
    """Problems whose answer is one exact integer. No part of the work can be done at once.

    Work is counted in steps: rules applied, or pages turned.

    Attributes:
        kind: ``rules`` for a number, one after the other, or ``pages`` that name the next one.
        steps: how many.
    """

    family: ClassVar[str] = "chained"

    kind: Literal["rules", "pages"] = "rules"
    steps: Annotated[int, Field(ge=1, le=10_000)] = 12

    def draw(self, rng: random.Random, index: int) -> Problem:
        question, steps = (_rules if self.kind == "rules" else _pages)(rng, self.steps)
        return Problem(
            f"{question} {REQUEST}",
            str(steps[-1]),
            parallel_share=0.0,
            parts=1,
            facts={"steps": steps},
        )

    def check(self, problem: Problem, answer: str) -> bool:
        return number(answer) == int(problem.answer)

    def demonstrate(self, problem: Problem, budget: int) -> Demonstration:
        """The ideal behaviour: step by step, however many threads are allowed."""
        lines = [f"{before}>{after}" for before, after in pairwise(problem.facts["steps"])]
        return Demonstration(problem.question, budget, "\n".join(lines), problem.answer)


def _rules(rng: random.Random, steps: int) -> tuple[str, list[int]]:
    start = rng.randrange(1, MODULUS)
    rules = draw_rules(rng, steps)
    values = list(accumulate(rules, lambda value, rule: rule.apply(value), initial=start))
    listed = "\n".join(f"{place}. {rule.text}" for place, rule in enumerate(rules, start=1))
    return f"Start with {start} and do this to the number:\n{listed}\nWhat is it now?", values


def _pages(rng: random.Random, steps: int) -> tuple[str, list[int]]:
    pages = rng.sample(range(1, 10 * PAGES_PER_LINK * (steps + 1)), PAGES_PER_LINK * (steps + 1))
    following = dict(zip(pages, pages[1:] + pages[:1], strict=True))
    start = rng.choice(pages)
    visited = list(accumulate(range(steps), lambda page, _: following[page], initial=start))
    listed = " ".join(
        f"Page {page} says: turn to page {following[page]}." for page in sorted(pages)
    )
    times = "once" if steps == 1 else f"{steps} times"
    return f"{listed}\nStart on page {start} and turn {times}. Which page is it now?", visited
