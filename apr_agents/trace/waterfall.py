"""A run's waterfall as a picture for papers (extra ``plot``): SVG, PNG or PDF."""

from __future__ import annotations

import warnings
from pathlib import Path

from apr_agents.errors import InvalidOption, MissingExtra, UnusableFile
from apr_agents.trace.terminal import shortened
from apr_agents.trace.timeline import Activity, Bar, Unit, timeline
from apr_agents.trace.trajectory import Trajectory

try:
    from matplotlib import rc_context
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
except ImportError as error:
    raise MissingExtra("plot", error.name or "matplotlib") from error

KINDS = (".svg", ".png", ".pdf")

COLOURS: dict[Activity, str] = {
    "thread": "#f0f0f0",
    "waiting": "#dfe7f2",
    "gate": "#bdbdbd",
    "prompt": "#e9b949",
    "tool": "#8e6bbf",
    "writing": "#4a86d4",
}
CRITICAL = "#b3261e"

LEGEND = {
    "waiting": "waits for threads",
    "gate": "waits at the gate",
    "prompt": "up to the first token",
    "tool": "tool",
    "writing": "writes",
}

MOST_LABELLED = 80
"""Threads that have their names at the side."""

LONGEST_LABEL = 36

TALLEST = 16.0
"""Inches."""


def draw(trajectory: Trajectory, path: Path, unit: Unit) -> None:
    """Write the picture to a file; its suffix says which kind it is.

    Raises:
        InvalidOption: the suffix is none of `KINDS`.
        UnusableFile: the file cannot be written.
    """
    if path.suffix not in KINDS:
        raise InvalidOption("the output file", str(path), "one that ends in .svg, .png or .pdf")
    with (
        rc_context({"font.size": 8.0, "svg.fonttype": "none"}),
        warnings.catch_warnings(action="ignore"),  # of characters that no font has
    ):
        try:
            _figure(trajectory, unit).savefig(path, dpi=160)
        except OSError as error:
            why = error.strerror or "it cannot be written"
            raise UnusableFile(str(path), why) from error


def _figure(trajectory: Trajectory, unit: Unit) -> Figure:
    bars = timeline(trajectory.root, unit)
    lives = [bar for bar in bars if bar.step is None]
    rows = {life.thread.id: row for row, life in enumerate(lives)}
    height = min(TALLEST, 1.2 + 0.2 * len(lives))
    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots()
    for activity, colour in COLOURS.items():
        drawn = [bar for bar in bars if bar.activity == activity]
        fills = [CRITICAL if bar.critical and activity == "writing" else colour for bar in drawn]
        boxes = [_box(bar, rows[bar.thread.id]) for bar in drawn]
        axes.add_collection(PolyCollection(boxes, facecolors=fills), autolim=False)
    axes.set_xlim(0, max(bar.end for bar in bars) or 1)
    axes.set_ylim(len(lives) - 0.4, -0.6)
    axes.set_xlabel("seconds" if unit == "seconds" else "tokens, one after the other")
    if len(lives) <= MOST_LABELLED:
        axes.set_yticks(range(len(lives)), map(_label, lives), parse_math=False)
    else:
        axes.set_ylabel(f"{len(lives)} threads")
        axes.set_yticks([])
    shown = {bar.activity for bar in bars}
    keys = [Patch(color=COLOURS[k], label=told) for k, told in LEGEND.items() if k in shown]
    keys.append(Patch(color=CRITICAL, label="writes, on the critical path"))
    figure.legend(handles=keys, loc="outside upper center", ncols=len(keys), frameon=False)
    return figure


def _box(bar: Bar, row: int) -> list[tuple[float, float]]:
    half = 0.2 if bar.activity in ("thread", "waiting") else 0.36
    low, high = row - half, row + half
    return [(bar.start, low), (bar.start, high), (bar.end, high), (bar.end, low)]


def _label(life: Bar) -> str:
    outline = life.thread.outline.text if life.thread.outline else ""
    return shortened(f"{life.thread.id} {outline}", LONGEST_LABEL)
