"""The systems that `overhead` compares, and the one model that all of them call.

Every system makes the same model calls: one that splits the task, one per subtask, one that
answers with what the subtasks found; a nested subtask splits and answers in the same way.
"""

from __future__ import annotations

import asyncio
import math
import operator
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypedDict

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import ToolCall, tool_call
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import tool
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Overwrite, Send
from pydantic import Field

from apr_agents.bench.cases import PEERS, Case, Checkpointer, System
from apr_agents.errors import MissingExtra
from apr_agents.limits import Limits

PLENTY = 10**9
"""Of threads, tokens or calls: no limit that anything here could reach."""

TASK = re.compile(r"\d: (?:work|split ([\d ]+))")
FOUND = re.compile(r"found (\d+)")

Split: TypeAlias = Callable[[Sequence[str]], list[ToolCall]]
"""How a system wants the model to say that it splits into these subtasks."""

Ask: TypeAlias = Callable[[str, RunnableConfig], Awaitable[str]]
"""A system that is ready to run: task and config in, answer out."""


def task(shape: Sequence[int], name: str = "0") -> str:
    """The text of a task that splits in ``shape``: ``(8, 8)`` into 8 that split into 8 each."""
    return f"{name}: split {' '.join(map(str, shape))}" if shape else f"{name}: work"


def answer(shape: Sequence[int]) -> str:
    """What the right answer to such a task is: the number of subtasks that did the work."""
    return f"found {math.prod(shape)}"


# --- The model ---------------------------------------------------------------------------------


@dataclass
class Tally:
    """Model calls, by what they did."""

    split: int = 0
    worked: int = 0
    answered: int = 0

    @classmethod
    def of(cls, shape: Sequence[int]) -> Tally:
        """The calls that a task of this shape takes."""
        parents = sum(accumulate(shape[:-1], operator.mul, initial=1))
        return cls(split=parents, worked=math.prod(shape), answered=parents)


class ScriptedModel(BaseChatModel):
    """Splits where the task says so, works where it does not, and adds up what was found.

    It binds no tools: what a provider would make of their schemas is no cost of a fan-out.

    Attributes:
        says_split: how it says that it splits.
        latency: seconds that each call takes.
        tally: its calls so far.
    """

    says_split: Split
    latency: float = 0.0
    tally: Tally = Field(default_factory=Tally)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **_: Any) -> Runnable[Any, AIMessage]:
        return self

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **_: Any,
    ) -> ChatResult:
        time.sleep(self.latency)
        return self._reply(messages)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **_: Any,
    ) -> ChatResult:
        await asyncio.sleep(self.latency)
        return self._reply(messages)

    def _reply(self, messages: list[BaseMessage]) -> ChatResult:
        own, results = _task_and_results(messages)
        calls: list[ToolCall] = []
        if results:
            self.tally.answered += 1
            text = f"found {sum(int(n) for result in results for n in FOUND.findall(result))}"
        elif shape := own[1]:
            self.tally.split += 1
            text = ""
            first, *rest = map(int, shape.split())
            name = own.string[: own.start() + 1].split()[-1]
            calls = self.says_split([task(rest, f"{name}.{i}") for i in range(1, first + 1)])
        else:
            self.tally.worked += 1
            text = "found 1"
        usage = UsageMetadata(input_tokens=10, output_tokens=5, total_tokens=15)
        message = AIMessage(text, tool_calls=calls, usage_metadata=usage)
        return ChatResult(generations=[ChatGeneration(message=message)])


def _task_and_results(messages: list[BaseMessage]) -> tuple[re.Match[str], list[str]]:
    """The latest task among the messages, and the tool results that came after it."""
    results: list[str] = []
    for message in reversed(messages):
        if isinstance(message, ToolMessage):
            results.append(message.text)
        elif isinstance(message, HumanMessage) and (own := TASK.search(message.text)):
            return own, results
    raise ValueError("no task among the messages")


def in_one_call(tasks: Sequence[str]) -> list[ToolCall]:
    return [tool_call(name="spawn_threads", args={"outlines": list(tasks)}, id="call_0")]


