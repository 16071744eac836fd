"""What a number measured on some problems says about all of them. Pure functions over numbers.

Intervals are percentile bootstraps (Efron and Tibshirani, An Introduction to the Bootstrap,
1993, chapter 13): problems are drawn anew, with repetition, and the mean taken each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


class Estimate(NamedTuple):
    """A mean, and the interval that holds the mean over all problems at `LEVEL`."""

    mean: float
    low: float
    high: float


def bootstrap(values: Sequence[float], *, seed: int) -> Estimate:
    """The mean of at least one value; the same seed gives the same interval."""
    sample = np.asarray(values, dtype=float)
    drawn = np.random.default_rng(seed).integers(0, len(sample), (RESAMPLES, len(sample)))
    low, high = np.quantile(sample[drawn].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(sample.mean()), float(low), float(high))


def paired(
    ours: Sequence[float | None], theirs: Sequence[float | None], *, seed: int
) -> Estimate | None:
    """Ours − theirs on the same problems, where both have a value; ``None`` where none has both."""
    both = [a - b for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    return bootstrap(both, seed=seed) if both else None


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points ``(cost, gain)`` that no other beats, by rising cost.

    A point beats another if it costs no more and gains no less, and is not equal to it.
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        best = points[front[-1]] if front else None
        if best is None or points[index][1] > best[1] or points[index] == best:
            front.append(index)
    return front
