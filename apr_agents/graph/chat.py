"""Thinking with a chat model: a context of messages, decisions in its tool calls."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, cast

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    AnyMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    message_chunk_to_message,
)
from langchain_core.messages.ai import add_ai_message_chunks
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from pydantic import BaseModel

from apr_agents.backends.base import Delta, approximate_tokens
from apr_agents.backends.chat import ChatBackend
from apr_agents.graph.mind import Mind, Output, Turn, cut
from apr_agents.graph.state import Thread
from apr_agents.json_calls import instructions, plain, read_calls
from apr_agents.protocols.base import Decision, Ended
from apr_agents.protocols.tool_calls import SPAWN, ToolCalls
from apr_agents.types import (
    Backtrack,
    Block,
    Call,
    Note,
    Outline,
    Step,
    ThreadResult,
    ToolUse,
    in_context,
)

CUT_SHORT = {"length", "max_tokens", "MAX_TOKENS"}
"""Finish reasons of a message that broke off at a limit."""


class ChatMind(Mind):
    """A chat model, its tools, and tool calls as the protocol.

    Args:
        result: a schema for what every thread must return.
    """

    backend: ChatBackend
    says: ToolCalls

    def __init__(
        self,
        backend: ChatBackend,
        protocol: ToolCalls,
        system_prompt: str | None,
        tools: Sequence[BaseTool] = (),
        result: type[BaseModel] | None = None,
    ) -> None:
        self.backend, self.says, self.system_prompt = backend, protocol, system_prompt
        self.tools, self.result = {tool.name: tool for tool in tools}, result

    def begin(self, messages: Sequence[AnyMessage], budget: int) -> list[AnyMessage]:
        system = [SystemMessage(self.system_prompt)] if self.system_prompt else []
        return [*system, *messages]

    def enter(self, parent: Thread, outline: Outline, budget: int) -> list[AnyMessage]:
        asked = HumanMessage(outline.text)
        if self.says.visibility == "isolated" and not outline.is_lane:
            return self.begin([asked], budget)
        *before, spawning = self.messages(parent)
        # The call that spawned has no answer yet, and models refuse calls without one.
        said = [AIMessage(spawning.text)] if spawning.text else []
        return [*before, *said, asked]

    def turn(self, thread: Thread, limit: int, budget: int) -> Turn:
        return _Answering(self, thread, limit, budget)

    def summary(self, thread: Thread, limit: int) -> Turn:
        asked = f"Sum up what you found, in at most {limit} tokens. Keep every result."
        return _Summing(self, [*self.messages(thread), HumanMessage(asked)], limit)

    def digest(self, thread: Thread, texts: Sequence[str], limit: int) -> Turn:
        asked = f"Sum up these results in at most {limit} tokens. Keep every fact:\n\n"
        return _Summing(self, [HumanMessage(asked + "\n".join(texts))], limit)

    def conclusion(self, thread: Thread) -> str:
        if thread.concluded is not None:
            return thread.concluded
        return self.says.conclusion(_last_text(thread))

    def answer(self, thread: Thread) -> str | None:
        if text := _last_text(thread):
            return text
        blocks = [step.joined for step in thread.steps if isinstance(step, Block)]
        return blocks[-1] if blocks else None

    def messages(self, thread: Thread, *, artifacts: bool = False) -> list[AnyMessage]:
        """The thread's context; with ``artifacts``, joins carry the full results for tools."""
        assert isinstance(thread.base, list)
        return [*thread.base, *_messages(in_context(thread.steps), artifacts=artifacts)]

    def allowed(self, thread: Thread) -> Mapping[str, BaseTool]:
        """The tools that ``thread`` may use."""
        names = thread.outline.tools if thread.outline else None
        if names is None:
            return self.tools
        return {name: tool for name, tool in self.tools.items() if name in names}


def _messages(steps: Sequence[Step], *, artifacts: bool) -> Iterator[AnyMessage]:
    for step in steps:
        match step:
            case Call():
                yield step.message or AIMessage(step.text)
            case ToolUse(call=call):
                status: Any = "error" if step.failed else "success"
                yield ToolMessage(step.text, tool_call_id=call.id, name=call.name, status=status)
            case Block(answers=str()):
                yield ToolMessage(
                    step.joined,
                    tool_call_id=step.answers,
                    name=SPAWN,
                    artifact=artifact(step.threads) if artifacts else None,
                )
            case Note(answers=str()):
                yield ToolMessage(step.told, tool_call_id=step.answers, status="error")
            case Note() | Block() | Backtrack() if step.context:
                yield HumanMessage(step.context)


def artifact(threads: Sequence[ThreadResult]) -> dict[str, Any]:
    """What the tool message of a join carries beside its text: the results in full."""
    return {"threads": [thread.model_dump(mode="json") for thread in threads]}


