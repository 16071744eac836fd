"""Chat models that say what they are told to, and notice what is done to them; and a tool."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables.config import ensure_config
from langchain_core.tools import BaseTool, tool
from pydantic import PrivateAttr

from apr_agents.json_calls import write_calls


@dataclass(frozen=True)
class Asked:
    """One call of the model: for which thread, with what."""

    thread: str
    messages: list[BaseMessage]
    tools: list[str]
    max_tokens: int | None = None
    descriptions: dict[str, str] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """How many messages the model has said in this conversation."""
        return sum(isinstance(message, AIMessage) for message in self.messages)

    @property
    def last(self) -> str:
        return self.messages[-1].text


@dataclass(frozen=True)
class Says:
    """What the model does with one call: it says ``message`` once ``when`` holds, or worse."""

    message: AIMessage | str = ""
    when: Callable[[], bool] = lambda: True
    hangs: bool = False
    fails: BaseException | None = None


_thread = ContextVar[str]("thread")

Script = Callable[[Asked], Says | AIMessage | str]


def call(name: str, id: str | None = None, **args: Any) -> dict[str, Any]:
    """A tool call."""
    return {"name": name, "args": args, "id": id or f"{name}-{args}", "type": "tool_call"}


def calls(*made: dict[str, Any], text: str = "", **more: Any) -> AIMessage:
    """A message that makes these calls."""
    return AIMessage(text, tool_calls=list(made), **more)


def spawn(*outlines: Any, text: str = "", **args: Any) -> AIMessage:
    """A message that spawns."""
    return calls(call("spawn_threads", "spawn", outlines=list(outlines), **args), text=text)


class JsonChat(BaseChatModel):
    """Knows no tools of its own: it writes its calls as JSON.

    Args:
        script: from a call to what the model does with it.
    """

    script: Any
    _asked: list[Asked] = PrivateAttr(default_factory=list)
    _complaints: list[str] = PrivateAttr(default_factory=list)
    _cancelled: list[str] = PrivateAttr(default_factory=list)
    _ended: dict[str, float] = PrivateAttr(default_factory=dict)
    _in_flight: int = PrivateAttr(default=0)
    _peak: int = PrivateAttr(default=0)

    @property
    def asked(self) -> list[Asked]:
        return self._asked

    @property
    def complaints(self) -> list[str]:
        """What no provider would have accepted, and what the script had no answer to."""
        return self._complaints

    @property
    def cancelled(self) -> list[str]:
        """The threads whose calls were cancelled."""
        return self._cancelled

    @property
    def ended(self) -> dict[str, float]:
        """When the latest call of each thread ended, one way or another."""
        return self._ended

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @property
    def peak_in_flight(self) -> int:
        return self._peak

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def asked_by(self, thread: str) -> list[Asked]:
        """The calls of one thread."""
        return [asked for asked in self._asked if asked.thread == thread]

    def _generate(self, *_: Any, **__: Any) -> ChatResult:
        raise NotImplementedError

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **options: Any
    ) -> ChatResult:
        message = await self._say(messages, run_manager, options)
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _say(
        self, messages: list[BaseMessage], run_manager: Any, options: dict[str, Any]
    ) -> AIMessage:
        thread = run_manager.metadata["apr_thread"] if run_manager else _thread.get()
        tools = dict(map(_described, options.get("tools", ())))
        asked = Asked(thread, messages, list(tools), options.get("max_tokens"), tools)
        self._asked.append(asked)
        self._complaints += self._refused(messages)
        self._in_flight += 1
        self._peak = max(self._peak, self._in_flight)
        try:
            said = self._scripted(asked)
            await asyncio.sleep(0)
            while not said.when():  # noqa: ASYNC110  a condition over anything
                await asyncio.sleep(0.001)
            if said.hangs:
                await asyncio.Event().wait()
            if said.fails is not None:
                raise said.fails
            return self._spoken(said.message, asked)
        except asyncio.CancelledError:
            self._cancelled.append(thread)
            raise
        finally:
            self._ended[thread] = time.monotonic()
            self._in_flight -= 1

    def _scripted(self, asked: Asked) -> Says:
        try:
            said = self.script(asked)
        except Exception as error:
            self._complaints.append(f"no reply for {asked.thread}: {error!r}")
            raise
        return said if isinstance(said, Says) else Says(said)

    def _spoken(self, said: AIMessage | str, asked: Asked) -> AIMessage:
        if isinstance(said, str):
            return AIMessage(said)
        if not said.tool_calls:
            return said
        written = "\n".join(text for text in (said.text, write_calls(said.tool_calls)) if text)
        return said.model_copy(update={"content": written, "tool_calls": []})

    def _refused(self, messages: Sequence[BaseMessage]) -> Iterator[str]:
        if any(isinstance(m, ToolMessage) or getattr(m, "tool_calls", ()) for m in messages):
            yield f"no tool calls are known here: {messages}"
        yield from refused(messages)


class ToolChat(JsonChat):
    """Calls tools. It gives its messages whole."""

    def bind_tools(self, tools: Any, **options: Any) -> Any:
        return self.bind(tools=list(tools), **options)

    def _spoken(self, said: AIMessage | str, asked: Asked) -> AIMessage:
        return AIMessage(said) if isinstance(said, str) else said

    def _refused(self, messages: Sequence[BaseMessage]) -> Iterator[str]:
        return refused(messages)


class StreamingChat(ToolChat):
    """Calls tools, and gives its messages a character at a time."""

    async def astream(self, input: Any, config: Any = None, **options: Any) -> Any:
        # LangChain hands its metadata to whole messages only.
        _thread.set(ensure_config(config)["metadata"]["apr_thread"])
        async for piece in super().astream(input, config, **options):
            yield piece

    async def _astream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **options: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        said = await self._say(messages, run_manager, options)
        self._in_flight += 1
        try:
            for piece in self._pieces(said):
                yield ChatGenerationChunk(message=piece)
                await asyncio.sleep(0)
        finally:
            self._in_flight -= 1

    def _pieces(self, said: AIMessage) -> Iterator[AIMessageChunk]:
        for character in said.text:
            yield AIMessageChunk(character)
        for index, made in enumerate(said.tool_calls):
            yield _part(index, made["name"], "", made["id"])
            for character in json.dumps(made["args"]):
                yield _part(index, None, character, None)
        yield AIMessageChunk(
            "", response_metadata=said.response_metadata, usage_metadata=said.usage_metadata
        )


class BoundedChat(ToolChat):
    """Keeps to ``max_tokens``, at four characters each."""

    max_tokens: int | None = None

    def _spoken(self, said: AIMessage | str, asked: Asked) -> AIMessage:
        message = super()._spoken(said, asked)
        most = 4 * (asked.max_tokens or 10**6)
        if len(message.text) <= most:
            return message
        return AIMessage(message.text[:most], response_metadata={"finish_reason": "length"})


class Sleep:
    """A tool that never returns.

    Attributes:
        running: its calls that are not cancelled yet.
        stopped: when each of the others was.
    """

    def __init__(self) -> None:
        self.running = 0
        self.stopped: list[float] = []
        self.tool = tool(self.sleep)

    async def sleep(self) -> str:
        """Never returns."""
        self.running += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.running -= 1
            self.stopped.append(time.monotonic())
        return ""


def refused(messages: Sequence[BaseMessage]) -> Iterator[str]:
    """Why a provider would not take this conversation."""
    position = 0
    while position < len(messages):
        message = messages[position]
        position += 1
        if isinstance(message, SystemMessage) and position > 1:
            yield "a system message that is not the first"
        if isinstance(message, ToolMessage):
            yield f"the answer to {message.tool_call_id} follows no call"
        if not isinstance(message, AIMessage):
            continue
        made = [made["id"] for made in [*message.tool_calls, *message.invalid_tool_calls]]
        if not (made or message.text.strip()):
            yield "an empty message of the model"
        if len({*made, None}) != len(made) + 1:
            yield f"calls without ids of their own: {made}"
        answers = messages[position : position + len(made)]
        answered = [each.tool_call_id for each in answers if isinstance(each, ToolMessage)]
        if sorted(map(str, answered)) != sorted(map(str, made)):
            yield f"{answered} for {made}"
        position += len(made)
    if not messages or isinstance(messages[-1], AIMessage):
        yield "nothing to answer"


def _described(tool: Any) -> tuple[str, str]:
    if isinstance(tool, BaseTool):
        return tool.name, tool.description
    return tool["function"]["name"], tool["function"]["description"]


def _part(index: int, name: str | None, args: str, id: str | None) -> AIMessageChunk:
    chunk = tool_call_chunk(name=name, args=args, id=id, index=index)
    return AIMessageChunk("", tool_call_chunks=[chunk])


def by_thread(replies: Mapping[str, Says | AIMessage | str]) -> Script:
    """Replies by the thread and the number of its call, such as ``0.2/0``.

    ``0.*/0`` stands for every sibling that has no reply of its own, and ``0.2`` for every call
    of the thread that has none.
    """
    numbers: Counter[str] = Counter()

    def script(asked: Asked) -> Says | AIMessage | str:
        number = numbers[asked.thread]
        numbers[asked.thread] += 1
        any_sibling = f"{asked.thread.rpartition('.')[0]}.*"
        keys = [f"{thread}/{number}" for thread in (asked.thread, any_sibling)]
        for key in (*keys, asked.thread, any_sibling):
            if key in replies:
                return replies[key]
        raise KeyError(keys[0])

    return script
