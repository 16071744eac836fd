"""How a teacher decides: the cheapest of several ways to show a solution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import TypeVar

from apr_agents.tasks.base import Block, Demonstration
from apr_agents.types import Outline

T = TypeVar("T")

SPLIT_PRICE = 60
"""Characters that a split has to save on the critical path before a teacher splits.

Spawning and joining cost two more model calls; this is their price. A character is a token of the
bundled model.
"""

TAGS_PER_THREAD = 8
"""Characters that naming a thread adds to its outline and again to its result."""


def contiguous_runs(items: Sequence[T], count: int) -> list[Sequence[T]]:
    """``items`` in ``count`` runs of nearly equal length, the longer ones first."""
    size, longer = divmod(len(items), count)
    bounds = list(accumulate((size + (i < longer) for i in range(count)), initial=0))
    return [items[start:end] for start, end in pairwise(bounds)]


def critical_path(shown: Demonstration) -> int:
    """Characters that have to be written one after the other, the price of a split added."""
    block = shown.block
    if block is None:
        return len(shown.thinking)
    told = [*(outline.text for outline in block.outlines), *block.conclusions]
    naming = sum(map(len, told)) + TAGS_PER_THREAD * len(told)
    return naming + max(map(len, block.threads)) + len(shown.thinking) + SPLIT_PRICE


def cheapest(
    alone: Demonstration, split: Callable[[int], Demonstration], most: int
) -> Demonstration:
    """The demonstration with the shortest critical path, fewer threads first.

    Args:
        alone: the sequential one.
        split: the one with a given number of threads, from 2 to ``most``.
    """
    return min([alone, *map(split, range(2, most + 1))], key=critical_path)


def block(outlines: Sequence[str], threads: Sequence[str], conclusions: Sequence[str]) -> Block:
    """A block whose outlines are numbered from 1."""
    numbered = tuple(Outline(str(i), text) for i, text in enumerate(outlines, start=1))
    return Block(numbered, tuple(threads), tuple(conclusions))


def added_up(numbers: Sequence[int]) -> str:
    """A line for each addition; the sum ends the last."""
    totals = list(accumulate(numbers))
    pairs = zip(totals, numbers[1:], strict=False)
    lines = [f"{total}+{addend}={total + addend}" for total, addend in pairs]
    return "\n".join(lines) or str(numbers[0])
