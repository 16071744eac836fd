"""Runs as tables in a terminal: what they cost, why they split, two of them side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from apr_agents.trace.metrics import Metrics, Prices
from apr_agents.trace.terminal import MOST_ROWS, shortened
from apr_agents.trace.trajectory import Trajectory
from apr_agents.types import ThreadResult


class _Row(NamedTuple):
    name: str
    of: Callable[[Metrics], float | None]
    shown: str


_ROWS = (
    _Row("threads", lambda m: m.threads, "{:.0f}"),
    _Row("total tokens", lambda m: m.total_tokens, "{:.0f}"),
    _Row("critical path", lambda m: m.critical_path, "{:.0f}"),
    _Row("peak context", lambda m: m.peak_context, "{:.0f}"),
    _Row("prompt tokens", lambda m: m.prompt_tokens, "{:.0f}"),
    _Row("prefix hits", lambda m: m.prefix_hit_share, "{:.0%}"),
    _Row("work / span", lambda m: m.work_span, "{:.2f}"),
    _Row("parallel efficiency", lambda m: m.parallel_efficiency, "{:.0%}"),
    _Row("parallel ratio", lambda m: m.parallel_ratio, "{:.0%}"),
    _Row("speedup, estimated", lambda m: m.estimated_speedup, "{:.2f}"),
    _Row("outline balance", lambda m: m.outline_balance, "{:.0%}"),
    _Row("redundancy", lambda m: m.redundancy, "{:.0%}"),
    _Row("wall clock, s", lambda m: m.seconds, "{:.3f}"),
    _Row("gate wait, s", lambda m: m.gate_wait, "{:.3f}"),
    _Row("queueing, s", lambda m: m.queueing, "{:.3f}"),
    _Row("cost", lambda m: m.cost, "{:.6f}"),
)


def shown(metrics: Metrics) -> list[tuple[str, str]]:
    """The measures of a run that are known, each with its name. See `Metrics`."""
    known = ((row, row.of(metrics)) for row in _ROWS)
    return [(row.name, row.shown.format(value)) for row, value in known if value is not None]


Runs = Sequence[tuple[str, Trajectory]]
"""Runs, each with its name."""


def measures(runs: Runs, prices: Prices | None = None) -> Table:
    """The measures of one run, or of two and the second over the first. See `Metrics`."""
    table = _table(runs)
    if len(runs) == 2:
        table.add_column("÷", justify="right")
    metrics = [run.metrics(prices=prices) for _, run in runs]
    for row in _ROWS:
        values = [row.of(each) for each in metrics]
        if all(value is None for value in values):
            continue
        cells = ["–" if value is None else row.shown.format(value) for value in values]
        if len(values) == 2:
            cells.append(_ratio(*values))
        table.add_row(row.name, *cells)
    return table


def _table(runs: Runs) -> Table:
    """A table with a column for each run."""
    table = Table("", box=box.SIMPLE_HEAD)
    for name, _ in runs:
        table.add_column(Text(shortened(name, 24, keep="end")), justify="right")
    return table


def _ratio(first: float | None, second: float | None) -> str:
    return f"{second / first:.2f}" if first and second is not None else "–"


def why(trajectory: Trajectory) -> RenderableType:
    """Every decision to split or not. See `SplitDecision`."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("thread", "choice"):
        table.add_column(name)
    for name in ("budget", "lanes", "threads", "tokens", "otherwise"):
        table.add_column(name, justify="right")
    table.add_column("why", overflow="fold")
    for made in trajectory.decisions():
        table.add_row(
            made.thread,
            made.choice,
            str(made.budget),
            "–" if made.lanes is None else str(made.lanes),
            str(made.threads or "–"),
            str(made.tokens),
            str(made.otherwise),
            Text(shortened(made.why, 60)),
        )
    return table


def compare(
    first: tuple[str, Trajectory], second: tuple[str, Trajectory], prices: Prices | None = None
) -> RenderableType:
    """Two runs side by side: their answers, their measures, the threads of the same id."""
    runs = [first, second]
    parts: list[RenderableType] = []
    if first[1].question != second[1].question:
        parts.append(Text("The questions differ.", "yellow"))
    for name, run in runs:
        answer = "no answer" if run.answer is None else shortened(run.answer, 200)
        parts.append(Text(f"{shortened(name, 24, keep='end')}: {answer}"))
    threads = [run.threads() for _, run in runs]
    names = list(dict.fromkeys(name for each in threads for name in each))
    table = _table(runs)
    for name in names[:MOST_ROWS]:
        table.add_row(name, *(_thread(each.get(name)) for each in threads))
    parts += [measures(runs, prices), table]
    if len(names) > MOST_ROWS:
        parts.append(Text(f"… and {len(names) - MOST_ROWS} more threads", "dim"))
    return Group(*parts)


def _thread(thread: ThreadResult | None) -> Text:
    if thread is None:
        return Text("–")
    status = "" if thread.status == "done" else f", {thread.status.replace('_', ' ')}"
    came_to = shortened(thread.conclusion, 20)
    return Text(f"{thread.tokens} tokens{status}" + (f": {came_to}" if came_to else ""))
