"""What the bundled model can do: the README's table, from `apr-agents eval`.

    python benchmarks/bundled_model.py                  200 problems a row
    python benchmarks/bundled_model.py -n 50 --json figures.json

Each row compares the adaptive run with the same model's sequential run on the same problems.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

BUDGETS = {"whole": (0, 2, 4, 8), "wide": (0, 2, 4, 8), "chain": (8,), "pair": (8,), "tiny": (8,)}
"""The threads allowed for each kind of problem; 0 is the sequential baseline."""


def evaluated(kind: str, threads: int, count: int, seed: int) -> dict[str, Any]:
    """The report of one evaluation."""
    command = [str(Path(sys.executable).with_name("apr-agents")), "eval", "--json"]
    command += ["--task", "arithmetic", "--kind", kind, "--threads", str(threads)]
    command += ["-n", str(count), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def rows(kind: str, count: int, seed: int) -> list[dict[str, Any]]:
    """The lines of the table for one kind: each run, and its means over the sequential ones."""
    reports = {threads: evaluated(kind, threads, count, seed) for threads in BUDGETS[kind]}
    baseline = reports.get(0)

    def ratio(report: dict[str, Any], mean: str) -> float | None:
        return report[mean] / baseline[mean] if baseline else None

    return [
        {
            "kind": kind,
            "threads": threads,
            "n": count,
            "accuracy": report["accuracy"],
            "activation": report["activation_rate"],
            "mean_threads": report["mean_threads"],
            "max_threads": report["max_threads"],
            "critical_path": report["mean_critical_path"],
            "critical_path_ratio": ratio(report, "mean_critical_path"),
            "peak_context_ratio": ratio(report, "mean_peak_context"),
            "total_tokens_ratio": ratio(report, "mean_total_tokens"),
        }
        for threads, report in reports.items()
    ]


def as_markdown(measured: list[dict[str, Any]]) -> str:
    """The table of the README and the model card."""
    lines = [
        "| problems | threads allowed | accuracy | split | threads, mean (most) "
        "| critical path ÷ sequential | peak context ÷ sequential |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in measured:
        ratios = [each["critical_path_ratio"], each["peak_context_ratio"]]
        critical_path, peak_context = ("–" if x is None else f"{x:.2f}" for x in ratios)
        lines.append(
            f"| {each['kind']} | {each['threads']} | {each['accuracy']:.1%} "
            f"| {each['activation']:.1%} | {each['mean_threads']:.1f} ({each['max_threads']}) "
            f"| {critical_path} | {peak_context} |"
        )
    return "\n".join(lines)


def main(
    count: Annotated[int, typer.Option("-n", min=1, help="Problems in each row.")] = 200,
    seed: Annotated[int, typer.Option(help="Which problems are drawn.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
) -> None:
    """Measure the bundled model and print the table."""
    measured = []
    for kind in BUDGETS:
        measured += rows(kind, count, seed)
        print(json.dumps(measured[-1]), file=sys.stderr, flush=True)
    if json_file is not None:
        json_file.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    print(as_markdown(measured))


if __name__ == "__main__":
    typer.run(main)
