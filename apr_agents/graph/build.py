"""`create_parallel_agent`: the state graph that turns spawn and join into fan-out and merge."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypedDict, Unpack

from langchain_core.language_models import BaseChatModel
from langchain_core.tools import BaseTool
from langchain_core.tools import tool as as_tool
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.store.base import BaseStore
from pydantic import BaseModel

from apr_agents.backends import resolve
from apr_agents.backends.base import Backend
from apr_agents.backends.chat import ChatBackend
from apr_agents.backends.gate import Gate
from apr_agents.errors import InvalidOption
from apr_agents.graph.chat import ChatMind
from apr_agents.graph.collector import MANY, spare_what_exists
from apr_agents.graph.join import AsPlanned, JoinPolicy, resolve_join
from apr_agents.graph.merge import MergePolicy, resolve_merge
from apr_agents.graph.mind import Mind
from apr_agents.graph.nodes import Edge, Node, Nodes
from apr_agents.graph.runner import Runner, Scene
from apr_agents.graph.state import (
    AgentInput,
    AgentOutput,
    AgentState,
    BlockInput,
    ThreadInput,
    ThreadOutput,
)
from apr_agents.graph.streams import AgentThreadsTransformer
from apr_agents.graph.text import TextMind
from apr_agents.graph.toolbox import Toolbox
from apr_agents.limits import Limits
from apr_agents.protocols import resolve_protocol
from apr_agents.protocols.base import TextProtocol
from apr_agents.protocols.threadweaver import ThreadWeaver
from apr_agents.protocols.tool_calls import ToolCalls
from apr_agents.strategies import resolve_strategy
from apr_agents.strategies.base import Strategy


def create_parallel_agent(
    model: str | Backend | BaseChatModel,
    tools: Sequence[BaseTool | Callable[..., Any]] = (),
    *,
    protocol: str | TextProtocol | ToolCalls | None = None,
    merge: str | MergePolicy | None = None,
    join: str | JoinPolicy = "all",
    parent_lane: bool = False,
    result: type[BaseModel] | None = None,
    limits: Limits | None = None,
    gate: Gate | None = None,
    strategy: str | Strategy = "adaptive",
    temperature: float | None = None,
    system_prompt: str | None = None,
    checkpointer: BaseCheckpointSaver[Any] | None = None,
    store: BaseStore | None = None,
    name: str = "parallel_agent",
) -> CompiledStateGraph[AgentState, None, AgentInput, AgentOutput]:
    """A LangGraph agent whose model decides when to split its thinking.

    The compiled graph maps ``{"messages": [...]}`` to ``{"messages": [...], "trajectory":
    {...}}``, so it runs by itself or as a node of any graph over messages, in sync and
    async. ``trajectory`` is plain JSON data; read it with ``Trajectory.model_validate``.

    Args:
        model: a LangChain chat model, a `Backend`, or a string: ``"bundled"``,
            ``"local:DIRECTORY_OR_HUB_ID"``, ``"completions:URL#MODEL"``, or what
            ``init_chat_model`` takes.
        tools: tools that the model and its threads may call; chat models only.
        protocol: how the model says spawn and join; by default tool calls for a chat model,
            ThreadWeaver's tags for one that continues text. A protocol, or its name:
            ``"threadweaver"``, ``"apr"``, ``"multiverse"``, ``"parallel_r1"``, ``"npr"``,
            ``"tool_calls"``.
        merge: what the parent sees of its threads: ``"full"``, ``"conclusions"`` (the
            default), ``"summary"``, ``"count"``, ``"union"``, ``"sum"``, or a `MergePolicy`.
        join: how many threads a block waits for, where the model does not say: ``"all"``,
            ``"first_success"``, ``"vote"``, such as ``"2_of_n"``, or a `JoinPolicy`.
        parent_lane: let the parent go on with a lane of its own while its threads run.
        result: a schema for what every thread must return; chat models only.
        limits: bounds on a run; exceeding one ends a thread with a status, never a run
            with an exception.
        gate: bounds model calls over several agents; by default each agent has its own,
            with the bounds of ``limits``.
        strategy: ``"adaptive"``: the model decides; ``"sequential"``: it may not split; or
            what decides in its place, on the same threads and limits: ``"self_consistency"``,
            ``"best_of_n"``, ``"skeleton_of_thought"``, ``"tree_of_thoughts"``, ``"mcts"``,
            ``"beam"``, or a `Strategy` with options of its own. Its threads are asked like the
            question and may not split.
        temperature: of a model that continues text; ``None``: as the backend is set, 0 unless
            it says otherwise. A chat model has its own.
        system_prompt: put before every conversation.
        checkpointer: makes runs durable; every finished thread is saved.
        store: LangGraph's long-term memory, handed to the compiled graph.
        name: the graph's name, for tracers and for use as a node.

    Raises:
        UnknownModel: ``model`` leads to no model.
        ModelNotReady: a chat model's provider lacks a package or a key.
        MissingExtra: the model needs packages that are not installed.
        InvalidOption: an option has a value it cannot have.
    """
    planned = resolve_strategy(strategy)
    limits = limits or Limits()
    if strategy == "sequential":
        limits = replace(limits, max_threads=0)
    runner = create_runner(
        model,
        tools,
        strategy=planned,
        protocol=protocol,
        merge=merge,
        join=join,
        parent_lane=parent_lane,
        result=result,
        limits=limits,
        gate=gate,
        temperature=temperature,
        system_prompt=system_prompt,
    )
    thinking = _Thinking(runner)
    graph = StateGraph(AgentState, input_schema=AgentInput, output_schema=AgentOutput)
    graph.add_node("start", thinking.node(thinking.nodes.start))
    graph.add_edge(START, "start")
    graph.add_edge("start", "reason")
    thinking.add(graph, depth=runner.limits.max_depth)
    return graph.compile(
        checkpointer=checkpointer, store=store, name=name, transformers=[AgentThreadsTransformer]
    )


class ThreadOptions(TypedDict, total=False):
    """How threads run: the options of `create_parallel_agent` that are about threads."""

    protocol: str | TextProtocol | ToolCalls | None
    merge: str | MergePolicy | None
    join: str | JoinPolicy
    parent_lane: bool
    result: type[BaseModel] | None
    limits: Limits | None
    gate: Gate | None
    temperature: float | None
    system_prompt: str | None


def create_runner(
    model: str | Backend | BaseChatModel,
    tools: Sequence[BaseTool | Callable[..., Any]] = (),
    *,
    strategy: Strategy | None = None,
    **options: Unpack[ThreadOptions],
) -> Runner:
    """The live side of an agent; see `create_parallel_agent`."""
    limits = options.get("limits") or Limits()
    if strategy is not None:
        _refuse_options_of_blocks(strategy, options)
        limits = replace(limits, max_depth=min(limits.max_depth, 1))
    if limits.max_total_threads >= MANY:
        spare_what_exists()
    return Runner(
        mind=_mind(model, tools, strategy, options),
        merge=resolve_merge(options.get("merge")),
        join_policy=AsPlanned(strategy) if strategy else resolve_join(options.get("join", "all")),
        limits=limits,
        gate=options.get("gate") or Gate(limits.max_concurrency, limits.requests_per_second),
        parent_lane=options.get("parent_lane", False),
        strategy=strategy,
    )


def _refuse_options_of_blocks(strategy: Strategy, options: ThreadOptions) -> None:
    """A strategy reads its threads itself: what is for blocks of a model's own has no effect."""
    defaults: dict[str, tuple[Any, ...]] = {
        "merge": (None, "conclusions"),
        "join": ("all",),
        "parent_lane": (False,),
        "result": (None,),
    }
    for option, values in defaults.items():
        given = options.get(option, values[0])
        if given not in values:
            takes = f"left out with the strategy {strategy.name!r}, which reads its threads itself"
            raise InvalidOption(option, given, takes)


