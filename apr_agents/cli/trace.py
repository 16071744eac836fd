"""``apr-agents trace``: a saved run, shown, compared, exported."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from apr_agents.cli.agent import JsonOption, print_json
from apr_agents.errors import UnusableFile

if TYPE_CHECKING:
    from apr_agents.trace.metrics import Prices

trace = typer.Typer(invoke_without_command=True, rich_markup_mode=None)


def _prices(text: str) -> Prices:
    """Prices of prompt, completion and, where it is another, cached tokens."""
    from apr_agents.trace.metrics import Prices

    try:
        prices = [float(part) for part in text.split(",")]
        if all(0 <= price < math.inf for price in prices):
            return Prices(*prices)
    except (ValueError, TypeError):
        pass
    raise typer.BadParameter(f"{text!r} is not of the form 1.25,10 or 1.25,10,0.125.")


FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="A run that `solve --trace` has saved.")
]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Where to; stdout if not given."),
]
UnitOption = Annotated[
    Literal["seconds", "tokens"] | None,
    typer.Option(
        "--unit",
        help="The time axis: as it was, or as if every token took the same time.",
        show_default="seconds",
    ),
]
PricesOption = Annotated[
    Any,
    typer.Option(
        "--prices",
        parser=_prices,
        metavar="PROMPT,COMPLETION[,CACHED]",
        help="What a million tokens cost.",
    ),
]


@trace.callback()
def main(context: typer.Context) -> None:
    """Show, compare and export saved runs."""
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


@trace.command()
def show(
    file: FileArgument,
    prices: PricesOption = None,
    with_why: Annotated[
        bool, typer.Option("--why", help="Also list every decision to split or not.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show a run's threads and what they cost."""
    from rich.console import Console

    from apr_agents.trace.tables import measures, why
    from apr_agents.trace.terminal import ThreadTree
    from apr_agents.trace.trajectory import Trajectory

    run = Trajectory.load(file)
    if as_json:
        made = [decision._asdict() for decision in run.decisions()]
        return print_json({"metrics": run.metrics(prices=prices).model_dump(), "decisions": made})
    console = Console()
    console.print(ThreadTree.of(run), measures([(file.name, run)], prices))
    if with_why:
        console.print(why(run))


@trace.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A saved run.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    prices: PricesOption = None,
) -> None:
    """Show two runs side by side."""
    from rich.console import Console

    from apr_agents.trace.tables import compare
    from apr_agents.trace.trajectory import Trajectory

    left, right = ((str(file), Trajectory.load(file)) for file in (first, second))
    Console().print(compare(left, right, prices))


@trace.command()
def perfetto(file: FileArgument, output: OutputOption = None, unit: UnitOption = None) -> None:
    """Write Chrome trace events, which ui.perfetto.dev shows."""
    from apr_agents.trace.perfetto import perfetto
    from apr_agents.trace.trajectory import Trajectory

    run = Trajectory.load(file)
    _write(perfetto(run, unit or run.unit), output)


@trace.command()
def mermaid(file: FileArgument, output: OutputOption = None) -> None:
    """Write the tree of threads as a Mermaid flowchart."""
    from apr_agents.trace.mermaid import mermaid
    from apr_agents.trace.trajectory import Trajectory

    _write(mermaid(Trajectory.load(file)), output)


@trace.command()
def plot(
    file: FileArgument,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", help="A file that ends in .svg, .png or .pdf."
        ),
    ],
    unit: UnitOption = None,
) -> None:
    """Draw the waterfall."""
    from apr_agents.trace.trajectory import Trajectory
    from apr_agents.trace.waterfall import draw

    run = Trajectory.load(file)
    draw(run, output, unit or run.unit)


@trace.command()
def html(
    file: FileArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The page: one file.")
    ],
) -> None:
    """Write the run as a page for the browser that needs no network."""
    from apr_agents.trace.html import report
    from apr_agents.trace.trajectory import Trajectory

    _write(report(Trajectory.load(file)), output)


@trace.command()
def otel(
    file: FileArgument,
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint",
            metavar="URL",
            help="Where the collector takes OTLP over HTTP.",
            show_default="OTEL_EXPORTER_OTLP_ENDPOINT, or http://localhost:4318/v1/traces",
        ),
    ] = None,
    texts: Annotated[
        bool, typer.Option("--texts", help="Also send what models and tools wrote.")
    ] = False,
) -> None:
    """Send OpenTelemetry spans to a collector."""
    from apr_agents.trace.otel import send
    from apr_agents.trace.trajectory import Trajectory

    sent = send(Trajectory.load(file), endpoint, texts=texts)
    print(f"{sent} spans sent", file=sys.stderr)


@trace.command()
def schema() -> None:
    """Print the JSON schema of a saved run."""
    from apr_agents.trace.trajectory import Trajectory

    print_json(Trajectory.model_json_schema())


def _write(text: str, output: Path | None) -> None:
    if output is None:
        print(text, flush=True)
        return
    try:
        output.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UnusableFile(str(output), error.strerror or "it cannot be written") from error
