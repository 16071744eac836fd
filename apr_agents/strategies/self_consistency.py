"""Self-consistency: several samples, and the answer that most of them come to.

Wang et al., Self-consistency improves chain of thought reasoning in language models (2022),
section 2, with the unweighted vote. Sampling stops once no other answer can overtake, as in
Aggarwal et al., Let's sample step by step: adaptive-consistency (2023), here without a chance of
another outcome.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar

from apr_agents.boxes import boxed
from apr_agents.strategies.base import (
    Ask,
    Attempt,
    Plan,
    Strategy,
    check_counts,
    useful,
)
from apr_agents.types import ThreadResult

_STATED = re.compile(r"\banswer[\s*]*(?:is\b|:)[\s:*]*(\S.*)", re.IGNORECASE)
_NUMBER = re.compile(r"(?:(?<![\w)])-)?\d[\d,]*(?:\.\d+)?")


def ballot(text: str) -> str:
    """What a text comes to, in a form in which equal answers are equal.

    That is its last ``\\boxed{}``, else what follows its last "answer is", else its last line;
    and of that the last number, if it has one.
    """
    said = _last(boxed(text)) or _last(_STATED.findall(text)) or _last(text.strip().splitlines())
    numbers = _NUMBER.findall(said)
    if numbers:
        number = f"{Decimal(numbers[-1].replace(',', '')):f}"
        return number.rstrip("0").rstrip(".") if "." in number else number
    return " ".join(said.split()).strip(" .*`\"'").casefold()


def _last(found: Iterable[str]) -> str:
    return ["", *found][-1]


@dataclass(frozen=True, kw_only=True)
class SelfConsistency(Strategy):
    """Ask ``n`` times, and take the answer that most samples come to.

    The answer is the text of the first sample that voted for the winner; of equal votes, the
    first answer wins. Samples that can change nothing any more are stopped; while a limit cuts
    the samples into several blocks, that is so within the first and between blocks. It takes
    ``n`` model calls at most. Samples of a model without a temperature are all the same.

    Args:
        n: samples.
        extract: what of a sample is counted; a sample on which it raises or gives
            nothing has no vote.

    Raises:
        InvalidOption: ``n`` is no count.
    """

    name: ClassVar[str] = "self_consistency"

    n: int = 8
    extract: Callable[[str], str | None] = ballot

    def __post_init__(self) -> None:
        check_counts(self, "n")

    def plan(self, question: str, attempt: Attempt) -> Plan:
        found = yield Ask([question] * self.n)
        texts = [thread.conclusion for thread in found if thread]
        said: dict[str, str] = {}
        votes: Counter[str] = Counter()
        for text in texts:
            if vote := str(attempt(self.extract, text) or ""):
                votes[vote] += 1
                said.setdefault(vote, text)
        if votes:
            return said[max(votes, key=votes.__getitem__)]
        return texts[0] if texts else None

    def settled(self, finished: Sequence[ThreadResult], threads: int) -> bool:
        votes: Counter[str] = Counter()
        for thread in filter(useful, finished):
            with suppress(Exception):  # the plan tells of it
                if vote := str(self.extract(thread.conclusion) or ""):
                    votes[vote] += 1
        leading, second = [*(count for _, count in votes.most_common(2)), 0, 0][:2]
        open_votes = max(self.n, threads) - len(finished)
        return open_votes == 0 or leading > second + open_votes
