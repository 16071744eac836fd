"""Agents in processes of their own, which a test can kill.

It reads runs from its input, one JSON object a line, and forks a process for each: imports take
longer than a run. It answers with the process's id when that has started, and with its status when
it has ended. What happens in a run is appended to the run's log, a line at a time:

    called 0.2/1        the second model call of thread 0.2 began
    used b              the tool began to run for b
    writing 0.2         the result of thread 0.2 is being written to the database
    wrote 0.2           the result of thread 0.2 is in the database
    keeping 0.2 3       so is checkpoint number 3 of the graph that runs thread 0.2, with its steps
    kept 0.2 3          that checkpoint is in the database
    kept - 1            so is one of the graph around the agent
    passed              the node before the agent, in the graph around it, ran
    failed EmptyInput…  the run ended with that error
    answer 4            the run ended with that answer
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import BaseTool, tool
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, MessagesState, StateGraph

from apr_agents import Limits, ParallelReasoningMiddleware, create_parallel_agent
from apr_agents.backends.base import Delta, Request
from apr_agents.backends.scripted import ScriptedBackend


class Log:
    """A file to which several processes append."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def __call__(self, *words: object) -> None:
        line = " ".join(map(str, words)).replace("\n", "; ")
        os.write(self._file, f"{line}\n".encode())

    def lines(self) -> list[str]:
        return self.path.read_text().splitlines()

    def after(self, word: str) -> list[str]:
        """What followed ``word`` in the lines that begin with it, sorted."""
        found = (line.partition(" ") for line in self.lines())
        return sorted(rest for first, _, rest in found if first == word)

    async def until(self, line: str | None) -> None:
        """Return once there is such a line."""
        while line is not None and line not in self.lines():  # noqa: ASYNC110  no event: a file
            await asyncio.sleep(0.01)


# --- models and tools ----------------------------------------------------------------------


class Script(BaseChatModel):
    """A chat model that answers by the thread it thinks for and the number of the call.

    Attributes:
        replies: from keys such as ``0.2/1`` to a text, to a list of outlines to spawn, or to tool
            calls, such as ``{"look_up": ["a", "b"]}``. Any other call answers ``found …`` with
            what was last said to it.
        waits: from such keys to a line of the log that the call waits for.
    """

    replies: Mapping[str, Any]
    waits: Mapping[str, str] = {}
    log: Any

    @property
    def _llm_type(self) -> str:
        return "script"

    def bind_tools(self, tools: Any, **_: Any) -> Any:
        return self

    def _generate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **_: Any
    ) -> ChatResult:
        key = self._called(messages, run_manager)
        asyncio.run(self.log.until(self.waits.get(key)))
        return self._reply(messages, key)

    async def _agenerate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **_: Any
    ) -> ChatResult:
        key = self._called(messages, run_manager)
        await self.log.until(self.waits.get(key))
        return self._reply(messages, key)

    def _called(self, messages: Sequence[BaseMessage], run_manager: Any) -> str:
        number = sum(isinstance(message, AIMessage) for message in messages)
        key = f"{(run_manager.metadata or {}).get('apr_thread', '0')}/{number}"
        self.log("called", key)
        return key

    def _reply(self, messages: Sequence[BaseMessage], key: str) -> ChatResult:
        reply = self.replies.get(key, f"found {messages[-1].text}")
        calls: list[tuple[str, dict[str, Any]]] = []
        if isinstance(reply, list):
            calls = [("spawn_threads", {"outlines": reply})]
        elif isinstance(reply, dict):
            calls = [(name, {"what": what}) for name, whats in reply.items() for what in whats]
        message = AIMessage(
            "" if calls else reply,
            tool_calls=[
                {"name": name, "args": args, "id": f"{key}:{number}"}
                for number, (name, args) in enumerate(calls)
            ],
        )
        return ChatResult(generations=[ChatGeneration(message=message)])


class Text(ScriptedBackend):
    """A model that continues text, and waits as a `Script` does."""

    def __init__(self, run: Mapping[str, Any], log: Log) -> None:
        super().__init__(lambda request: run["replies"].get(request.key, " ok</Thread>"), chunk=100)
        self._waits, self._log = run["waits"], log

    async def _reply(self, request: Request) -> AsyncIterator[Delta]:  # type: ignore[override]
        self._log("called", request.key)
        await self._log.until(self._waits.get(request.key))
        async for delta in super()._reply(request):
            yield delta


def look_up_tool(run: Mapping[str, Any], log: Log) -> BaseTool:
    @tool
    async def look_up(what: str) -> str:
        """Look something up."""
        log("used", what)
        await log.until(run["waits"].get(what))
        return f"{what}!"

    return look_up


# --- agents ----------------------------------------------------------------------------------


