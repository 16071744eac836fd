"""A question asked of a compiled agent: its events as they come, its record in the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from langgraph.graph.state import CompiledStateGraph

from apr_agents.trace.events import Event
from apr_agents.trace.trajectory import Trajectory


async def watch(
    agent: CompiledStateGraph[Any, Any, Any, Any], question: str, hear: Callable[[Event], None]
) -> Trajectory:
    """Ask ``agent``, hand every event of its threads to ``hear``, return the record.

    Raises:
        Exception: what the root's model call raised.
    """
    state: dict[str, Any] = {}
    stream: AsyncIterator[Any] = agent.astream(
        {"messages": [("user", question)]},
        stream_mode=["custom", "values"],
        subgraphs=True,  # or the events of threads within threads stay behind
    )
    async with aclosing(stream):  # type: ignore[type-var]
        async for namespace, mode, data in stream:
            if mode == "custom":
                hear(data)
            elif not namespace:
                state = data
    return Trajectory.model_validate(state["trajectory"])
