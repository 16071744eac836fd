"""Skeleton of thought: an outline first, then all of its points at once.

Ning et al., Skeleton-of-thought: prompting LLMs for efficient parallel generation (2023),
section 2, with the prompted router of section 4 (SoT-R).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from apr_agents.strategies.base import Ask, Asking, Attempt, Plan, Strategy, check_counts

_POINT = re.compile(r"^[-*•># \t]*(\d+)[.):]\**[ \t]+(\S.*)", re.MULTILINE)
_VERDICT = re.compile(r"\b(list|chain)\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class SkeletonOfThought(Strategy):
    """Ask for the points of an answer, then for each point in a thread of its own.

    The answer is all points in order, each with what its thread wrote. A question whose answer
    is a chain of steps that build on each other is asked as it is; so is one that gives no
    skeleton of at least two points. It takes one call for the router, one for the skeleton and
    one for each point; a declined question takes two.

    Args:
        router: ask the model first whether the points can be written independently.
        points: the most that a skeleton may have; further ones are dropped.

    Raises:
        InvalidOption: ``points`` is no count.
    """

    name: ClassVar[str] = "skeleton_of_thought"

    router: bool = True
    points: int = 10

    def __post_init__(self) -> None:
        check_counts(self, "points")

    def plan(self, question: str, attempt: Attempt) -> Plan:
        points: list[str] = []
        if not self.router or (yield from _is_list(question)):
            skeleton = yield from _text(skeleton_prompt(question))
            points = points_of(skeleton or "")[: self.points]
        if len(points) < 2:
            return (yield from _text(question))
        listed = "\n".join(f"{number}. {point}" for number, point in enumerate(points, 1))
        found = yield Ask(
            [point_prompt(question, listed, number) for number in range(1, len(points) + 1)], listed
        )
        return "\n\n".join(
            f"{number}. {point}" + (f"\n{thread.conclusion.strip()}" if thread else "")
            for number, (point, thread) in enumerate(zip(points, found, strict=True), 1)
        )


def router_prompt(question: str) -> str:
    """Asks whether an answer has parts that can be written independently."""
    return (
        f"{question}\n\nDo not answer this yet. Say what a good answer looks like: LIST, if it is "
        "several points that can be written independently of each other; CHAIN, if its steps "
        "build on each other, as in a calculation, a proof, code or a story, or if it is short. "
        "End with one word, LIST or CHAIN."
    )


def skeleton_prompt(question: str) -> str:
    """Asks for the points of an answer."""
    return (
        f"{question}\n\nGive only the skeleton of your answer: three to ten points, numbered 1., "
        "2., 3., one on a line, each of three to five words. Nothing else."
    )


def point_prompt(question: str, skeleton: str, number: int) -> str:
    """Asks for one point of a skeleton."""
    return (
        f"{question}\n\nThe skeleton of the answer:\n{skeleton}\n\nWrite point {number}, and only "
        "that, in one to three sentences. Others write the other points."
    )


def _is_list(question: str) -> Asking[bool]:
    verdicts = _VERDICT.findall((yield from _text(router_prompt(question))) or "")
    return bool(verdicts) and verdicts[-1].upper() == "LIST"


def _text(prompt: str) -> Asking[str | None]:
    """What one thread answers."""
    (thread,) = yield Ask([prompt])
    return thread.conclusion if thread else None


def points_of(skeleton: str) -> list[str]:
    """The numbered points, the first of each number, in order."""
    points: dict[str, str] = {}
    for number, point in _POINT.findall(skeleton):
        points.setdefault(number, point.strip(" *"))
    return [point for point in points.values() if point]
