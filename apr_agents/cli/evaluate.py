"""``apr-agents eval``: many problems at once, in every configuration that is asked for."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from apr_agents.cli.agent import (
    DEFAULT_DEPTH,
    NO_BUDGETS,
    NO_TOOLS,
    AgentOptions,
    Budget,
    BudgetsOption,
    DepthOption,
    JoinOption,
    JsonOption,
    LoadedAgent,
    MergeOption,
    ModelsOption,
    ProtocolsOption,
    StrategiesOption,
    TemperatureOption,
    ToolsOption,
    load,
    print_json,
    quiet,
)
from apr_agents.cli.files import write
from apr_agents.errors import MissingExtra, UnusableFile
from apr_agents.evaluation import AT_ONCE
from apr_agents.limits import Limits

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from apr_agents.backends.gate import Gate
    from apr_agents.evaluation.evaluate import Report
    from apr_agents.evaluation.run import Case, Configuration, ProblemResult
    from apr_agents.evaluation.store import RunStore
    from apr_agents.tasks.base import Problem, Task

Kind = Literal["whole", "pair", "chain", "tiny", "wide"]

RUNS, TABLE, TIMINGS = "runs.jsonl", "table.md", "timings.md"
DEFAULT_COUNT = 100
NO_NAMES: list[str] = []
NO_FILES: list[Path] = []
BUNDLED, ADAPTIVE = ["bundled"], ["adaptive"]
WRONG_ONES_SHOWN = 8


def evaluate(
    task: Annotated[
        list[str],
        typer.Option(
            "--task", metavar="NAME", help="Problems made here; repeatable.", show_default=False
        ),
    ] = NO_NAMES,
    file: Annotated[
        list[Path],
        typer.Option(
            "--file",
            metavar="FILE",
            help='Problems of your own: one {"question": …, "answer": …} per line; repeatable.',
            show_default=False,
        ),
    ] = NO_FILES,
    count: Annotated[
        int | None,
        typer.Option(
            "-n",
            min=1,
            metavar="N",
            help=f"How many problems: {DEFAULT_COUNT} of a task, all of a file if not given.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, metavar="S", help="Which problems are drawn.")
    ] = 0,
    kind: Annotated[
        Kind | None,
        typer.Option(
            "--kind",
            help="Arithmetic problems of one kind: everything (whole, the default), a+b (pair), "
            "one chain, groups of one step (tiny), long groups (wide).",
        ),
    ] = None,
    model: ModelsOption = BUNDLED,
    strategy: StrategiesOption = ADAPTIVE,
    protocol: ProtocolsOption = NO_NAMES,
    threads: BudgetsOption = NO_BUDGETS,
    temperature: TemperatureOption = None,
    merge: MergeOption = "conclusions",
    join: JoinOption = "all",
    tools: ToolsOption = NO_TOOLS,
    max_depth: DepthOption = DEFAULT_DEPTH,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIRECTORY",
            help="Keep every run there as it ends, go on with what is there, and write tables and "
            "plots.",
        ),
    ] = None,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Make runs again that broke off with an error.")
    ] = False,
    at_once: Annotated[
        int,
        typer.Option("--at-once", min=1, metavar="N", help="Problems that are solved at once."),
    ] = AT_ONCE,
    as_json: JsonOption = False,
) -> None:
    """Solve many problems, in every combination of the options, and compare how well it went.

    With --json: a report, or a list of them if there is more than one combination.
    """
    if bool(task) == bool(file):
        raise typer.BadParameter("pass exactly one of them.", param_hint=["--task", "--file"])
    if kind is not None and set(task) != {"arithmetic"}:
        raise typer.BadParameter("it goes with --task arithmetic only.", param_hint=["--kind"])
    cases = [
        case
        for chosen, problems in _tasks(task, file, kind, count, seed)
        for case in _cases(
            chosen,
            problems,
            seed=seed,
            models=model,
            strategies=strategy,
            protocols=protocol or [None],
            budgets=threads or [None],
            temperature=temperature,
            merge=merge,
            join=join,
            max_depth=max_depth,
            tools=tuple(map(str, tools)),
        )
    ]
    several = len(cases) > 1
    if out is not None or (several and not as_json):
        _import_tables_and_plots()
    from rich.console import Console
    from rich.text import Text

    from apr_agents.evaluation.evaluate import Report
    from apr_agents.evaluation.store import RunStore
    from apr_agents.trace.terminal import printable

    console = Console(stderr=True)
    store = RunStore(_made(out) / RUNS if out is not None else None)
    with quiet():
        _solve(cases, store, console, retry_errors=retry_errors, at_once=at_once)
    reports = [Report.of(case, store) for case in cases]
    if as_json:
        data = [report.model_dump(mode="json") for report in reports]
        print_json(data if several else data[0])
    elif several:
        from apr_agents.evaluation.tables import table

        print(printable(table(reports).rstrip(), lines=True), flush=True)
    else:
        Console().print(_shown(reports[0]))
    if out is not None:
        _write(reports, out)
        told = f"{TABLE}, {TIMINGS} and plots are in {out}."
        if others := len(store.results) - sum(len(set(case.keys)) for case in cases):
            told += f" {RUNS} there has {others} other runs too."
        console.print(Text(told), soft_wrap=True, style="dim")
    failed = [each for report in reports for each in report.problems if each.error is not None]
    if len(failed) == sum(report.n for report in reports):
        raise AllFailed(failed[0].error or "")


class AllFailed(typer.TyperException):
    """Not one run came to its end."""

    def __init__(self, first: str) -> None:
        super().__init__(f"Every run failed; the first with {first}")


# --- what is to be solved ---------------------------------------------------------------------


def _tasks(
    names: Sequence[str], files: Sequence[Path], kind: str | None, count: int | None, seed: int
) -> Iterator[tuple[Task, list[Problem]]]:
    """Tasks by name or file, and the problems drawn from each."""
    from apr_agents.tasks.file import FileTask
    from apr_agents.tasks.registry import resolve

    called = Counter(path.name for path in set(files))
    for name, times in called.items():
        if times > 1:
            raise typer.BadParameter(f"two are called {name!r}.", param_hint=["--file"])
    named = (resolve(name if kind is None else f"{name}:{kind}") for name in names)
    for made in {made.name: made for made in named}.values():
        yield made, made.problems(count or DEFAULT_COUNT, seed)
    for path in dict.fromkeys(files):
        read = FileTask(path)
        yield read, read.problems(count, seed)


def _cases(
    task: Task,
    problems: Sequence[Problem],
    *,
    models: Sequence[str],
    strategies: Sequence[str],
    protocols: Sequence[str | None],
    budgets: Sequence[Budget],
    **same: Any,
) -> list[Case]:
    """A case for each combination."""
    from apr_agents.evaluation.run import Case, Configuration

    configurations = [
        Configuration(
            task=task.name,
            model=model,
            strategy=strategy,
            protocol=protocol,
            threads=0 if strategy == "sequential" else threads,  # which splits at no budget
            **same,
        )
        for model, strategy, protocol, threads in product(models, strategies, protocols, budgets)
    ]
    return [Case(each, task, problems) for each in dict.fromkeys(configurations)]


# --- solving ------------------------------------------------------------------------------------


def _solve(
    cases: Sequence[Case],
    store: RunStore,
    console: Console,
    *,
    retry_errors: bool,
    at_once: int,
) -> None:
    """Make the runs that are missing. A model is loaded only if it has something to do."""
    from apr_agents.backends.gate import Gate
    from apr_agents.evaluation.evaluate import evaluate as solve_all

    waiting = [case for case in cases if store.missing(case, retry_errors=retry_errors)]
    gates = {case.configuration.model: Gate(Limits().max_concurrency) for case in waiting}
    agents = [
        (case, _load(case.configuration, gates[case.configuration.model], console))
        for case in waiting
    ]

    async def run(on_result: Callable[[ProblemResult], None]) -> None:
        try:
            await solve_all(
                [(case, agent.graph) for case, agent in agents],
                store,
                retry_errors=retry_errors,
                at_once=at_once,
                on_result=on_result,
            )
        finally:
            for _, agent in agents:
                await agent.backend.aclose()

    with _progress(cases, store, console, retry_errors=retry_errors) as on_result:
        asyncio.run(run(on_result))


def _load(made_of: Configuration, gate: Gate, console: Console) -> LoadedAgent:
    options = AgentOptions(
        model=made_of.model,
        threads=made_of.threads,
        strategy=made_of.strategy,
        protocol=made_of.protocol,
        temperature=made_of.temperature,
        merge=made_of.merge,
        join=made_of.join,
        tools=[Path(file) for file in made_of.tools],
        max_depth=made_of.max_depth,
    )
    return load(options, console, gate=gate)


@contextmanager
def _progress(
    cases: Sequence[Case], store: RunStore, console: Console, *, retry_errors: bool
) -> Iterator[Callable[[ProblemResult], None]]:
    """A bar that moves with each result; results from before are counted at once."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.description},"),
        TimeElapsedColumn(),
        TextColumn("gone,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    total = sum(len(case.problems) for case in cases)
    left = sum(len(store.missing(case, retry_errors=retry_errors)) for case in cases)
    right = 0
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("0 right", total=total, completed=total - left)

        def count(result: ProblemResult) -> None:
            nonlocal right
            right += result.correct
            progress.update(bar, advance=1, description=f"{right} right")

        yield count


# --- what came of it ----------------------------------------------------------------------------


def _made(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnusableFile(str(out), error.strerror or "it cannot be made") from error
    return out


def _import_tables_and_plots() -> None:
    """Find out before the runs, not after them."""
    try:
        from apr_agents.evaluation import plots, tables  # noqa: F401
    except ImportError as error:
        raise MissingExtra("eval", error.name or "matplotlib") from error


def _write(reports: Sequence[Report], out: Path) -> None:
    from apr_agents.evaluation import plots, tables

    write(out / TABLE, tables.table(reports))
    write(out / TIMINGS, tables.timings(reports))
    plots.draw(reports, out)


def _shown(report: Report) -> RenderableType:
    """A report at a glance, and the first of the wrong answers."""
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
    slowest = max(each.seconds for each in report.problems)
    summary.add_row("seconds", f"{report.mean_seconds:.2f}", f"{slowest:.2f}")
    made_of = report.configuration
    title = shortened(f"{made_of.task}, {made_of.strategy}, {made_of.model}", 60)
    heading = Text(f"{title}: {report.n} problem{'s' if report.n > 1 else ''}")
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