def block_graph(runner: Runner) -> CompiledStateGraph[Any, Any, Any, Any]:
    """One parallel block: a thread and what it asks for in, the thread with its join out."""
    thinking = _Thinking(runner)
    graph = StateGraph(AgentState, input_schema=BlockInput, output_schema=ThreadInput)
    graph.add_node("spawn", thinking.node(thinking.nodes.spawn))
    graph.add_edge(START, "spawn")
    waits = thinking.add_waits(graph, depth=runner.limits.max_depth)
    graph.add_node("merge", thinking.node(thinking.nodes.merge))
    graph.add_conditional_edges("spawn", Edge(thinking.nodes.fan_out), [*waits, END])
    for waited in waits:
        graph.add_edge(waited, "merge")
    graph.add_edge("merge", END)
    return graph.compile(name="block")


def _mind(
    model: str | Backend | BaseChatModel,
    tools: Sequence[BaseTool | Callable[..., Any]],
    strategy: Strategy | None,
    options: ThreadOptions,
) -> Mind:
    """The mind that fits a model."""
    protocol = resolve_protocol(options.get("protocol"))
    system_prompt = options.get("system_prompt")
    result, temperature = options.get("result"), options.get("temperature")
    backend = resolve(model)
    logprobs = strategy is not None and strategy.needs_logprobs
    if strategy is not None and logprobs and not backend.tells_logprobs:
        takes = f"another one: {backend.name} does not tell how likely its output is"
        raise InvalidOption("strategy", strategy.name, takes)
    if isinstance(backend, ChatBackend):
        if isinstance(protocol, TextProtocol):
            raise InvalidOption("protocol", protocol.name, "'tool_calls' for a chat model")
        if temperature is not None:
            raise InvalidOption("temperature", temperature, "set on the chat model itself")
        made = [tool if isinstance(tool, BaseTool) else as_tool(tool) for tool in tools]
        return ChatMind(
            backend, protocol or ToolCalls(), system_prompt, made, result, logprobs=logprobs
        )
    if isinstance(protocol, ToolCalls):
        raise InvalidOption("protocol", protocol.name, "one for a model that continues text")
    for option, given in (("tools", tools), ("result", result)):
        if given:
            raise InvalidOption(option, given, "left out for a model that continues text")
    if temperature is not None and not 0 <= temperature < math.inf:
        raise InvalidOption("temperature", temperature, "0 or more")
    return TextMind(
        backend,
        protocol or ThreadWeaver(),
        system_prompt,
        temperature=temperature,
        logprobs=logprobs,
        isolated=strategy is not None,
    )


