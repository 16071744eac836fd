"""Engines side by side, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from apr_agents.bench.engine import EngineRow
from apr_agents.errors import UnusableFile


def draw(rows: Sequence[EngineRow], file: Path) -> None:
    """Seconds against children, a line for each engine and transport; the file's name says how.

    Raises:
        UnusableFile: it cannot be written.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        label = f"{row.engine}, {row.transport.replace('_', ' ')} ({row.dtype})"
        lines.setdefault(label, []).append((row.n, row.total_seconds))
    for label, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    numbers = sorted({row.n for row in rows})
    axes.set_xticks(numbers, map(str, numbers))
    axes.set_xlabel("children of the fork")
    axes.set_ylabel("seconds, join included")
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(file)
    except (OSError, ValueError) as error:
        raise UnusableFile(str(file), str(error)) from error
