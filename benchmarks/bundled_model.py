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

ROWS = [
    ("whole", 0), ("whole", 2), ("whole", 4), ("whole", 8),
    ("chain", 8), ("pair", 8), ("tiny", 8), ("wide", 2), ("wide", 4), ("wide", 8),
]  # fmt: skip
"""Kind of problem, threads allowed."""


def evaluated(kind: str, threads: int, count: int, seed: int) -> dict[str, Any]:
    """The report of one evaluation."""
    command = [str(Path(sys.executable).with_name("apr-agents")), "eval", "--json"]
    command += ["--task", "arithmetic"]
    command += ["--kind", kind, "--threads", str(threads), "-n", str(count), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def row(kind: str, threads: int, count: int, seed: int) -> dict[str, Any]:
    """One line of the table: the adaptive run, and its means over those of the sequential one."""
    adaptive = evaluated(kind, threads, count, seed)
    sequential = evaluated(kind, 0, count, seed)
    return {
        "kind": kind,
        "threads": threads,
        "n": count,
        "accuracy": adaptive["accuracy"],
        "activation": adaptive["activation_rate"],
        "mean_threads": adaptive["mean_threads"],
        "max_threads": adaptive["max_threads"],
        "critical_path": adaptive["mean_critical_path"],
        "critical_path_ratio": adaptive["mean_critical_path"] / sequential["mean_critical_path"],
        "peak_context_ratio": adaptive["mean_peak_context"] / sequential["mean_peak_context"],
        "total_tokens_ratio": adaptive["mean_total_tokens"] / sequential["mean_total_tokens"],
        "sequential_accuracy": sequential["accuracy"],
    }


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """The table of the README and the model card."""
    lines = [
        "| problems | threads allowed | accuracy | split | threads, mean (most) "
        "| critical path ÷ sequential | peak context ÷ sequential |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in rows:
        lines.append(
            f"| {each['kind']} | {each['threads']} | {each['accuracy']:.1%} "
            f"| {each['activation']:.1%} | {each['mean_threads']:.1f} ({each['max_threads']}) "
            f"| {each['critical_path_ratio']:.2f} | {each['peak_context_ratio']:.2f} |"
        )
    return "\n".join(lines)


def main(
    count: Annotated[int, typer.Option("-n", min=1, help="Problems in each row.")] = 200,
    seed: Annotated[int, typer.Option(help="Which problems are drawn.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
) -> None:
    """Measure the bundled model and print the table."""
    rows = []
    for kind, threads in ROWS:
        rows.append(row(kind, threads, count, seed))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(as_markdown(rows))


if __name__ == "__main__":
    typer.run(main)
