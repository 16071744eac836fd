"""The curves of training runs, as a picture: what `log.jsonl` says, step by step.

    python benchmarks/curves.py runs/clumsy/grpo --of correct --of critical_path --of threads \\
        --out docs/clumsy.svg

A panel for each quantity, a line for each run; thin lines are steps, thick ones running means.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from matplotlib.figure import Figure

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")


def read(run: Path, name: str) -> tuple[list[int], list[float]]:
    """The steps at which a quantity was measured, and its values."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]
    known = [(row["step"], row[name]) for row in rows if name in row]
    return [step for step, _ in known], [value for _, value in known]


def running_means(values: Sequence[float], width: int) -> list[float]:
    """Of each value and those up to ``width - 1`` before it."""
    windows = (values[max(0, end - width) : end] for end in range(1, len(values) + 1))
    return [sum(window) / len(window) for window in windows]


def main(
    runs: Annotated[list[Path], typer.Argument(help="Directories of training runs.")],
    of: Annotated[list[str], typer.Option(help="A quantity of the log; repeatable.")],
    out: Annotated[Path, typer.Option(help="The picture; its name says the format.")],
    name: Annotated[list[str] | None, typer.Option(help="Of each run, in turn.")] = None,
    width: Annotated[int, typer.Option(min=1, help="Steps of a running mean.")] = 10,
    log: Annotated[bool, typer.Option("--log", help="Logarithmic scales.")] = False,
) -> None:
    """Draw them."""
    figure = Figure(figsize=(4 * len(of), 3), layout="constrained")
    for axes, quantity in zip(figure.subplots(1, len(of), squeeze=False)[0], of, strict=True):
        for run, label, colour in zip(runs, name or map(str, runs), COLOURS, strict=False):
            steps, values = read(run, quantity)
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(steps, running_means(values, width), color=colour, label=label)
        axes.set_title(quantity.replace("_", " "), fontsize=10)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if log:
            axes.set_yscale("log")
        if len(runs) > 1:
            axes.legend(fontsize=8)
    figure.savefig(out)


if __name__ == "__main__":
    typer.run(main)