def agent(run: Mapping[str, Any], log: Log, saver: BaseCheckpointSaver[Any]) -> Any:
    """The agent by itself, as a node of a graph, or as the threads of another agent."""
    chat = Script(replies=run["replies"], waits=run["waits"], log=log)
    model = Text(run, log) if run["model"] == "text" else chat
    tools = [look_up_tool(run, log)] if run["tools"] else []
    limits = Limits(max_depth=run["depth"])
    if run["place"] == "alone":
        return create_parallel_agent(model, tools, limits=limits, checkpointer=saver)
    if run["place"] == "middleware":
        threads = ParallelReasoningMiddleware(model, tools, limits=limits)
        return create_agent(chat, middleware=[threads], checkpointer=saver)

    def before(state: MessagesState) -> dict[str, Any]:
        log("passed")
        return {}

    graph = StateGraph(MessagesState)
    graph.add_node("before", before)
    graph.add_node("think", create_parallel_agent(model, tools, limits=limits))
    graph.add_edge(START, "before")
    graph.add_edge("before", "think")
    graph.add_edge("think", END)
    return graph.compile(checkpointer=saver)


# --- savers that log what they have saved ------------------------------------------------------


def telling(saver: type[Any], log: Log, waits: Mapping[str, str]) -> type[Any]:
    """The same saver, but it logs. Writes wait as model calls do: ``write 0.2``, ``keep 0 2``."""

    def writing(writes: Sequence[tuple[str, Any]]) -> str | None:
        results = [value["id"] for channel, value in writes if channel == "result"]
        for result in results:
            log("writing", result)
        return next(filter(None, (waits.get(f"write {result}") for result in results)), None)

    def wrote(writes: Sequence[tuple[str, Any]]) -> None:
        for channel, value in writes:
            if channel == "result" or (channel == "thread" and value["status"] is not None):
                log("wrote", value["id"])

    def keeping(checkpoint: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
        thread = checkpoint["channel_values"].get("thread", {"id": "-"})
        which = f"{thread['id']} {metadata['step']}"
        log("keeping", which)
        return which

    class Telling(saver):
        def put(self, config: Any, checkpoint: Any, metadata: Any, versions: Any) -> Any:
            which = keeping(checkpoint, metadata)
            asyncio.run(log.until(waits.get(f"keep {which}")))
            config = super().put(config, checkpoint, metadata, versions)
            log("kept", which)
            return config

        def put_writes(self, config: Any, writes: Any, *task: Any) -> None:
            asyncio.run(log.until(writing(writes)))
            super().put_writes(config, writes, *task)
            wrote(writes)

    class AsyncTelling(saver):
        async def aput(self, config: Any, checkpoint: Any, metadata: Any, versions: Any) -> Any:
            which = keeping(checkpoint, metadata)
            await log.until(waits.get(f"keep {which}"))
            config = await super().aput(config, checkpoint, metadata, versions)
            log("kept", which)
            return config

        async def aput_writes(self, config: Any, writes: Any, *task: Any) -> None:
            await log.until(writing(writes))
            await super().aput_writes(config, writes, *task)
            wrote(writes)

    return AsyncTelling if saver.__name__.startswith("Async") else Telling


@asynccontextmanager
async def opened(run: Mapping[str, Any], log: Log) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    saver = {"sqlite": AsyncSqliteSaver, "postgres": AsyncPostgresSaver}[run["saver"]]
    async with telling(saver, log, run["waits"]).from_conn_string(run["database"]) as opened:
        await opened.setup()
        yield opened


@contextmanager
def opened_sync(run: Mapping[str, Any], log: Log) -> Iterator[BaseCheckpointSaver[Any]]:
    saver = {"sync sqlite": SqliteSaver, "sync postgres": PostgresSaver}[run["saver"]]
    with telling(saver, log, run["waits"]).from_conn_string(run["database"]) as opened:
        opened.setup()
        yield opened


# --- runs ----------------------------------------------------------------------------------------


def config(run: Mapping[str, Any]) -> Any:
    return {"configurable": {"thread_id": run["talk"]}}


async def live(run: Mapping[str, Any], log: Log) -> Any:
    async with opened(run, log) as saver:
        return await agent(run, log, saver).ainvoke(
            run["input"], config(run), durability=run["durability"]
        )


def live_sync(run: Mapping[str, Any], log: Log) -> Any:
    with opened_sync(run, log) as saver:
        return agent(run, log, saver).invoke(
            run["input"], config(run), durability=run["durability"]
        )


def main() -> None:
    for line in sys.stdin:
        run = json.loads(line)
        if child := os.fork():
            print("started", child, flush=True)
            print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            continue
        signal.alarm(60)  # nobody may be left to kill it
        log = Log(run["log"])
        try:
            is_sync = run["saver"].startswith("sync")
            output = live_sync(run, log) if is_sync else asyncio.run(live(run, log))
            log("answer", output["messages"][-1].text)
        except BaseException as error:
            log("failed", type(error).__name__, error)
        os._exit(0)


if __name__ == "__main__":
    main()
