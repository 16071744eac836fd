"""Scores of texts: how a model is asked for one, how its reply is read, which text is the best."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import ParamSpec, TypeVar, cast

from apr_agents.strategies.base import Ask, Asking, Attempt

Score = Callable[[str, str], float | None]
"""From a question and an answer to how good it is; ``True`` for a verified one, ``None`` for no
telling. It is called in the event loop, once for each answer."""

P = ParamSpec("P")
T = TypeVar("T")

_RATING = re.compile(r"(\d+(?:\.\d+)?)\s*(?:(?:/|out of)\s*10\b)?")

RATE = "End with one line: a number from 0 (worthless) to 10 (certainly right)."
"""Asks for what `rating` reads."""


def rating(text: str) -> float | None:
    """The last number in ``text``, such as ``8`` or ``8/10``, as a share of 10."""
    found = _RATING.findall(text)
    return min(float(found[-1]), 10.0) / 10 if found else None


def judge_prompt(question: str, answer: str) -> str:
    """Asks for the rating of an answer."""
    return f"{question}\n\nAn answer to this:\n{answer}\n\nCheck it, then rate it. {RATE}"


def judged(
    question: str, answers: Sequence[str], attempt: Attempt, otherwise: str | None
) -> Asking[list[float | None]]:
    """The model's rating of each answer, a thread for each."""
    found = yield Ask([judge_prompt(question, answer) for answer in answers], otherwise)
    return [attempt(rating, thread.conclusion) if thread else None for thread in found]


def remembered(score: Callable[P, T]) -> Callable[P, T]:
    """``score``, called once for each text, though a plan starts anew for each decision."""
    return cast("Callable[P, T]", lru_cache(maxsize=4096)(score))


def scored(
    question: str, answers: Sequence[str], attempt: Attempt, score: Score
) -> list[float | None]:
    """A function's score of each answer."""
    return [attempt(number, attempt(score, question, answer)) for answer in answers]


def number(score: float | None) -> float | None:
    """``score``, if it can be compared with others.

    Raises:
        TypeError, ValueError: it is no number at all.
    """
    return None if score is None or math.isnan(value := float(score)) else value


def is_better(score: float | None, other: float | None) -> bool:
    """Whether a score beats another; any beats none."""
    return _key(score) > _key(other)


def ranked(items: Sequence[T], scores: Sequence[float | None]) -> list[T]:
    """The best first; of equal ones the first; those without a score last."""
    order = sorted(range(len(items)), key=lambda i: _key(scores[i]), reverse=True)
    return [items[i] for i in order]


def _key(score: float | None) -> float:
    return -math.inf if score is None else score
