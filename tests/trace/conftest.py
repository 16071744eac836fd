"""Real runs whose records the tests of this folder look at."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.tools import tool

from apr_agents.graph.build import create_parallel_agent
from apr_agents.limits import Limits
from apr_agents.trace.events import Event
from apr_agents.trace.trajectory import Trajectory
from tests.graph.chat_script import Asked, Says, ToolChat, call, calls, spawn


@tool
async def look_up(what: str) -> str:
    """Look something up."""
    await asyncio.sleep(0)
    if what == "nothing":
        raise ValueError("there is <b>nothing</b>")
    return f"{what}!"


def script(asked: Asked) -> Any:
    """Splits, uses tools while its threads run, splits again, fails in one thread."""
    match asked.thread, asked.number:
        case "0", 0:
            both = spawn("a", "b", "c").tool_calls
            return calls(*both, call("look_up", what="x"), call("look_up", what="y"), text="Split.")
        case "0.2", 0:
            return spawn("d", "e")
        case "0.2.1", 0:
            return calls(call("look_up", what="nothing"))
        case "0.3", 0:
            return Says(fails=OSError("line\nbroke"))
    if asked.last.startswith("Sum up"):
        return "short <b>& sweet</b>"
    return f"found {asked.last} <script>alert(1)</script>"


Told = tuple[Trajectory, list[Event]]


@pytest.fixture
def nested() -> Callable[..., Any]:
    """Runs a nested agent; its record, and the events that it sent."""

    async def run(*, saver: Any = None, **config: Any) -> Told:
        model = ToolChat(script=script)
        agent = create_parallel_agent(
            model, [look_up], merge="summary", limits=Limits(max_concurrency=2), checkpointer=saver
        )
        events: list[Event] = []
        state: Any = {}
        stream = agent.astream(
            {"messages": [("user", "Q")]},
            {"configurable": {"thread_id": "t"}, **config},
            stream_mode=["custom", "values"],
            subgraphs=True,
        )
        async for place, mode, data in stream:
            if mode == "custom":
                events.append(data)
            elif not place:
                state = data
        return Trajectory.model_validate(state["trajectory"]), events

    return run


@pytest.fixture
async def run(nested: Any) -> Trajectory:
    """The record of a nested run."""
    record: Trajectory = (await nested())[0]
    assert [each.status for each in record.threads().values()].count("failed") == 1
    return record
