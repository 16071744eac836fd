"""Configurations side by side, as pictures: accuracy against each cost, and how runs split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apr_agents.errors import UnusableFile
from apr_agents.evaluation.evaluate import Report
from apr_agents.evaluation.statistics import pareto
from apr_agents.evaluation.tables import (
    ACCURACY,
    COSTS,
    SECONDS,
    SHAPE,
    Measure,
    by_task,
    estimate,
    label,
)

MARKERS = "osD^vP*X<>"


def draw(reports: Sequence[Report], directory: Path) -> list[Path]:
    """Two pictures of each task: ``TASK-pareto.svg`` and ``TASK-shape.svg``.

    Raises:
        UnusableFile: one cannot be written.
    """
    written = []
    for task, rows in by_task(reports):
        name = re.sub(r"[^\w.=,-]+", "-", task)
        # The salt makes equal pictures equal files.
        with rc_context({"font.size": 8.0, "svg.fonttype": "none", "svg.hashsalt": "apr-agents"}):
            for kind, figure in (("pareto", _tradeoffs(task, rows)), ("shape", _shape(task, rows))):
                path = directory / f"{name}-{kind}.svg"
                try:
                    figure.savefig(path, metadata={"Date": None})
                except OSError as error:
                    why = error.strerror or "it cannot be written"
                    raise UnusableFile(str(path), why) from error
                written.append(path)
    return written


def _tradeoffs(task: str, rows: Sequence[Report]) -> Figure:
    """Accuracy against each cost; a line joins what no other configuration beats in both."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    figure.suptitle(f"{task}: accuracy against cost, means and intervals; the line: Pareto front")
    panels = figure.subplots(2, 2, sharey=True)
    for axes, cost in zip(panels.flat, (*COSTS, SECONDS), strict=True):
        _tradeoff(axes, rows, cost)
    for axes in panels[:, 0]:
        axes.set_ylabel("accuracy")
    figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _tradeoff(axes: Axes, rows: Sequence[Report], cost: Measure) -> None:
    points = []
    for number, row in enumerate(rows):
        spent, gained = estimate(row, cost), estimate(row, ACCURACY)
        if spent is None or gained is None:
            continue
        points.append((spent.mean, gained.mean))
        axes.errorbar(
            spent.mean,
            gained.mean,
            xerr=[[max(0.0, spent.mean - spent.low)], [max(0.0, spent.high - spent.mean)]],
            yerr=[[max(0.0, gained.mean - gained.low)], [max(0.0, gained.high - gained.mean)]],
            marker=MARKERS[number % len(MARKERS)],
            linestyle="none",
            elinewidth=0.7,
            label=label(row, rows),
        )
    front = [points[index] for index in pareto(points)]
    axes.plot(
        [cost for cost, _ in front],
        [gain for _, gain in front],
        color="0.6",
        zorder=0,
        marker="o",
        markersize=11,
        markerfacecolor="none",
    )
    axes.set_xlabel(cost.name)
    axes.set_xlim(left=0)


def _shape(task: str, rows: Sequence[Report]) -> Figure:
    """How often and how runs split: a bar for each configuration."""
    figure = Figure(figsize=(9, 1.2 + 0.35 * len(rows)), layout="constrained")
    figure.suptitle(f"{task}: how runs split")
    panels = figure.subplots(1, len(SHAPE), sharey=True)
    for axes, measure in zip(panels, SHAPE, strict=True):
        for number, row in enumerate(rows):
            share = estimate(row, measure)
            if share is not None:
                mean, low, high = share
                error = [[max(0.0, mean - low)], [max(0.0, high - mean)]]
                axes.barh(number, mean, xerr=error, color="0.7")
        axes.set_xlim(0, 1.02)
        axes.set_xlabel(measure.name)
    panels[0].set_yticks(range(len(rows)), [label(row, rows) for row in rows])
    panels[0].invert_yaxis()
    return figure