def _last_text(thread: Thread) -> str:
    said = (step.text for step in reversed(in_context(thread.steps)) if isinstance(step, Call))
    return next((text for text in said if text.strip()), "")


class _Message(Turn):
    """Hears one message."""

    def __init__(
        self,
        mind: ChatMind,
        messages: list[AnyMessage],
        tools: Sequence[BaseTool | dict[str, Any]],
        limit: int,
    ) -> None:
        self.mind, self.prompt, self.tools, self.limit = mind, messages, tools, limit
        self.pieces: list[AIMessageChunk | AIMessage] = []
        self.message = AIMessage("")

    def estimate(self) -> int:
        return sum(approximate_tokens(message.text) for message in self.prompt)

    async def stream(self, config: RunnableConfig | None) -> AsyncGenerator[Delta, None]:
        prompt: Sequence[BaseMessage] = self.prompt
        tools = self.tools
        if tools and not self.mind.backend.calls_tools:
            prompt, tools = plain(prompt, instructions(tools)), ()
        backend, told = self.mind.backend, 0
        pieces = backend.stream(prompt, tools, max_tokens=self.limit, config=config)
        async with aclosing(pieces):
            async for piece in pieces:
                self.pieces.append(piece)
                tokens = backend.count(piece.text)
                told += tokens
                yield Delta(piece.text, tokens)
                if told > self.limit and not backend.bounds_output and not piece.usage_metadata:
                    return
        self.message = _normal(self.pieces, in_json=bool(self.tools) and not backend.calls_tools)
        # What the model reports replaces the estimates.
        usage = self.message.usage_metadata
        if usage:
            total, asked = usage["output_tokens"], usage["input_tokens"]
        else:
            calls = "".join(f"{call['name']}{call['args']}" for call in self.message.tool_calls)
            total = backend.count(self.message.text) + backend.count(calls)
            asked = self.estimate()
        yield Delta("", max(1, total) - told, asked, ended=True)

    def call(self, output: Output) -> Call:
        """The step to record."""
        message = self.message
        more = (
            message.tool_calls
            or message.invalid_tool_calls
            or message.additional_kwargs
            or not isinstance(message.content, str)
        )
        return Call(
            text=message.text if output.ended else output.text,
            tokens=output.tokens,
            prompt_tokens=output.prompt_tokens,
            message=message if more else None,
        )


def _normal(pieces: Sequence[AIMessageChunk | AIMessage], *, in_json: bool) -> AIMessage:
    """All the pieces as one message, each of its calls with an id of its own."""
    chunks = [piece for piece in pieces if isinstance(piece, AIMessageChunk)]
    whole = add_ai_message_chunks(*chunks) if len(chunks) > 1 else (pieces or [AIMessage("")])[0]
    message = cast(AIMessage, message_chunk_to_message(whole))
    if in_json:
        text, calls, invalid = read_calls(message.text)
        update = {"content": text, "tool_calls": calls, "invalid_tool_calls": invalid}
        message = message.model_copy(update=update)
    ids = [call["id"] for call in [*message.tool_calls, *message.invalid_tool_calls]]
    if len({*ids, None}) == len(ids) + 1:
        return message
    numbered = [
        [{**call, "id": f"{kind}_{i}"} for i, call in enumerate(calls)]
        for kind, calls in (("call", message.tool_calls), ("invalid", message.invalid_tool_calls))
    ]
    return message.model_copy(update={"tool_calls": numbered[0], "invalid_tool_calls": numbered[1]})


class _Answering(_Message):
    """The next message of a thread."""

    def __init__(self, mind: ChatMind, thread: Thread, limit: int, budget: int) -> None:
        self.own = mind.allowed(thread)
        is_thread = thread.outline is not None and not thread.outline.is_lane
        self.result = mind.result if is_thread else None
        self.corrected = any(isinstance(step, Note) for step in in_context(thread.steps))
        self.budget, self.discardable = budget, thread.latest_block is not None
        controls = mind.says.controls(
            threads=budget, discardable=self.discardable, result=self.result
        )
        super().__init__(mind, mind.messages(thread), [*self.own.values(), *controls], limit)

    def read(self, output: Output) -> tuple[Call, list[Decision]]:
        call, message = self.call(output), self.message
        short = message.response_metadata.get("finish_reason") in CUT_SHORT
        if not output.ended or (short and not message.tool_calls):
            return call, [cut(output, self.limit)]
        decisions = self.mind.says.read(
            message,
            may_spawn=self.budget > 0,
            discardable=self.discardable,
            result=self.result,
            tools=self.own,
            corrected=self.corrected,
        )
        return call, decisions


class _Summing(_Message):
    """A message that is a summary."""

    def __init__(self, mind: ChatMind, messages: list[AnyMessage], limit: int) -> None:
        super().__init__(mind, messages, (), limit)

    def read(self, output: Output) -> tuple[Call, list[Decision]]:
        return self.call(output), [Ended()]
