"""``apr-agents bench``: what a fan-out costs, system by system, and a fork, engine by engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from apr_agents.bench import smollm2
from apr_agents.bench.apart import MeasurementFailed
from apr_agents.bench.cases import BASELINE, NESTED, Case, Checkpointer, System, cases
from apr_agents.bench.engine import INSTALLED, EngineCase, EngineName, EngineRow, Transport
from apr_agents.bench.engine import cases as engine_cases
from apr_agents.bench.engine import measure_apart as measure_engine
from apr_agents.bench.overhead import Row, measure_apart
from apr_agents.cli.agent import quiet
from apr_agents.cli.files import check_writable, write
from apr_agents.errors import InvalidOption, MissingExtra, UnusableFile

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

FLAT = [1, 8, 64, 512, 2000]
SYSTEMS = list(System)
CHECKPOINTERS = list(Checkpointer)

FORKS = [1, 4, 8, 16, 32]

T = TypeVar("T")
AnyCase = TypeVar("AnyCase", Case, EngineCase)
AnyRow = TypeVar("AnyRow", Row, EngineRow)

bench = typer.Typer(invoke_without_command=True, rich_markup_mode=None)


@bench.callback()
def main(context: typer.Context) -> None:
    """Measure this package beside its peers."""
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


@bench.command()
def overhead(
    n: Annotated[
        list[int],
        typer.Option("--n", min=1, metavar="N", help="Children of a flat fan-out; repeatable."),
    ] = FLAT,
    nested: Annotated[
        bool,
        typer.Option(help="Also 8 children with 8 children with 8 each: 584, of which 512 leaves."),
    ] = True,
    system: Annotated[
        list[System],
        typer.Option(
            "--system",
            metavar="NAME",
            help=f"What to measure: {', '.join(System)}; repeatable.",
            show_default="all",
        ),
    ] = SYSTEMS,
    checkpointer: Annotated[
        list[Checkpointer],
        typer.Option(
            "--checkpointer",
            metavar="NAME",
            help=f"What they save to: {', '.join(Checkpointer)}; repeatable. "
            "The baseline, gather, saves nothing.",
            show_default="all",
        ),
    ] = CHECKPOINTERS,
    latency: Annotated[
        float,
        typer.Option("--latency", min=0, metavar="SECONDS", help="How long a model call takes."),
    ] = 0.0,
    repeat: Annotated[
        int,
        typer.Option(
            "--repeat", min=1, metavar="K", help="Runs of each; the one with the least CPU counts."
        ),
    ] = 3,
    save_to: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Save the rows as a JSON list."),
    ] = None,
) -> None:
    """Compare what a fan-out costs beside its model calls.

    Every system makes the same calls of the same scripted model: one that splits, one per
    child, one that answers. Each measurement is a process of its own. Run it on an idle machine.
    """
    from rich.console import Console

    if save_to is not None:
        check_writable(save_to)
    shapes = [(each,) for each in _distinct(n)] + ([NESTED] if nested else [])
    planned = cases(
        systems=_distinct(system),
        shapes=shapes,
        checkpointers=_distinct(checkpointer),
        latency=latency,
        repeat=repeat,
    )
    rows: list[Row] = []
    with _kept(rows, save_to, overhead_table):
        for row in _measured(planned, measure_apart, Console(stderr=True)):
            rows.append(row)
    if not rows:
        raise NothingMeasured


@bench.command()
def engine(
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            metavar="DIR",
            help="Directory of the model.",
            show_default="SmolLM2-135M, fetched once",
        ),
    ] = None,
    n: Annotated[
        list[int], typer.Option("--n", min=1, metavar="N", help="Children of the fork; repeatable.")
    ] = FORKS,
    engines: Annotated[
        str,
        typer.Option(
            metavar="A,B",
            help=f"What to measure, of {', '.join(EngineName)}.",
            show_default="all that are installed",
        ),
    ] = ",".join(INSTALLED),
    dtype: Annotated[
        Literal["bfloat16", "float32"], typer.Option(help="Precision of the weights.")
    ] = "bfloat16",
    threads: Annotated[
        int, typer.Option(min=1, help="Threads that an engine may use on a CPU.")
    ] = 1,
    save_to: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Save the rows as a JSON list.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw the seconds as a picture.")
    ] = None,
) -> None:
    """Compare what a fork and a join take on this package's engine and on others.

    A parent of 800 tokens, N children that add 30 tokens and generate 64, a join that generates 64.
    Each measurement is a process of its own. Run it on an idle machine.
    """
    from rich.console import Console

    for file in (save_to, plot):
        if file is not None:
            check_writable(file)
    try:
        chosen = [EngineName(name) for name in _distinct(engines.split(","))]
    except ValueError as error:
        raise InvalidOption("--engines", engines, f"some of {', '.join(EngineName)}") from error
    draw = _drawing() if plot is not None else None
    console = Console(stderr=True)
    directory = model or smollm2.directory()
    if model is None:
        with console.status("Fetching SmolLM2-135M …"), quiet():
            smollm2.fetch(directory)
    elif not (model / "config.json").exists():
        raise UnusableFile(str(model), "it is no directory of a model")
    planned = engine_cases(
        chosen, _distinct(n), dtype=dtype, directory=str(directory), threads=threads
    )
    rows: list[EngineRow] = []
    with _kept(rows, save_to, engine_table):
        for row in _measured(planned, measure_engine, console):
            rows.append(row)
    if not rows:
        raise NothingMeasured
    if draw is not None and plot is not None:
        draw(rows, plot)


class NothingMeasured(typer.TyperException):
    """There is not one row."""

    def __init__(self) -> None:
        super().__init__("Nothing could be measured.")


def _distinct(items: Sequence[T]) -> list[T]:
    return list(dict.fromkeys(items))


def _drawing() -> Callable[[Sequence[EngineRow], Path], None]:
    """What draws; asked for before anything is measured."""
    try:
        from apr_agents.bench.plot import draw
    except ImportError as error:
        raise MissingExtra("bench", "matplotlib") from error
    return draw


def _measured(
    planned: Sequence[AnyCase], measure: Callable[[AnyCase], AnyRow], console: Console
) -> Iterator[AnyRow]:
    """A row for each case that can be measured, a line on stderr for what cannot."""
    from rich.text import Text

    from apr_agents.trace.terminal import shortened

    def warn(text: str) -> None:
        console.print(Text(f"Warning: {shortened(text, 600)}"), soft_wrap=True)

    missing: set[str] = set()
    with console.status("") as status:
        for number, case in enumerate(planned, 1):
            if missing & set(case.peers.values()):
                continue
            status.update(f"{case} ({number} of {len(planned)})")
            try:
                yield measure(case)
            except MissingExtra as error:
                missing.add(error.package)
                names = [name for name, peer in case.peers.items() if peer == error.package]
                warn(f"{names[0] if names else case} is left out. {error}")
            except MeasurementFailed as error:
                warn(str(error))


@contextmanager
def _kept(
    rows: list[AnyRow], save_to: Path | None, table: Callable[[Sequence[AnyRow]], RenderableType]
) -> Iterator[None]:
    """Show and save what was measured, even if the user breaks off."""
    from rich.console import Console

    try:
        yield
    finally:
        if rows:
            Console().print(table(rows))
        if save_to is not None:
            write(save_to, json.dumps([asdict(row) for row in rows], indent=2) + "\n")


def overhead_table(rows: Sequence[Row]) -> RenderableType:
    """A table for each workload, with the ratio to the baseline's CPU time."""
    from rich import box
    from rich.console import Group
    from rich.table import Table

    tables: dict[tuple[str, int], Table] = {}
    baseline = {
        (row.workload, row.n): row.cpu_ms_per_child for row in rows if row.system == BASELINE
    }
    for row in rows:
        workload = row.workload, row.n
        if workload not in tables:
            title = f"{row.workload}, n={row.n}, model calls of {row.latency * 1000:g} ms"
            table = Table(title=title, box=box.SIMPLE_HEAD)
            for heading in ("system", "saves to"):
                table.add_column(heading, no_wrap=True)
            for heading in (
                "CPU ms\n/ child",
                f"÷\n{BASELINE}",
                "wall\ns",
                "peak\nMB",
                "saved\nkB",
                "block\nms",
            ):
                table.add_column(heading, justify="right", no_wrap=True)
            tables[workload] = table
        base = baseline.get(workload)
        tables[workload].add_row(
            row.system,
            row.checkpointer,
            f"{row.cpu_ms_per_child:.3f}",
            f"{row.cpu_ms_per_child / base:.1f}" if base else "–",
            f"{row.wall_seconds:.3f}",
            f"{row.peak_rss_mb:.0f}",
            f"{row.checkpoint_bytes / 1000:.0f}",
            f"{row.longest_block_ms:.1f}",
        )
    return Group(*tables.values())


def engine_table(rows: Sequence[EngineRow]) -> RenderableType:
    """Seconds, with the ratio to this package's engine."""
    from rich import box
    from rich.table import Table

    own = {
        row.n: row.total_seconds
        for row in rows
        if row.engine == EngineName.apr and row.transport == Transport.in_process
    }
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("engine", "transport"):
        table.add_column(heading)
    for heading in ("n", "seconds", "÷ apr", "prefilled ÷ unique"):
        table.add_column(heading, justify="right")
    for row in rows:
        prefilled = row.prefilled_tokens
        table.add_row(
            f"{row.engine} ({row.dtype})",
            row.transport.replace("_", " "),
            str(row.n),
            f"{row.total_seconds:.2f}",
            f"{row.total_seconds / own[row.n]:.2f}" if row.n in own else "–",
            f"{prefilled / row.unique_tokens:.2f}" if prefilled is not None else "–",
        )
    return table
