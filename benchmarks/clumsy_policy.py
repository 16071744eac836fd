"""What P-GRPO makes of a clumsy policy, one that splits nearly everything in two.

    python benchmarks/clumsy_policy.py runs/clumsy --steps 100
    python benchmarks/clumsy_policy.py runs/sigma --steps 100 --divide-by-sigma

The bundled model learns the clumsy way, is reinforced, and is measured before and after: on new
problems of the whole family, at several budgets. Goes on where it was stopped.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import typer

from apr_agents.protocols.threadweaver import ThreadWeaver
from apr_agents.tasks import arithmetic
from apr_agents.tasks.base import Demonstration
from apr_agents.training.scripts import from_demonstration

BUDGETS = (0, 2, 4, 8)
SHARE_IN_TWO = 0.85
"""Share of the problems that are split in two; the others as the teacher does it. Without any of
those the policy would try nothing else, and nothing could be reinforced."""


def clumsy(question: str, budget: int) -> Demonstration:
    """A split in two wherever there are two groups, whether it pays or not."""
    if budget < 2 or len(arithmetic.parse_question(question)) < 2:
        return replace(arithmetic.demonstrate(question, 0), budget=budget)
    with patch.object(arithmetic, "SPLIT_PRICE", float("-inf")):
        return replace(arithmetic.demonstrate(question, 2), budget=budget)


def write_data(path: Path, count: int, seed: int) -> None:
    """Scripts of problems of the whole family."""
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for problem in arithmetic.ArithmeticTask().problems(count, seed):
            way = clumsy if rng.random() < SHARE_IN_TWO else arithmetic.demonstrate
            shown = way(problem.question, rng.choice(BUDGETS))
            script = from_demonstration(shown, ThreadWeaver(), merge="conclusions")
            print(script.model_dump_json(), file=file)


def command(*arguments: object, processes: int = 1) -> None:
    """Run ``apr-agents train`` with these arguments, in several processes if asked."""
    program = [str(Path(sys.executable).with_name("apr-agents"))]
    if processes > 1:
        launch = ("torchrun", "--standalone", "--nproc-per-node", str(processes), "--no-python")
        program = [str(Path(sys.executable).with_name(launch[0])), *launch[1:], *program]
    subprocess.run([*program, "train", *map(str, arguments)], check=True)


def measured(model: str, count: int, seed: int) -> str:
    """A Markdown table: accuracy, share that split, mean critical path at each budget."""
    lines = [
        "| threads allowed | accuracy | split | threads, mean | critical path |",
        "|---" * 5 + "|",
    ]
    for threads in BUDGETS:
        program = [str(Path(sys.executable).with_name("apr-agents")), "eval", "--json"]
        program += ["--task", "arithmetic", "--model", model, "--threads", str(threads)]
        program += ["-n", str(count), "--seed", str(seed)]
        report = json.loads(subprocess.run(program, capture_output=True, check=True).stdout)
        lines.append(
            f"| {threads} | {report['accuracy']:.1%} | {report['activation_rate']:.1%} "
            f"| {report['mean_threads']:.2f} | {report['mean_critical_path']:.1f} |"
        )
    return "\n".join(lines)


def main(
    directory: Annotated[Path, typer.Argument(help="Of everything that is made.")],
    scripts: Annotated[int, typer.Option(help="That the clumsy policy learns.")] = 1500,
    steps: Annotated[int, typer.Option(help="Of P-GRPO.")] = 80,
    rate: Annotated[float, typer.Option(help="Learning rate of P-GRPO.")] = 4e-4,
    divide_by_sigma: Annotated[bool, typer.Option("--divide-by-sigma")] = False,
    count: Annotated[int, typer.Option("-n", help="Problems of each measurement.")] = 200,
    seed: Annotated[int, typer.Option(help="Of what is measured.")] = 11,
) -> None:
    """Make a clumsy policy, reinforce it, and print how it does before and after."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    directory.mkdir(parents=True, exist_ok=True)
    data, learned, reinforced = (directory / name for name in ("data.jsonl", "sft", "grpo"))
    if not (learned / "model").exists():
        write_data(data, scripts, seed=1)
        command(
            "sft", "--model", "bundled", "--data", data, "--out", learned, "--rate", 5e-4,
            "--batch-tokens", 8192, "--held-out", 32, processes=os.cpu_count() or 1,
        )  # fmt: skip
    command(
        "grpo", "--model", f"local:{learned / 'model'}", "--task", "arithmetic",
        "--out", reinforced, "--steps", steps, "--rate", rate, "--clip", 0.5,
        "--problems", 8, "--group", 16, *(each for n in BUDGETS[1:] for each in ("--budget", n)),
        *(["--divide-by-sigma"] if divide_by_sigma else []), processes=os.cpu_count() or 1,
    )  # fmt: skip
    for name, folder in (("before", learned), ("after", reinforced)):
        table = measured(f"local:{folder / 'model'}", count, seed)
        print(f"\n{name}\n\n{table}", flush=True)


if __name__ == "__main__":
    typer.run(main)
