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
from langchain_core.messages.tool import invalid_tool_call
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from pydantic import BaseModel

from apr_agents.backends.base import Delta, approximate_tokens
from apr_agents.backends.chat import ChatBackend
from apr_agents.graph.mind import Mind, Output, Turn, cut, sound, sound_message
from apr_agents.graph.state import Thread
from apr_agents.json_calls import instructions, is_deep, plain, read_calls
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

SILENCE = AIMessage("")
"""What a model has said before it says anything."""

CUT_SHORT = {"length", "max_tokens", "MAX_TOKENS"}
"""Finish reasons, stop reasons of a message that broke off at a limit."""


class ChatMind(Mind):
    """A chat model, its tools, and tool calls as the protocol.

    Args:
        result: a schema for what every thread must return.
        logprobs: have the model tell how likely its output is.
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
        *,
        logprobs: bool = False,
    ) -> None:
        self.backend, self.says, self.system_prompt = backend, protocol, system_prompt
        self.tools, self.result = {tool.name: tool for tool in tools}, result
        self.logprobs = logprobs

    def begin(self, messages: Sequence[AnyMessage], budget: int) -> list[AnyMessage]:
        system = [SystemMessage(self.system_prompt)] if self.system_prompt else []
        return [*system, *map(sound_message, messages)]

    def enter(self, parent: Thread, outline: Outline, budget: int) -> list[AnyMessage]:
        asked = HumanMessage(outline.text)
        if self.says.visibility == "isolated" and not outline.is_lane:
            return self.begin([asked], budget)
        messages = self.messages(parent)
        while isinstance(messages[-1], ToolMessage):  # other calls beside the one that spawned
            messages.pop()
        *before, spawning = messages
        # The call that spawned has no answer yet, and models refuse calls without one.
        said = [AIMessage(spawning.text)] if spawning.text.strip() else []
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
        return self.says.conclusion(_last_text(in_context(thread.steps), Call, Block))

    def answer(self, thread: Thread) -> str | None:
        kept, steps = in_context(thread.steps), thread.steps
        return _last_text(kept, Call) or _last_text(steps, Call) or None

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
            case Call() if step.message or step.text.strip():  # models refuse empty messages
                yield step.message or AIMessage(step.text)
            case ToolUse(call=call):
                status: Any = "error" if step.failed else "success"
                text = step.text if step.shown is None else step.shown
                yield ToolMessage(text, tool_call_id=call.id, name=call.name, status=status)
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


def _last_text(steps: Sequence[Step], *kinds: type[Call | Block]) -> str:
    """The last that the model said (`Call`) or that its threads came to (`Block`)."""
    for step in reversed(steps):
        if isinstance(step, kinds):
            text = step.text if isinstance(step, Call) else step.joined
            if text.strip():
                return text
    return ""


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
        self.message = SILENCE

    def estimate(self) -> int:
        return sum(approximate_tokens(message.text) for message in self.prompt)

    async def stream(self, config: RunnableConfig | None) -> AsyncGenerator[Delta, None]:
        prompt: Sequence[BaseMessage] = self.prompt
        tools = self.tools
        if not (tools and self.mind.backend.calls_tools):
            # Providers take calls and their results only along with tools.
            prompt, tools = plain(prompt, instructions(tools) if tools else ""), ()
        backend, written, told = self.mind.backend, "", 0
        pieces = backend.stream(
            prompt, tools, max_tokens=self.limit, logprobs=self.mind.logprobs, config=config
        )
        async with aclosing(pieces):
            async for piece in pieces:
                self.pieces.append(piece)
                self.said = piece.id
                parts = piece.tool_call_chunks if isinstance(piece, AIMessageChunk) else ()
                written += "".join([piece.text, *(part["args"] or "" for part in parts)])
                tokens = backend.count(written) - told
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
        details = usage.get("input_token_details") if usage else None
        cached = details.get("cache_read") if details else None
        logprob = _logprob(self.message)
        yield Delta("", max(1, total) - told, asked, True, cached, logprob)

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
            message=message if more else None,
            **output.measured,
        )


def _normal(pieces: Sequence[AIMessageChunk | AIMessage], *, in_json: bool) -> AIMessage:
    """All the pieces as one message, each of its calls with an id of its own."""
    chunks = [piece for piece in pieces if isinstance(piece, AIMessageChunk)]
    whole = add_ai_message_chunks(*chunks) if len(chunks) > 1 else (pieces or [SILENCE])[0]
    message = cast(AIMessage, message_chunk_to_message(whole))
    if not (in_json or message.tool_calls or message.invalid_tool_calls):
        return sound_message(message)
    content, made, invalid = message.content, message.tool_calls, message.invalid_tool_calls
    if in_json:
        content, made, invalid = read_calls(message.text)
    deep = [
        invalid_tool_call(name=call["name"], args="", id=call["id"], error="nested too deeply")
        for call in made
        if is_deep(call["args"])
    ]
    calls = [call for call in made if not is_deep(call["args"])]
    invalid = [*invalid, *deep]
    ids = [call["id"] for call in [*calls, *invalid]]
    if len({*ids, None}) <= len(ids):
        calls = [{**call, "id": f"call_{i}"} for i, call in enumerate(calls)]
        invalid = [{**call, "id": f"invalid_{i}"} for i, call in enumerate(invalid)]
    update = {"content": content, "tool_calls": calls, "invalid_tool_calls": invalid}
    return message.model_copy(update=sound(update))


def _logprob(message: AIMessage) -> float | None:
    """The log-probability of a message, where its provider tells it as OpenAI does."""
    told = message.response_metadata.get("logprobs")
    tokens = told.get("content") if isinstance(told, dict) else None
    return sum(token["logprob"] for token in tokens) if tokens else None


class _Answering(_Message):
    """The next message of a thread."""

    def __init__(self, mind: ChatMind, thread: Thread, limit: int, budget: int) -> None:
        self.own = mind.allowed(thread)
        is_thread = thread.outline is not None and not thread.outline.is_lane
        self.result = mind.result if is_thread else None
        self.notes = [step for step in in_context(thread.steps) if isinstance(step, Note)]
        self.budget, self.discardable = budget, thread.latest_block is not None
        controls = mind.says.controls(
            threads=budget, discardable=self.discardable, result=self.result
        )
        super().__init__(mind, mind.messages(thread), [*self.own.values(), *controls], limit)

    def read(self, output: Output) -> tuple[Call, list[Decision]]:
        call, message = self.call(output), self.message
        told = map(message.response_metadata.get, ("finish_reason", "stop_reason"))
        if not output.ended or any(why in CUT_SHORT for why in told if isinstance(why, str)):
            # Arguments that broke off were repaired on the way: no call can be trusted.
            return call, [cut(output, self.limit)]
        decisions = self.mind.says.read(
            message,
            may_spawn=self.budget > 0,
            discardable=self.discardable,
            result=self.result,
            tools=self.own,
            notes=self.notes,
        )
        made = [each for each in message.tool_calls if each["name"] not in self.own]
        if made:
            closing = "".join(f"\n[{each['name']} {each['args']}]" for each in made)
            call = call.model_copy(update={"closing": closing})
        return call, decisions


class _Summing(_Message):
    """A message that is a summary."""

    def __init__(self, mind: ChatMind, messages: list[AnyMessage], limit: int) -> None:
        super().__init__(mind, messages, (), limit)

    def read(self, output: Output) -> tuple[Call, list[Decision]]:
        return self.call(output), [Ended()]
