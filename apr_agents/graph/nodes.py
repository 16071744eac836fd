"""The graph's nodes and its fan-out. Each node runs in async and in sync graphs alike."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import cache
from typing import Any, TypeAlias, TypeVar

from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.config import get_stream_writer
from langgraph.types import Overwrite, Send

from apr_agents.graph.runner import Runner
from apr_agents.graph.state import Thread
from apr_agents.trace.events import Emit
from apr_agents.types import ThreadResult

T = TypeVar("T")
State: TypeAlias = Any
"""Plain data, shaped as graph/state.py says."""

LEAVES_TOGETHER = 32
"""Leaves that travel in one ``Send`` where nothing is checkpointed."""


class Node(Runnable[State, State]):
    """A node over one coroutine function; sync graphs run it on a background event loop."""

    def __init__(self, act: Callable[[State, Emit], Awaitable[State]]) -> None:
        self.act = act

    async def ainvoke(self, input: State, config: RunnableConfig | None = None, **_: Any) -> State:
        return await self.act(input, get_stream_writer())

    def invoke(self, input: State, config: RunnableConfig | None = None, **_: Any) -> State:
        emit = get_stream_writer()

        async def act() -> State:
            return await self.act(input, emit)

        return run_in_background(act())


class Edge(Runnable[State, Any]):
    """Where to go from a node. A plain function would run on a pool thread in async graphs."""

    name = "fan_out"

    def __init__(self, choose: Callable[[State], list[Send] | str]) -> None:
        self.choose = choose

    def invoke(self, input: State, config: RunnableConfig | None = None, **_: Any) -> Any:
        return self.choose(input)

    async def ainvoke(self, input: State, config: RunnableConfig | None = None, **_: Any) -> Any:
        return self.choose(input)


@cache
def _background_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="apr-agents", daemon=True).start()
    return loop


def run_in_background(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run ``coroutine`` on the event loop that all sync callers of this process share."""
    future = asyncio.run_coroutine_threadsafe(coroutine, _background_loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


class Nodes:
    """What the nodes do, around one `Runner`."""

    def __init__(self, runner: Runner, *, leaves_together: int) -> None:
        self.runner, self.leaves_together = runner, leaves_together

    async def start(self, state: State, emit: Emit) -> State:
        """Messages in; a fresh root thread out."""
        thread = self.runner.start(state["messages"])
        return {"thread": thread.model_dump(), "results": Overwrite([])}

    async def reason(self, state: State, emit: Emit) -> State:
        """Think until there is a block to fan out or the thread has ended."""
        thread = Thread.model_validate(state["thread"])
        await self.runner.reason(thread, emit)
        update: State = {"thread": thread.model_dump()}
        if thread.status is None:
            return update
        if not thread.is_root:
            return update | {"results": Overwrite([self.runner.result(thread, emit).model_dump()])}
        trajectory = self.runner.trajectory(thread, emit)
        message = AIMessage(
            trajectory.answer or "",
            response_metadata={"status": thread.status, "reason": thread.reason},
        )
        return update | {"messages": [message], "trajectory": trajectory.to_dict()}

    async def leaves(self, state: State, emit: Emit) -> State:
        """Threads that cannot spawn, each from its outline to its result, all at once."""

        async def live(data: State) -> State:
            thread = Thread.model_validate(data)
            await self.runner.reason(thread, emit)
            return self.runner.result(thread, emit).model_dump()

        return {"results": list(await asyncio.gather(*map(live, state["threads"])))}

    async def merge(self, state: State, emit: Emit) -> State:
        """Results in, in any order; the parent thread goes on with a short context."""
        thread = Thread.model_validate(state["thread"])
        results = [ThreadResult.model_validate(result) for result in state["results"]]
        self.runner.join(thread, results, emit)
        return {"thread": thread.model_dump(), "results": Overwrite([])}

    def fan_out(self, state: State) -> list[Send] | str:
        """One ``Send`` for each outline of the block; no block: the thread has ended."""
        children = self._children(state)
        return [Send("thread", {"thread": child}) for child in children] or "__end__"

    def fan_out_leaves(self, state: State) -> list[Send] | str:
        """The same for leaves, which may travel together."""
        children = self._children(state)
        return [
            Send("thread", {"threads": batch}) for batch in _batches(children, self.leaves_together)
        ] or "__end__"

    def _children(self, state: State) -> list[State]:
        thread = Thread.model_validate(state["thread"])
        if thread.status is not None:
            return []
        return [child.model_dump() for child in self.runner.children(thread)]


def _batches(items: Sequence[State], size: int) -> list[Sequence[State]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
