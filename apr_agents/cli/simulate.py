"""``apr-agents simulate``: what a shape of thinking takes, without a model."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from apr_agents.cli.agent import parse_threads, repeatable
from apr_agents.cli.files import check_writable, write
from apr_agents.simulation.scenario import STRATEGIES, Hardware, Scenario, Workload

if TYPE_CHECKING:
    from rich.console import RenderableType

    from apr_agents.simulation.simulate import Outcome

OPTIONS = ("strategy", "users", "parts", "tokens", "share", "lanes", "threads")
"""Those that are repeatable."""

WIDEST = 160

ONE = Scenario()
"""What is simulated where nothing is said."""

WORK, HARDWARE = ONE.workload, ONE.hardware
TWO_SHAPES = ["adaptive", "sequential"]
USERS, PARTS, TOKENS, SHARES, LANES = (
    [ONE.users], [WORK.parts], [WORK.tokens], [WORK.share], [HARDWARE.lanes]
)  # fmt: skip
BUDGETS = [str(ONE.threads)]


def _count(name: str, told: str) -> Any:
    return typer.Option(name, min=1, metavar="N", help=told)


def simulate(
    strategy: Annotated[
        list[str],
        typer.Option(
            "--strategy",
            metavar="NAME",
            help=f"The shape of thinking: {', '.join(STRATEGIES)}; repeatable.",
        ),
    ] = TWO_SHAPES,
    users: Annotated[list[int], repeatable(_count("--users", "Who ask a question each."))] = USERS,
    parts: Annotated[list[int], repeatable(_count("--parts", "Parts of the work."))] = PARTS,
    tokens: Annotated[list[int], repeatable(_count("--tokens", "Tokens of each part."))] = TOKENS,
    share: Annotated[
        list[float],
        typer.Option(
            "--share",
            min=0,
            max=1,
            metavar="S",
            help="Share of each part that can be done apart from the others; 0 makes a chain, "
            "which the model does not split; repeatable.",
        ),
    ] = SHARES,
    threads: Annotated[
        list[Any],
        typer.Option(
            "--threads",
            parser=parse_threads,
            metavar="N|auto",
            help="Threads of one block, or as many as lanes are free; repeatable.",
        ),
    ] = BUDGETS,
    lanes: Annotated[
        list[int], repeatable(_count("--lanes", "Calls that the server computes at once."))
    ] = LANES,
    samples: Annotated[int, _count("--samples", "Samples of self_consistency.")] = ONE.samples,
    max_depth: Annotated[
        int,
        typer.Option(
            "--max-depth",
            min=1,
            max=32,
            metavar="N",
            help="Levels of threads within threads; more than one with --isolated only.",
        ),
    ] = ONE.max_depth,
    isolated: Annotated[
        bool,
        typer.Option("--isolated", help="A thread sees its outline, not its parent's context."),
    ] = ONE.isolated,
    merge: Annotated[
        Literal["conclusions", "full", "sum"],
        typer.Option("--merge", help="What the model sees of its finished threads."),
    ] = ONE.merge,
    prompt: Annotated[
        int, typer.Option("--prompt", min=0, metavar="N", help="Tokens of a question.")
    ] = WORK.prompt,
    error: Annotated[
        float,
        typer.Option(
            "--error",
            min=0,
            max=1,
            metavar="P",
            help="Probability that a token goes wrong in an empty context.",
        ),
    ] = WORK.error,
    rot: Annotated[
        float | None,
        typer.Option("--rot", metavar="N", help="Tokens of context that double it (context-rot)."),
    ] = WORK.rot,
    prefill: Annotated[
        float,
        typer.Option("--prefill", metavar="RATE", help="Prompt tokens a second, for each lane."),
    ] = HARDWARE.prefill,
    decode: Annotated[
        float,
        typer.Option("--decode", metavar="RATE", help="Tokens a second that one lane generates."),
    ] = HARDWARE.decode,
    slowdown: Annotated[
        float,
        typer.Option(
            "--slowdown",
            metavar="S",
            help="By how much each other lane slows a lane down: 0 not at all, 1 as if they took "
            "turns.",
        ),
    ] = HARDWARE.slowdown,
    arrivals: Annotated[
        float | None,
        typer.Option(
            "--arrivals",
            metavar="RATE",
            help="Users who come per second; all at once if not given.",
        ),
    ] = ONE.arrivals,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", help="Time that a question may take."),
    ] = ONE.timeout,
    seed: Annotated[
        int, typer.Option("--seed", metavar="S", help="Which errors are made, and who comes when.")
    ] = ONE.seed,
    save_to: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Save all of it as a JSON list.")
    ] = None,
) -> None:
    """Run the real graph on a simulated model and server, in virtual time.

    The model splits its work into as many threads as it may use. Nothing is measured: times
    and errors follow from the rates and probabilities given. Every combination is simulated.
    """
    if save_to is not None:
        check_writable(save_to)
    from rich.console import Console

    from apr_agents.simulation import simulate as simulation

    planned = [
        Scenario(
            strategy=chosen,
            threads=budget if chosen == "adaptive" else 0,
            samples=samples,
            max_depth=max_depth,
            isolated=isolated,
            merge=merge,
            users=asking,
            arrivals=arrivals,
            timeout=timeout,
            workload=Workload(
                parts=count, tokens=length, share=apart, prompt=prompt, error=error, rot=rot
            ),
            hardware=Hardware(lanes=at_once, prefill=prefill, decode=decode, slowdown=slowdown),
            seed=seed,
        )
        for chosen, asking, count, length, apart, at_once, budget in product(
            strategy, users, parts, tokens, share, lanes, threads
        )
    ]
    rows: dict[Scenario, Outcome] = {}
    with Console(stderr=True).status("") as status:
        for number, scenario in enumerate(dict.fromkeys(planned), 1):
            status.update(f"{scenario.strategy} ({number} of {len(planned)})")
            rows[scenario] = simulation.simulate(scenario)
    Console(width=WIDEST).print(_table(rows))  # no narrow terminal may cut a number
    if save_to is not None:
        data = [{"scenario": asdict(s), "outcome": asdict(o)} for s, o in rows.items()]
        write(save_to, json.dumps(data, indent=1) + "\n")


def _table(rows: dict[Scenario, Outcome]) -> RenderableType:
    """A line for each scenario, named by what sets it apart from the others."""
    from rich import box
    from rich.table import Table

    names = {scenario: _names(scenario) for scenario in rows}
    differing = [
        option
        for option, *cells in zip(OPTIONS, *names.values(), strict=True)
        if option == "strategy" or len(set(cells)) > 1
    ]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in differing:
        table.add_column(name, no_wrap=True)
    for heading in (
        "threads\nran", "total\ntokens", "critical\npath", "÷ seq.", "p50\ns", "p95\ns", "p99\ns",
        "queued\ns", "lanes\nbusy", "right",
    ):  # fmt: skip
        table.add_column(heading, justify="right", no_wrap=True)
    for scenario, outcome in rows.items():
        alone = rows.get(replace(scenario, strategy="sequential", threads=0))
        table.add_row(
            *(
                cell
                for option, cell in zip(OPTIONS, names[scenario], strict=True)
                if option in differing
            ),
            f"{outcome.threads:,.1f}",
            f"{outcome.total_tokens:,.0f}",
            f"{outcome.critical_path:,.0f}",
            f"{outcome.critical_path / alone.critical_path:.2f}" if alone else "–",
            f"{outcome.latency_p50:,.1f}",
            f"{outcome.latency_p95:,.1f}",
            f"{outcome.latency_p99:,.1f}",
            f"{outcome.queued:,.1f}",
            f"{outcome.utilisation:.0%}",
            f"{outcome.accuracy:.1%}",
        )
    return table


def _names(scenario: Scenario) -> list[str]:
    """What it has for each of `OPTIONS`."""
    work, hardware = scenario.workload, scenario.hardware
    threads = scenario.threads if scenario.strategy == "adaptive" else "–"
    values = (
        scenario.strategy, scenario.users, work.parts, work.tokens, work.share, hardware.lanes,
        threads,
    )  # fmt: skip
    return [str(value) for value in values]