def a_call_each(tasks: Sequence[str]) -> list[ToolCall]:
    return [
        tool_call(name="solve", args={"task": each}, id=f"call_{i}") for i, each in enumerate(tasks)
    ]


def a_deep_call_each(tasks: Sequence[str]) -> list[ToolCall]:
    return [
        tool_call(
            name="task",
            args={"description": each, "subagent_type": "general-purpose"},
            id=f"call_{i}",
        )
        for i, each in enumerate(tasks)
    ]


# --- The systems -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Build:
    """How a system is made.

    Attributes:
        says_split: what its model has to say.
        build: makes it from the model, the case and the checkpointer.
    """

    says_split: Split
    build: Callable[[ScriptedModel, Case, BaseCheckpointSaver[Any] | None], Ask]


def _outlines(reply: AIMessage) -> list[str]:
    return [outline for call in reply.tool_calls for outline in call["args"]["outlines"]]


def _joined(results: Sequence[str]) -> ToolMessage:
    return ToolMessage("\n".join(results), tool_call_id="call_0")


def _gather(model: ScriptedModel, case: Case, saver: BaseCheckpointSaver[Any] | None) -> Ask:
    async def solve(text: str) -> str:
        messages: list[BaseMessage] = [HumanMessage(text)]
        reply = await model.ainvoke(messages)
        if not reply.tool_calls:
            return reply.text
        results = await asyncio.gather(*map(solve, _outlines(reply)))
        return (await model.ainvoke([*messages, reply, _joined(results)])).text

    return lambda question, config: solve(question)


class SendState(TypedDict, total=False):
    """A thread written by hand: its conversation, and what its own subtasks found."""

    messages: list[AnyMessage]
    results: Annotated[list[str], operator.add]


class SendInput(TypedDict):
    messages: list[AnyMessage]


class SendOutput(TypedDict):
    results: list[str]


def _send(model: ScriptedModel, levels: int, saver: Any, *, subgraph: bool) -> Any:
    """Split, one `Send` per subtask, join; each subtask a plain node or a compiled graph."""

    async def split(state: SendInput) -> SendState:
        return {"messages": [*state["messages"], await model.ainvoke(state["messages"])]}

    async def fan_out(state: SendState) -> list[Send]:
        reply = state["messages"][-1]
        assert isinstance(reply, AIMessage)
        return [Send("child", {"messages": [HumanMessage(each)]}) for each in _outlines(reply)]

    async def child(state: SendInput) -> SendOutput:
        return {"results": [(await model.ainvoke(state["messages"])).text]}

    async def join(state: SendState) -> Any:
        reply = await model.ainvoke([*state["messages"], _joined(state["results"])])
        return {"results": Overwrite([reply.text])}

    graph = StateGraph(SendState, input_schema=SendInput, output_schema=SendOutput)
    if levels == 0:
        graph.add_node("child", child)
        graph.add_edge(START, "child")
        return graph.compile()
    graph.add_node("split", split)
    graph.add_node("join", join)
    if subgraph:
        graph.add_node("child", _send(model, levels - 1, None, subgraph=True))
    else:
        graph.add_node("child", child)
    graph.add_edge(START, "split")
    graph.add_conditional_edges("split", fan_out, ["child"])
    graph.add_edge("child", "join")
    graph.add_edge("join", END)
    return graph.compile(checkpointer=saver)


def _send_node(model: ScriptedModel, case: Case, saver: Any) -> Ask:
    return _ask_send(_send(model, 1, saver, subgraph=False))


def _send_subgraph(model: ScriptedModel, case: Case, saver: Any) -> Ask:
    return _ask_send(_send(model, len(case.shape), saver, subgraph=True))


def _ask_send(graph: Any) -> Ask:
    async def ask(question: str, config: RunnableConfig) -> str:
        output = await graph.ainvoke({"messages": [HumanMessage(question)]}, config)
        return str(output["results"][0])

    return ask


def _ask_agent(graph: Any) -> Ask:
    async def ask(question: str, config: RunnableConfig) -> str:
        output = await graph.ainvoke({"messages": [HumanMessage(question)]}, config)
        return str(output["messages"][-1].text)

    return ask


