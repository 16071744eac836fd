"""Chains of assignments in a long text.

As the variable tracking of RULER (Hsieh et al. 2024, section 3.2), whose own setting is
``chains=1``: find all variables that have a value, directly or through others.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

from pydantic import Field

from apr_agents.tasks.answers import REQUEST, items
from apr_agents.tasks.base import Drawn, Problem
from apr_agents.tasks.prose import hide

LETTERS_OF_A_NAME = 5


@dataclass(frozen=True)
class VariableTrackingTask(Drawn):
    """Problems whose answer is a set of names; their order does not count.

    Work is counted in sentences read and links followed. The parts are the sentences: what they say
    can be gathered at once, but the chain can only be followed link by link after that.

    Attributes:
        chains: how many there are, each with a value of its own; one is asked for.
        hops: links of each chain after its first assignment.
        tokens: length of the text, about.
    """

    family: ClassVar[str] = "variable_tracking"

    chains: Annotated[int, Field(ge=1, le=1000)] = 4
    hops: Annotated[int, Field(ge=1, le=1000)] = 4
    tokens: Annotated[int, Field(ge=0, le=10_000_000)] = 4000

    def draw(self, rng: random.Random, index: int) -> Problem:
        names = _names(rng, self.chains * (self.hops + 1))
        values = rng.sample(range(10_000, 100_000), self.chains)
        chains = [names[start :: self.chains] for start in range(self.chains)]
        assignments = [
            [f"VAR {chain[0]} = {value}."]
            + [f"VAR {name} = VAR {before}." for before, name in pairwise(chain)]
            for chain, value in zip(chains, values, strict=True)
        ]
        shown = hide(rng, _shuffled_together(rng, assignments), self.tokens)
        return Problem(
            f"{' '.join(shown)}\n\nWhich variables have the value {values[0]}, directly or through "
            f"other variables? The answer is their names, separated by commas. {REQUEST}",
            ", ".join(chains[0]),
            parallel_share=len(shown) / (len(shown) + self.hops + 1),
            parts=len(shown),
        )

    def check(self, problem: Problem, answer: str) -> bool:
        return sorted(items(answer)) == sorted(items(problem.answer))


def _names(rng: random.Random, count: int) -> list[str]:
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(rng.choices(string.ascii_uppercase, k=LETTERS_OF_A_NAME))] = None
    return list(names)


def _shuffled_together(rng: random.Random, chains: list[list[str]]) -> list[str]:
    """The items of all chains in one list, those of each chain in their order."""
    turns = [index for index, chain in enumerate(chains) for _ in chain]
    rng.shuffle(turns)
    left = [iter(chain) for chain in chains]
    return [next(left[index]) for index in turns]
