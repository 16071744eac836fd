"""What `solve` and `eval` share: the options of an agent, and how it is loaded and let go."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer
from typer.models import OptionInfo

from apr_agents.cli.toolfile import load_tools
from apr_agents.errors import InvalidOption
from apr_agents.limits import MOST_THREADS, Limits

if TYPE_CHECKING:
    from langgraph.graph.state import CompiledStateGraph
    from rich.console import Console

    from apr_agents.backends.base import Backend
    from apr_agents.backends.chat import ChatBackend
    from apr_agents.backends.gate import Gate

Strategy = Literal[
    "adaptive",
    "sequential",
    "self_consistency",
    "best_of_n",
    "skeleton_of_thought",
    "tree_of_thoughts",
    "mcts",
    "beam",
]
Merge = Literal["full", "conclusions", "summary", "count", "union", "sum"]


def parse_threads(text: str) -> int | Literal["auto"]:
    """Threads for a whole run."""
    if text == "auto":
        return "auto"
    if text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    raise typer.BadParameter(f"{text!r} is neither 'auto' nor a whole number from 0 up.")


def repeatable(option: OptionInfo) -> OptionInfo:
    """The same option, for a parameter that is a list."""
    several = copy(option)
    several.help = f"{(option.help or '').removesuffix('.')}; repeatable."
    return several


_MODEL = typer.Option(
    "--model",
    metavar="MODEL",
    help="'bundled', 'local:DIRECTORY_OR_HUB_ID', 'completions:URL#MODEL', or a chat model "
    "such as 'openai:gpt-5'.",
)
_THREADS = typer.Option(
    "--threads",
    parser=parse_threads,
    metavar="N|auto",
    show_default=f"{MOST_THREADS} at once",
    help="Threads that a run may use in all; 0 forbids splitting. 'auto': as many at once as "
    "the model has free lanes for, so fewer while it is busy.",
)
_STRATEGY = typer.Option(
    "--strategy",
    metavar="NAME",
    help="Let the model decide when to split (adaptive), never split (sequential), or think "
    f"in a fixed shape ({', '.join(get_args(Strategy)[2:])}).",
)
_PROTOCOL = typer.Option(
    "--protocol",
    metavar="NAME",
    help="How the model says spawn and join; 'apr-agents protocols' lists the names.",
    show_default="threadweaver, or tool_calls for a chat model",
)

Budget = int | Literal["auto"] | None
"""What `--threads` leads to; ``None`` where it is not given."""
NO_BUDGETS: list[Budget] = []
ModelOption = Annotated[str, _MODEL]
ModelsOption = Annotated[list[str], repeatable(_MODEL)]
ThreadsOption = Annotated[Any, _THREADS]  # typer knows no unions: it is a `Budget`
BudgetsOption = Annotated[list[Any], repeatable(_THREADS)]
StrategyOption = Annotated[Strategy, _STRATEGY]
StrategiesOption = Annotated[list[str], repeatable(_STRATEGY)]
ProtocolOption = Annotated[str | None, _PROTOCOL]
ProtocolsOption = Annotated[list[str], repeatable(_PROTOCOL)]
TemperatureOption = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        metavar="T",
        help="Of a model that continues text: votes and searches need more than 0.",
        show_default="the model's own",
    ),
]
MergeOption = Annotated[
    Merge, typer.Option("--merge", help="What the model sees of its finished threads.")
]
JoinOption = Annotated[
    str,
    typer.Option(
        "--join",
        metavar="POLICY",
        help="How many threads a block waits for, where the model does not say: "
        "all, first_success, vote, or such as 2_of_n.",
    ),
]
ToolsOption = Annotated[
    list[Path],
    typer.Option(
        "--tools",
        metavar="FILE",
        help="A Python file whose list 'tools' a chat model and its threads may use; repeatable.",
        show_default=False,
    ),
]
DepthOption = Annotated[
    int,
    typer.Option(
        "--max-depth", min=0, max=32, metavar="N", help="Levels of threads within threads."
    ),
]
DEFAULT_DEPTH = Limits().max_depth
NO_TOOLS: list[Path] = []
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


@dataclass(frozen=True, kw_only=True)
class AgentOptions:
    """How the agent of a command is to be."""

    model: str
    threads: Budget
    strategy: str
    protocol: str | None = None
    temperature: float | None = None
    merge: str
    join: str
    tools: Sequence[Path]
    max_depth: int


@dataclass(frozen=True)
class LoadedAgent:
    """An agent ready to run, and the model it runs on."""

    graph: CompiledStateGraph[Any, Any, Any, Any]
    backend: Backend | ChatBackend


def load(options: AgentOptions, console: Console, *, gate: Gate | None = None) -> LoadedAgent:
    """Load the model and build the agent; ``console`` says what takes so long.

    Args:
        gate: bounds the model's calls over several agents.
    """
    limits = Limits(max_depth=options.max_depth)
    if options.threads == "auto":
        limits = replace(limits, max_threads="auto")
    elif options.threads is not None:
        limits = replace(limits, max_threads=options.threads, max_total_threads=options.threads)
    with console.status("Loading the model …"):
        from apr_agents.backends import resolve
        from apr_agents.backends.base import Backend
        from apr_agents.graph.build import create_parallel_agent

        tools = load_tools(options.tools)
        backend = resolve(options.model)
        if options.tools and isinstance(backend, Backend):
            takes = f"left out: {options.model!r} continues text, only chat models call tools"
            raise InvalidOption("--tools", str(options.tools[0]), takes)
        graph = create_parallel_agent(
            options.model,
            tools,
            protocol=options.protocol,
            limits=limits,
            gate=gate,
            strategy=options.strategy,
            temperature=options.temperature,
            merge=options.merge,
            join=options.join,
        )
    return LoadedAgent(graph, backend)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' own warnings and progress bars off the terminal."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def print_json(data: Any) -> None:
    """``data`` on stdout, in ASCII, so that no terminal or pipe can trip over it."""
    print(json.dumps(data, indent=2), flush=True)