def _apr(model: ScriptedModel, case: Case, saver: Any, *, depth: int) -> Ask:
    from apr_agents.graph.build import create_parallel_agent

    limits = Limits(
        max_depth=depth,
        max_threads=max(case.shape),
        max_total_threads=PLENTY,
        max_concurrency=PLENTY,
        max_total_tokens=PLENTY,
        max_join_tokens=PLENTY,
        thread_timeout=PLENTY,
        timeout=PLENTY,
    )
    return _ask_agent(
        create_parallel_agent(model, limits=limits, merge="conclusions", checkpointer=saver)
    )


def _apr_leaf(model: ScriptedModel, case: Case, saver: Any) -> Ask:
    return _apr(model, case, saver, depth=1)


def _apr_subgraph(model: ScriptedModel, case: Case, saver: Any) -> Ask:
    return _apr(model, case, saver, depth=max(2, len(case.shape)))


def _create_agent(model: ScriptedModel, case: Case, saver: Any) -> Ask:
    with _imported_for(System.create_agent):
        from langchain.agents import create_agent

    def agent(levels: int, saver: Any = None) -> Any:
        if levels == 0:
            return create_agent(model)
        sub_agent = agent(levels - 1)

        @tool
        async def solve(task: str) -> str:
            """Have a sub-agent solve a task."""
            output = await sub_agent.ainvoke({"messages": [HumanMessage(task)]})
            return str(output["messages"][-1].text)

        return create_agent(model, [solve], checkpointer=saver)

    return _ask_agent(agent(len(case.shape), saver))


def _deepagents(model: ScriptedModel, case: Case, saver: Any) -> Ask:
    with _imported_for(System.deepagents):
        from deepagents import create_deep_agent

    return _ask_agent(create_deep_agent(model, checkpointer=saver))


@contextmanager
def _imported_for(name: System | Checkpointer) -> Iterator[None]:
    """What cannot be imported here is missing or too old."""
    try:
        yield
    except ImportError as error:
        raise MissingExtra("bench", PEERS[name]) from error


SYSTEMS: dict[System, Build] = {
    System.gather: Build(in_one_call, _gather),
    System.apr_leaf: Build(in_one_call, _apr_leaf),
    System.apr_subgraph: Build(in_one_call, _apr_subgraph),
    System.send_node: Build(in_one_call, _send_node),
    System.send_subgraph: Build(in_one_call, _send_subgraph),
    System.create_agent: Build(a_call_each, _create_agent),
    System.deepagents: Build(a_deep_call_each, _deepagents),
}


# --- What they save to -------------------------------------------------------------------------


@dataclass(frozen=True)
class Store:
    """A checkpointer, or none, and the bytes that it holds."""

    saver: BaseCheckpointSaver[Any] | None
    size: Callable[[], Awaitable[int]]


@asynccontextmanager
async def opened(checkpointer: Checkpointer, directory: Path) -> AsyncIterator[Store]:
    """An empty store; a file goes into ``directory``."""
    if checkpointer == Checkpointer.sqlite:
        with _imported_for(Checkpointer.sqlite):
            from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

        file = directory / "checkpoints.sqlite"

        async with AsyncSqliteSaver.from_conn_string(str(file)) as in_file:

            async def file_size() -> int:
                await in_file.setup()
                # What is still in the write-ahead log goes into the file.
                await (await in_file.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")).close()
                return file.stat().st_size

            yield Store(in_file, file_size)
    elif checkpointer == Checkpointer.memory:
        in_memory = InMemorySaver()

        async def blob_sizes() -> int:
            return sum(map(len, _blobs(in_memory)))

        yield Store(in_memory, blob_sizes)
    else:

        async def nothing() -> int:
            return 0

        yield Store(None, nothing)


def _blobs(saver: InMemorySaver) -> Iterator[bytes]:
    for namespaces in saver.storage.values():
        for checkpoints in namespaces.values():
            for checkpoint, metadata, _ in checkpoints.values():
                yield from (checkpoint[1], metadata[1])
    for writes in saver.writes.values():
        yield from (value[1] for _, _, value, _ in writes.values())
    yield from (value[1] for value in saver.blobs.values())
