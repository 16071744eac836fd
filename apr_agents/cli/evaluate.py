"""``apr-agents eval``: many problems at once, a progress bar, a table of results."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from apr_agents.cli.agent import (
    DEFAULT_DEPTH,
    NO_TOOLS,
    AgentOptions,
    DepthOption,
    JoinOption,
    JsonOption,
    LoadedAgent,
    MergeOption,
    ModelOption,
    StrategyOption,
    ThreadsOption,
    ToolsOption,
    load,
    print_json,
    quiet,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from apr_agents.evaluation import ProblemResult, Report
    from apr_agents.tasks.base import Problem, Task

Kind = Literal["whole", "pair", "chain", "tiny", "wide"]

DEFAULT_COUNT = 100
WRONG_ONES_SHOWN = 8


def evaluate(
    task: Annotated[
        Literal["arithmetic"] | None, typer.Option("--task", help="Problems made here.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            metavar="FILE",
            help='Problems of your own: one {"question": …, "answer": …} per line.',
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            "-n",
            min=1,
            metavar="N",
            help=f"How many problems: {DEFAULT_COUNT} of a task, all of a file if not given.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Which problems are drawn.")] = 0,
    kind: Annotated[
        Kind | None,
        typer.Option(
            "--kind",
            help="Arithmetic problems of one kind: everything (whole, the default), a+b (pair), "
            "one chain, groups of one step (tiny), long groups (wide).",
        ),
    ] = None,
    model: ModelOption = "bundled",
    threads: ThreadsOption = None,
    strategy: StrategyOption = "adaptive",
    merge: MergeOption = "conclusions",
    join: JoinOption = "all",
    tools: ToolsOption = NO_TOOLS,
    max_depth: DepthOption = DEFAULT_DEPTH,
    as_json: JsonOption = False,
) -> None:
    """Solve many problems at once and say how well it went."""
    if (task is None) == (file is None):
        raise typer.BadParameter("pass exactly one of them.", param_hint=["--task", "--file"])
    if file is not None and kind is not None:
        raise typer.BadParameter("it goes with --task, not with --file.", param_hint=["--kind"])
    options = AgentOptions(
        model=model,
        threads=threads,
        strategy=strategy,
        merge=merge,
        join=join,
        tools=tools,
        max_depth=max_depth,
    )
    from rich.console import Console

    chosen, problems = _problems(file, kind or "whole", count, seed)
    console = Console(stderr=True)
    with quiet():
        agent = load(options, console)
        report = asyncio.run(_run(agent, chosen, problems, console))
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        Console().print(_results(report, f"{chosen.name}, {strategy}, {model}"))
    if report.errors == report.n:
        raise AllFailed(report.problems[0].error or "")


class AllFailed(typer.TyperException):
    """Not one run came to its end."""

    def __init__(self, first: str) -> None:
        super().__init__(f"Every run failed; the first with {first}")


def _problems(
    file: Path | None, kind: str, count: int | None, seed: int
) -> tuple[Task, list[Problem]]:
    from apr_agents.tasks.arithmetic import ArithmeticTask
    from apr_agents.tasks.file import FileTask

    if file is not None:
        from_file = FileTask(file)
        return from_file, from_file.problems(count, seed)
    arithmetic = ArithmeticTask(kind=kind)
    return arithmetic, arithmetic.problems(count or DEFAULT_COUNT, seed)


async def _run(agent: LoadedAgent, task: Task, problems: list[Problem], console: Console) -> Report:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from apr_agents import evaluation

    right = 0
    columns = (
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.description},"),
        TimeElapsedColumn(),
        TextColumn("gone,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("0 right", total=len(problems))

        def count(result: ProblemResult) -> None:
            nonlocal right
            right += result.correct
            progress.update(bar, advance=1, description=f"{right} right")

        try:
            return await evaluation.evaluate(agent.graph, task, problems, on_result=count)
        finally:
            await agent.backend.aclose()


def _results(report: Report, title: str) -> RenderableType:
    """The report at a glance, and the first of the wrong answers."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from apr_agents.trace.terminal import shortened

    def most(measure: str) -> str:
        return str(max(getattr(each, measure) for each in report.problems))

    wrong = [each for each in report.problems if not each.correct]
    summary = Table("", box=box.SIMPLE_HEAD)
    summary.add_column("mean", justify="right")
    summary.add_column("most", justify="right")
    summary.add_row(
        "right answers", f"{report.accuracy:.1%}", f"{report.n - len(wrong)} of {report.n}"
    )
    summary.add_row("split", f"{report.activation_rate:.1%}", "")
    summary.add_row("threads", f"{report.mean_threads:.2f}", str(report.max_threads))
    summary.add_row("total tokens", f"{report.mean_total_tokens:.1f}", most("total_tokens"))
    summary.add_row("critical path", f"{report.mean_critical_path:.1f}", most("critical_path"))
    summary.add_row("peak context", f"{report.mean_peak_context:.1f}", most("peak_context"))
    heading = Text(f"{shortened(title, 60)}: {report.n} problems in {report.seconds:.1f} s")
    if not wrong:
        return Group(heading, summary)
    examples = Table("question", "right answer", "its answer", box=box.SIMPLE_HEAD)
    for each in wrong[:WRONG_ONES_SHOWN]:
        why = each.error or each.status.replace("_", " ")
        predicted = f"({why})" if each.predicted is None else each.predicted
        examples.add_row(
            Text(shortened(each.question, 34)),
            Text(shortened(each.answer, 12)),
            Text(shortened(predicted, 25)),
        )
    left_out = len(wrong) - WRONG_ONES_SHOWN
    told = f"{len(wrong)} wrong" + (f", the first {WRONG_ONES_SHOWN}:" if left_out > 0 else ":")
    return Group(heading, summary, Text(told), examples)
