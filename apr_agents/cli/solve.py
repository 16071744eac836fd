"""``apr-agents solve``: one question, its threads live, the answer."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    ProtocolOption,
    StrategyOption,
    TemperatureOption,
    ThreadsOption,
    ToolsOption,
    load,
    print_json,
    quiet,
)
from apr_agents.cli.files import check_writable
from apr_agents.cli.ui import serve_page
from apr_agents.errors import AprError, BackendFailed, EmptyQuestion, UnusableFile
from apr_agents.tokens import well_formed

if TYPE_CHECKING:
    from rich.console import Console

    from apr_agents.trace.trajectory import Trajectory


def solve(
    question: Annotated[
        str,
        typer.Argument(
            metavar="QUESTION", help="The question. Put -- before one that starts with a dash."
        ),
    ],
    model: ModelOption = "bundled",
    threads: ThreadsOption = None,
    strategy: StrategyOption = "adaptive",
    protocol: ProtocolOption = None,
    temperature: TemperatureOption = None,
    merge: MergeOption = "conclusions",
    join: JoinOption = "all",
    tools: ToolsOption = NO_TOOLS,
    max_depth: DepthOption = DEFAULT_DEPTH,
    as_json: JsonOption = False,
    trace: Annotated[
        Path | None, typer.Option("--trace", metavar="FILE", help="Save the whole run as JSON.")
    ] = None,
    in_browser: Annotated[
        bool, typer.Option("--ui", help="Show the threads on a page, as 'apr-agents ui' does.")
    ] = False,
) -> None:
    """Solve one question and show the threads while they run.

    The answer goes to stdout, everything else to stderr.
    """
    from rich.console import Console

    from apr_agents.trace.terminal import printable

    question = well_formed(question)
    if not question.strip():
        raise EmptyQuestion
    if trace is not None:
        check_writable(trace)
    options = AgentOptions(
        model=model,
        threads=threads,
        strategy=strategy,
        protocol=protocol,
        temperature=temperature,
        merge=merge,
        join=join,
        tools=tools,
        max_depth=max_depth,
    )
    console = Console(stderr=True, quiet=as_json)

    def tell(trajectory: Trajectory) -> None:
        if as_json:
            print_json(_as_data(trajectory))
        elif trajectory.answer is not None:
            print(printable(trajectory.answer, lines=True), flush=True)
        console.print(_measures(trajectory), style="dim", highlight=False)
        if trace is not None:
            _save(trajectory, trace)

    if in_browser:
        return serve_page(options, port=0, question=question, answered=tell)
    with quiet():
        agent = load(options, console)
        trajectory = asyncio.run(_run(agent, question, console))
    tell(trajectory)
    if trajectory.answer is None:
        reason = trajectory.root.reason or "it ended without one"
        raise NoAnswer(f"{trajectory.root.status.replace('_', ' ')}, {reason}")


class NoAnswer(typer.TyperException):
    """The run ended without an answer."""

    def __init__(self, why: str) -> None:
        super().__init__(f"The model gave no answer: {why}.")


async def _run(agent: LoadedAgent, question: str, console: Console) -> Trajectory:
    from apr_agents.backends.chat import ChatBackend
    from apr_agents.graph.watch import watch
    from apr_agents.trace.terminal import LiveThreads

    try:
        with LiveThreads(console) as threads:
            trajectory = await watch(agent.graph, question, threads.feed)
            threads.finish(trajectory)
    except Exception as error:
        if isinstance(error, AprError) or not isinstance(agent.backend, ChatBackend):
            raise
        # Whatever the package of its provider raises.
        raise BackendFailed(f"{type(error).__name__}: {error}") from error
    finally:
        await agent.backend.aclose()
    return trajectory


def _measures(trajectory: Trajectory) -> str:
    metrics = trajectory.metrics()
    return (
        f"threads {metrics.threads} · total tokens {metrics.total_tokens} · "
        f"critical path {metrics.critical_path} · peak context {metrics.peak_context}\n"
        f"parallel efficiency {metrics.parallel_efficiency:.0%} · {metrics.seconds:.1f} s"
    )


def _as_data(trajectory: Trajectory) -> dict[str, Any]:
    return {
        "answer": trajectory.answer,
        "status": trajectory.root.status,
        "metrics": trajectory.metrics().model_dump(mode="json"),
        "trajectory": trajectory.to_dict(),
    }


def _save(trajectory: Trajectory, path: Path) -> None:
    try:
        trajectory.save(path)
    except OSError as error:
        raise UnusableFile(str(path), error.strerror or "it cannot be written") from error
