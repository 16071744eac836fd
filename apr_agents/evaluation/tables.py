"""Configurations side by side, as Markdown: means with intervals, and paired differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from apr_agents.evaluation.evaluate import Report
from apr_agents.evaluation.run import ProblemResult
from apr_agents.evaluation.statistics import LEVEL, RESAMPLES, Estimate, bootstrap, paired


class Measure(NamedTuple):
    """Something counted in every run.

    Attributes:
        of: its value; ``None`` for a run that it says nothing about.
        form: how it is printed, as a format specification.
    """

    name: str
    of: Callable[[ProblemResult], float | None]
    form: str

    def show(self, estimate: Estimate | None, *, sign: str = "") -> str:
        """The mean and its interval."""
        if estimate is None:
            return "–"
        mean, low, high = (format(value, sign + self.form) for value in estimate)
        return f"{mean} [{low}, {high}]"


def _count(name: str, of: Callable[[ProblemResult], float | None], form: str = ".0f") -> Measure:
    """A measure that runs which broke off do not have."""
    return Measure(name, lambda result: of(result) if result.error is None else None, form)


def _stayed_whole(result: ProblemResult) -> float | None:
    return float(not result.spawned) if result.parallel_share == 0 else None


ACCURACY = Measure("accuracy", lambda result: float(result.correct), ".1%")
COSTS = (
    _count("critical path", lambda result: result.critical_path),
    _count("total tokens", lambda result: result.total_tokens),
    _count("peak context", lambda result: result.peak_context),
)
SECONDS = _count("wall clock, s", lambda result: result.seconds, ".2f")
SHAPE = (
    _count("split", lambda result: float(result.spawned), ".1%"),
    _count("parallel ratio", lambda result: result.parallel_ratio, ".2f"),
    _count("outline balance", lambda result: result.outline_balance, ".2f"),
    _count("redundancy", lambda result: result.redundancy, ".2f"),
    _count("sequential on controls", _stayed_whole, ".1%"),
)


def values(report: Report, measure: Measure) -> list[float | None]:
    """What ``measure`` has for each problem."""
    return [measure.of(problem) for problem in report.problems]


def estimate(report: Report, measure: Measure) -> Estimate | None:
    """Its mean over the problems that have a value; ``None`` if none has."""
    known = [value for value in values(report, measure) if value is not None]
    return bootstrap(known, seed=report.configuration.seed) if known else None


def difference(report: Report, baseline: Report, measure: Measure) -> Estimate | None:
    """How much more it is than in ``baseline``, problem by problem."""
    ours, theirs = values(report, measure), values(baseline, measure)
    return paired(ours, theirs, seed=report.configuration.seed)


def table(reports: Sequence[Report]) -> str:
    """What the runs found and what they cost in tokens.

    Equal runs have equal tables, whenever and on whichever machine they were made.
    """
    percent, seed = f"{LEVEL:.0%}", reports[0].configuration.seed
    parts = [
        "# Evaluation",
        f"Means, with {percent} intervals in brackets: percentile bootstrap over the problems, "
        f"{RESAMPLES} resamples, seed {seed}. A run that broke off (an error) is a wrong answer "
        "and counts nowhere else.",
    ]
    for task, rows in by_task(reports):
        parts.append(f"## {task}")
        parts.append(f"{_plural(rows[0].n, 'problem')}, seed {seed}; {shared(rows)}.")
        parts.append(_means(rows, (ACCURACY, *COSTS), errors=True))
        parts.append(_means(rows, SHAPE))
        parts += _differences(rows, (ACCURACY, *COSTS))
    return "\n\n".join(parts) + "\n"


def timings(reports: Sequence[Report]) -> str:
    """Seconds per problem, which differ from run to run: hence apart from `table`."""
    parts = ["# Wall clock", "Seconds a problem, while others ran beside it."]
    for task, rows in by_task(reports):
        parts += [f"## {task}", _means(rows, (SECONDS,)), *_differences(rows, (SECONDS,))]
    return "\n\n".join(parts) + "\n"


def by_task(reports: Sequence[Report]) -> Iterator[tuple[str, list[Report]]]:
    """The reports on each task, in order."""
    for task, rows in groupby(reports, lambda report: report.configuration.task):
        yield task, list(rows)


def label(report: Report, rows: Sequence[Report]) -> str:
    """What sets a report apart from the others of ``rows``."""
    return ", ".join(
        f"{value} threads" if field == "threads" else value
        for field, value in _names(report).items()
        if field in _differing(rows)
    )


def shared(rows: Sequence[Report]) -> str:
    """What is the same in all ``rows``."""
    differing = _differing(rows)
    same = {field: value for field, value in _names(rows[0]).items() if field not in differing}
    return ", ".join(f"{field.replace('_', ' ')} {value}" for field, value in same.items())


def _names(report: Report) -> dict[str, str]:
    """What the agent was made of."""
    made = report.configuration.model_dump(exclude={"task", "seed"})
    made["tools"] = " ".join(made["tools"]) or "none"
    return {field: "default" if value is None else str(value) for field, value in made.items()}


def _differing(rows: Sequence[Report]) -> list[str]:
    """Fields of the configuration that are not the same in all ``rows``; the strategy always."""
    names = [_names(row) for row in rows]
    return [
        field
        for field in names[0]
        if field == "strategy" or len({each[field] for each in names}) > 1
    ]


def _means(rows: Sequence[Report], measures: Sequence[Measure], *, errors: bool = False) -> str:
    shown = [[measure.show(estimate(row, measure)) for measure in measures] for row in rows]
    headings = [measure.name for measure in measures]
    if errors:
        headings.append("errors")
        for row, cells in zip(rows, shown, strict=True):
            cells.append(str(row.errors))
    return _grid(rows, rows, headings, shown)


def _differences(rows: Sequence[Report], measures: Sequence[Measure]) -> Iterator[str]:
    """For each model, its configurations against the sequential one, or else the first."""
    for model in dict.fromkeys(row.configuration.model for row in rows):
        of_model = [row for row in rows if row.configuration.model == model]
        sequential = (row for row in of_model if row.configuration.strategy == "sequential")
        baseline = next(sequential, of_model[0])
        others = [row for row in of_model if row is not baseline]
        if not others:
            continue
        yield f"Difference from {label(baseline, rows)}, on the same problems:"
        shown = [
            [measure.show(difference(row, baseline, measure), sign="+") for measure in measures]
            for row in others
        ]
        yield _grid(others, rows, [measure.name for measure in measures], shown)


def _grid(
    rows: Sequence[Report],
    among: Sequence[Report],
    headings: Sequence[str],
    shown: Sequence[Sequence[str]],
) -> str:
    """A table with a line for each of ``rows``, named by what sets it apart ``among`` others."""
    fields = _differing(among)
    lines = [[field.replace("_", " ") for field in fields] + list(headings)]
    for row, cells in zip(rows, shown, strict=True):
        lines.append([_names(row)[field].replace("|", r"\|") for field in fields] + list(cells))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
