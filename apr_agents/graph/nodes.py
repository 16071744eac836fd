"""The graph's nodes and its fan-out. Each node runs in async and in sync graphs alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.config import get_stream_writer
from langgraph.types import Overwrite, Send
from pydantic import BaseModel, TypeAdapter

from apr_agents.backends.loop import run_in_background
from apr_agents.graph.journal import Journal, checkpointer_of
from apr_agents.graph.runner import Runner, Scene
from apr_agents.graph.state import Thread
from apr_agents.graph.toolbox import Toolbox
from apr_agents.protocols.base import Spawn
from apr_agents.types import ThreadResult, ToolCall, ToolUse

SPAWN = TypeAdapter(Spawn)

State: TypeAlias = Any
"""Plain data, shaped as graph/state.py says."""


class Node(Runnable[State, State]):
    """A node over one coroutine function; sync graphs run it on a background event loop."""

    def __init__(self, act: Callable[[State, Scene], Awaitable[State]], toolbox: Toolbox | None):
        self.act, self.toolbox = act, toolbox

    async def ainvoke(self, input: State, config: RunnableConfig | None = None, **_: Any) -> State:
        return await self.act(input, self._scene(config))

    def invoke(self, input: State, config: RunnableConfig | None = None, **_: Any) -> State:
        scene = self._scene(config)

        async def act() -> State:
            return await self.act(input, scene)

        return run_in_background(act())

    def _scene(self, config: RunnableConfig | None) -> Scene:
        saved = checkpointer_of(config) is not None

        async def use(thread: Thread, call: ToolCall, config: RunnableConfig | None) -> ToolUse:
            assert self.toolbox is not None
            return await self.toolbox.use(thread, call, config, durable=saved)

        return Scene(get_stream_writer(), config, use, saved)


def plain(record: Thread | BaseModel, scene: Scene) -> Any:
    """What LangGraph carries: plain data where it is saved, so that any serializer takes it."""
    if not scene.saved:
        return record
    return record.to_data() if isinstance(record, Thread) else record.model_dump()


class Edge(Runnable[State, Any]):
    """Where to go from a node. A plain function would run on a pool thread in async graphs."""

    name = "fan_out"

    def __init__(self, choose: Callable[[State, bool], list[Send] | str]) -> None:
        self.choose = choose

    def invoke(self, input: State, config: RunnableConfig | None = None, **_: Any) -> Any:
        return self.choose(input, checkpointer_of(config) is not None)

    async def ainvoke(self, input: State, config: RunnableConfig | None = None, **_: Any) -> Any:
        return self.choose(input, checkpointer_of(config) is not None)


class Nodes:
    """What the nodes do, around one `Runner`."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    async def start(self, state: State, scene: Scene) -> State:
        """Messages in; a fresh root thread out."""
        thread = self.runner.start(state["messages"], await self.runner.free_lanes())
        return {"thread": plain(thread, scene), "results": Overwrite([]), "uses": Overwrite([])}

    async def reason(self, state: State, scene: Scene) -> State:
        """Think until there is something to wait for or the thread has ended."""
        thread = Thread.of(state["thread"])
        await self.runner.reason(thread, scene)
        update: State = {"thread": plain(thread, scene)}
        if thread.status is None:
            return update
        if not thread.is_root:
            result = self.runner.result(thread, scene.emit)
            return update | {"results": Overwrite([plain(result, scene)])}
        trajectory = self.runner.trajectory(thread, scene.emit)
        message = AIMessage(
            trajectory.answer or self.runner.findings(thread),
            id=thread.said,  # or the answer would come twice in a stream of messages
            response_metadata={"status": thread.status, "reason": thread.reason},
        )
        return update | {"messages": [message], "trajectory": trajectory.to_dict()}

    async def spawn(self, state: State, scene: Scene) -> State:
        """A block that the thread was told to ask for."""
        thread = Thread.of(state["thread"])
        await self.runner.spawn(thread, SPAWN.validate_python(state["spawn"]), scene.emit)
        return {"thread": plain(thread, scene)}

    async def threads(self, state: State, scene: Scene) -> State:
        """Whole lives of threads, all at once; where the run is saved, each as it ends."""
        saver = checkpointer_of(scene.config)
        threads = self.runner.children(Thread.of(state["thread"]))
        if saver is None or scene.config is None:
            results = await self.runner.live_all(threads, scene)
        else:
            async with Journal.open(saver, scene.config) as journal:
                results = await self.runner.live_all(
                    threads, scene, earlier=journal.finished, keep=journal.add
                )
        return {"results": [plain(result, scene) for result in results]}

    async def tool(self, state: State, scene: Scene) -> State:
        """One tool call of a thread."""
        thread = Thread.of(state["thread"])
        use = await self.runner.use(thread, ToolCall(*state["call"]), scene)
        return {"uses": [plain(use, scene)]}

    async def merge(self, state: State, scene: Scene) -> State:
        """Results in, in any order; the parent thread goes on with a short context."""
        thread = Thread.of(state["thread"])
        results = [ThreadResult.model_validate(result) for result in state["results"]]
        uses = [ToolUse.model_validate(use) for use in state["uses"]]
        await self.runner.join(thread, results, uses, scene)
        return {"thread": plain(thread, scene), "results": Overwrite([]), "uses": Overwrite([])}

    def fan_out(self, state: State, saved: bool) -> list[Send] | str:
        """Threads and tool calls at once; nothing to wait for: the thread has ended.

        Threads share one node, because a LangGraph task costs more than a short thread's own
        bookkeeping. Only where the run is saved, a thread that may spawn or call tools is a
        graph of its own: then its steps are saved one by one, and its tools may interrupt.
        """
        thread = Thread.of(state["thread"])
        if thread.status is not None:
            return "__end__"
        calls = [Send("tool", {"thread": state["thread"], "call": [*c]}) for c in thread.uses]
        if saved and not self.runner.are_leaves(thread):
            children = self.runner.children(thread)
            block = [Send("thread", {"thread": child.to_data()}) for child in children]
        else:
            block = [Send("threads", {"thread": state["thread"]})] if thread.outlines else []
        return [*calls, *block] or "__end__"