class _Thinking:
    """The nodes around one runner, and the graphs made of them."""

    def __init__(self, runner: Runner) -> None:
        self.runner, self.nodes = runner, Nodes(runner)
        mind = runner.mind
        self.toolbox = Toolbox(mind) if isinstance(mind, ChatMind) and mind.tools else None

    def node(self, act: Callable[[Any, Scene], Awaitable[Any]]) -> Node:
        return Node(act, self.toolbox)

    def add(self, graph: StateGraph[Any, Any, Any, Any], *, depth: int) -> None:
        """``reason``, what it may wait for, and ``merge``; ``depth`` levels of threads below."""
        graph.add_node("reason", self.node(self.nodes.reason))
        waits = self.add_waits(graph, depth=depth)
        if not waits:
            graph.add_edge("reason", END)
            return
        graph.add_conditional_edges("reason", Edge(self.nodes.fan_out), [*waits, END])
        graph.add_node("merge", self.node(self.nodes.merge))
        for waited in waits:
            graph.add_edge(waited, "merge")
        graph.add_edge("merge", "reason")

    def add_waits(self, graph: StateGraph[Any, Any, Any, Any], *, depth: int) -> list[str]:
        """The nodes that a thread may wait for, ``depth`` levels of threads below it."""
        waits = []
        if depth > 0:
            graph.add_node("threads", self.node(self.nodes.threads))
            waits.append("threads")
        if depth > 0 and (depth > 1 or self.toolbox):
            graph.add_node("thread", self._thread(depth=depth - 1))
            waits.append("thread")
        if self.toolbox:
            graph.add_node("tool", self.node(self.nodes.tool))
            waits.append("tool")
        return waits

    def _thread(self, *, depth: int) -> CompiledStateGraph[Any, Any, Any, Any]:
        graph = StateGraph(AgentState, input_schema=ThreadInput, output_schema=ThreadOutput)
        graph.add_edge(START, "reason")
        self.add(graph, depth=depth)
        return graph.compile(name="thread")
