"""Several needles in one haystack.

As the multi-query needles of RULER (Hsieh et al. 2024, section 3.1): of the facts hidden in a long
text, some are asked for, in a given order.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import product
from typing import Annotated, ClassVar

from pydantic import Field

from apr_agents.errors import InvalidOption
from apr_agents.tasks.answers import REQUEST, items
from apr_agents.tasks.base import Drawn, Problem
from apr_agents.tasks.prose import hide

COLOURS = ("amber", "black", "blue", "green", "grey", "red", "silver", "white", "yellow", "violet")
THINGS = (
    "anchor", "badge", "box", "cabin", "coat", "door", "flag", "gate", "lantern", "locker",
    "room", "safe", "ship", "tower", "train", "vault",
)  # fmt: skip
NAMES = [" ".join(pair) for pair in product(COLOURS, THINGS)]


@dataclass(frozen=True)
class NeedlesTask(Drawn):
    """Problems whose answer is a list of codes in the order in which they are asked for.

    Work is counted in sentences read; the parts are the sentences, and to put the answer together
    is one sentence more.

    Attributes:
        needles: how many are hidden.
        asked: how many of them are asked for.
        tokens: length of the text, about.
    """

    family: ClassVar[str] = "needles"

    needles: Annotated[int, Field(ge=1, le=len(NAMES))] = 16
    asked: Annotated[int, Field(ge=1, le=len(NAMES))] = 4
    tokens: Annotated[int, Field(ge=0, le=10_000_000)] = 4000

    def __post_init__(self) -> None:
        if self.asked > self.needles:
            raise InvalidOption(
                "asked", self.asked, f"at most the number of needles, {self.needles}"
            )

    def draw(self, rng: random.Random, index: int) -> Problem:
        names = rng.sample(NAMES, self.needles)
        codes = dict(zip(names, rng.sample(range(10_000, 100_000), self.needles), strict=True))
        needles = [f"The code of the {name} is {code}." for name, code in codes.items()]
        shown = hide(rng, needles, self.tokens)
        asked = rng.sample(names, self.asked)
        return Problem(
            f"{' '.join(shown)}\n\nWhat are the codes of the following, in this order: "
            f"{', '.join(asked)}? The answer is the codes, separated by commas. {REQUEST}",
            ", ".join(str(codes[name]) for name in asked),
            parallel_share=len(shown) / (len(shown) + 1),
            parts=len(shown),
        )

    def check(self, problem: Problem, answer: str) -> bool:
        return items(answer) == items(problem.answer)
