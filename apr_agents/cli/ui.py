"""``apr-agents ui``: a page with a question box, and the threads of its answer live."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from apr_agents.cli.agent import (
    DEFAULT_DEPTH,
    NO_TOOLS,
    AgentOptions,
    DepthOption,
    JoinOption,
    MergeOption,
    ModelOption,
    ProtocolOption,
    Strategy,
    StrategyOption,
    TemperatureOption,
    ThreadsOption,
    ToolsOption,
    load,
    quiet,
)
from apr_agents.errors import MissingExtra
from apr_agents.limits import MOST_THREADS

if TYPE_CHECKING:
    from langgraph.graph.state import CompiledStateGraph

    from apr_agents.trace.trajectory import Trajectory

EXAMPLE = (
    "((((((12*7)+5)-2)+61)-17)*3)+((((45-38)*6)+9)*4)"
    "+((((((81-17)+23)*2)-60)+8)*2)+((((((9*9)-14)+55)-31)*2)-9)"
)

PortOption = Annotated[
    int, typer.Option("--port", min=0, max=65535, metavar="N", help="0 takes a free one.")
]


def ui(
    model: ModelOption = "bundled",
    threads: ThreadsOption = None,
    strategy: StrategyOption = "adaptive",
    protocol: ProtocolOption = None,
    temperature: TemperatureOption = None,
    merge: MergeOption = "conclusions",
    join: JoinOption = "all",
    tools: ToolsOption = NO_TOOLS,
    max_depth: DepthOption = DEFAULT_DEPTH,
    port: PortOption = 8080,
) -> None:
    """Serve a page with a question box that shows the threads while they run.

    For browsers on this machine only. Ctrl-C ends it.
    """
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
    serve_page(options, port)


def serve_page(
    options: AgentOptions,
    port: int,
    question: str | None = None,
    answered: Callable[[Trajectory], None] = lambda trajectory: None,
) -> None:
    """Serve the page until it is told to stop.

    Args:
        options: what the question box begins with.
        question: asked at once.
        answered: called with the record of that question's run.
    """
    try:
        from apr_agents.server.serving import bind
        from apr_agents.ui.app import Server, create_app
        from apr_agents.ui.desk import Desk, Question
    except ImportError as error:
        raise MissingExtra("serve", error.name or "fastapi") from error
    from rich.console import Console

    def agent(asked: Question) -> CompiledStateGraph[Any, Any, Any, Any]:
        chosen = replace(options, threads=asked.threads, strategy=asked.strategy)
        return load(chosen, Console(quiet=True)).graph

    with bind("127.0.0.1", port) as listening, quiet():
        backend = load(options, Console(stderr=True)).backend
        bundled = options.model == "bundled"
        live = {
            "model": backend.name,
            "question": question or (EXAMPLE if bundled else ""),
            "threads": "" if options.threads is None else str(options.threads),
            "most": str(MOST_THREADS),
            "strategy": options.strategy,
            "strategies": get_args(Strategy),
        }
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"

        async def serve() -> None:
            desk = Desk(agent)
            app = create_app(desk, live)

            def on_start() -> None:
                print(f"The page is at {address}", file=sys.stderr, flush=True)

            server = Server(app, desk, on_start=on_start)
            serving = asyncio.create_task(server.serve(sockets=[listening]))
            if question is not None:
                asked = Question(
                    question=question, threads=options.threads, strategy=options.strategy
                )
                run = desk.ask(asked)
                await asyncio.wait([run])
                if not run.cancelled() and run.exception() is None:
                    answered(run.result())
            await serving
            await desk.stop()
            await backend.aclose()

        asyncio.run(serve())
