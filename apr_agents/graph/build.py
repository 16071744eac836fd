"""`create_parallel_agent`: the state graph that turns spawn and join into fan-out and merge."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.store.base import BaseStore

from apr_agents.backends import resolve
from apr_agents.backends.base import Backend
from apr_agents.backends.gate import Gate
from apr_agents.errors import InvalidOption
from apr_agents.graph.merge import MergePolicy, resolve_merge
from apr_agents.graph.nodes import LEAVES_TOGETHER, Edge, Node, Nodes
from apr_agents.graph.runner import Runner
from apr_agents.graph.state import AgentInput, AgentOutput, AgentState, ThreadInput, ThreadOutput
from apr_agents.limits import Limits
from apr_agents.protocols.base import TextProtocol
from apr_agents.protocols.threadweaver import ThreadWeaver

Strategy = Literal["adaptive", "sequential"]


def create_parallel_agent(
    model: str | Backend,
    *,
    protocol: TextProtocol | None = None,
    merge: str | MergePolicy | None = None,
    limits: Limits | None = None,
    strategy: Strategy = "adaptive",
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
        model: a `Backend`, or a string: ``"bundled"``, ``"local:DIRECTORY_OR_HUB_ID"``.
        protocol: how the model says spawn and join; by default ThreadWeaver's tags.
        merge: what the parent sees of its threads: ``"full"``, ``"conclusions"`` (the
            default), ``"summary"``, or a `MergePolicy`.
        limits: bounds on a run; exceeding one ends a thread with a status, never a run
            with an exception.
        strategy: ``"adaptive"``: the model decides; ``"sequential"``: it may not split.
        system_prompt: put before every conversation.
        checkpointer: makes runs durable; every finished thread is saved.
        store: LangGraph's long-term memory, handed to the compiled graph.
        name: the graph's name, for tracers and for use as a node.

    Raises:
        UnknownModel: ``model`` leads to no model.
        MissingExtra: the model needs packages that are not installed.
        InvalidOption: an option has a value it cannot have.
    """
    if strategy not in ("adaptive", "sequential"):
        raise InvalidOption("strategy", strategy, "'adaptive' or 'sequential'")
    limits = limits or Limits()
    if strategy == "sequential":
        limits = replace(limits, max_threads=0)
    runner = Runner(
        backend=resolve(model),
        protocol=protocol or ThreadWeaver(),
        merge=resolve_merge(merge),
        limits=limits,
        gate=Gate(limits.max_concurrency, limits.requests_per_second),
        system_prompt=system_prompt,
    )
    # Where finished work is saved, each leaf travels alone, so that it is saved alone.
    nodes = Nodes(runner, leaves_together=1 if checkpointer else LEAVES_TOGETHER)
    graph = StateGraph(AgentState, input_schema=AgentInput, output_schema=AgentOutput)
    graph.add_node("start", Node(nodes.start))
    graph.add_edge(START, "start")
    graph.add_edge("start", "reason")
    _add_thinking(graph, nodes, depth=limits.max_depth)
    return graph.compile(checkpointer=checkpointer, store=store, name=name)


def _add_thinking(graph: StateGraph[Any, Any, Any, Any], nodes: Nodes, *, depth: int) -> None:
    """The nodes ``reason``, ``thread`` and ``merge`` of a thread with ``depth`` levels below it."""
    graph.add_node("reason", Node(nodes.reason))
    if depth == 0:
        graph.add_edge("reason", END)
        return
    if depth == 1:
        graph.add_node("thread", Node(nodes.leaves))
        graph.add_conditional_edges("reason", Edge(nodes.fan_out_leaves), ["thread", END])
    else:
        graph.add_node("thread", _thread_graph(nodes, depth=depth - 1))
        graph.add_conditional_edges("reason", Edge(nodes.fan_out), ["thread", END])
    graph.add_node("merge", Node(nodes.merge))
    graph.add_edge("thread", "merge")
    graph.add_edge("merge", "reason")


def _thread_graph(nodes: Nodes, *, depth: int) -> CompiledStateGraph[Any, Any, Any, Any]:
    graph = StateGraph(AgentState, input_schema=ThreadInput, output_schema=ThreadOutput)
    graph.add_edge(START, "reason")
    _add_thinking(graph, nodes, depth=depth)
    return graph.compile(name="thread")
