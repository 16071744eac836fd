"""``/v1/chat/completions``: a conversation goes on, with tools and with answers in JSON."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import Any, NamedTuple

from apr_agents.engine.request import Constraint
from apr_agents.json_calls import UNREADABLE, CallReader
from apr_agents.server.generation import Chosen, Job, Piece, Run
from apr_agents.server.logprobs import Writer, for_chat
from apr_agents.server.model import Model
from apr_agents.server.schemas import (
    Answer,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChatRequest,
    ChunkChoice,
    Delta,
    FinishReason,
    FunctionOfCall,
    NamedTool,
    ToolCall,
    ToolCallDelta,
)


def prepare(model: Model, body: ChatRequest) -> Job:
    """What a request asks of the engine.

    Raises:
        Refusal: it asks for what this model cannot do.
    """
    tools = body.tools or [] if body.uses_tools else []
    prompt = model.converse(body.messages, tools, _choice(body))
    return Job(
        model,
        body,
        [prompt],
        kind="chatcmpl",
        wanted=body.max_completion_tokens or body.max_tokens,
        param="messages",
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        constraint=_constraint(model, body),
    )


class Chat:
    """Shapes the answers of one request.

    Args:
        write: what tokens say.
    """

    def __init__(self, job: Job, body: ChatRequest, write: Writer) -> None:
        self._job, self._body, self._write = job, body, write
        self._readers = [_Reader() if body.uses_tools else None for _ in job.choices]

    async def whole(self, run: Run) -> ChatCompletion:
        """All answers, when all have ended."""
        texts = [""] * len(self._job.choices)
        tokens: list[list[Chosen]] = [[] for _ in texts]
        calls: list[list[ToolCall]] = [[] for _ in texts]
        async with aclosing(run.pieces()) as grown:
            async for index, piece in grown:
                said = self._said(index, piece)
                texts[index] += said.text
                tokens[index] += piece.tokens
                calls[index] += said.calls
        choices = [
            ChatChoice(
                index=index,
                message=Answer(content=text or (None if calls else ""), tool_calls=calls or None),
                logprobs=self._logprobs(own),
                finish_reason=self._finish(index, bool(calls)),
                stop_reason=self._job.choices[index].stop,
            )
            for index, (text, own, calls) in enumerate(zip(texts, tokens, calls, strict=True))
        ]
        return self._job.answer(ChatCompletion, choices, self._job.usage)

    async def chunks(self, run: Run) -> AsyncGenerator[ChatChunk, None]:
        """The answers as they grow; each begins with its role."""
        job = self._job
        for index in range(len(job.choices)):
            begun = ChunkChoice(index=index, delta=Delta(role="assistant", content=""))
            yield job.answer(ChatChunk, [begun], job.usage_now)
        async with aclosing(run.pieces()) as grown:
            async for index, piece in grown:
                said = self._said(index, piece)
                finish = self._finish(index, bool(said.calls))
                if not (said.text or piece.tokens or finish):
                    continue
                calls = [
                    ToolCallDelta(index=number, **call.model_dump())
                    for number, call in enumerate(said.calls)
                ]
                choice = ChunkChoice(
                    index=index,
                    delta=Delta(content=said.text or None, tool_calls=calls or None),
                    logprobs=self._logprobs(piece.tokens),
                    finish_reason=finish,
                    stop_reason=job.choices[index].stop,
                )
                yield job.answer(ChatChunk, [choice], job.usage_now)
        if usage := job.usage_at_end:
            yield job.answer(ChatChunk, [], usage)

    def _said(self, index: int, piece: Piece) -> _Said:
        """What a piece says. Calls are read from a whole text, so they come with its end."""
        reader = self._readers[index]
        if reader is None:
            return _Said(piece.text, [])
        text = reader.feed(piece.text)
        if self._job.choices[index].finish is None:
            return _Said(text, [])
        rest = reader.finish()
        calls = rest.calls[:1] if self._body.parallel_tool_calls is False else rest.calls
        return _Said(text + rest.text, calls)

    def _finish(self, index: int, called: bool) -> FinishReason | None:
        finish = self._job.choices[index].finish
        return "tool_calls" if finish == "stop" and called else finish

    def _logprobs(self, tokens: list[Chosen]) -> ChatLogprobs | None:
        return for_chat(tokens, self._write) if self._body.logprobs else None


class _Said(NamedTuple):
    text: str
    calls: list[ToolCall]


class _Reader:
    """Reads tool calls. What was meant as one and is none stays text."""

    def __init__(self) -> None:
        self._calls, self._text, self._given = CallReader(), "", 0

    def feed(self, text: str) -> str:
        """Take a piece; the text that is certain to be no call."""
        self._text += text
        given = self._calls.feed(text)
        self._given += len(given)
        return given

    def finish(self) -> _Said:
        """The rest of the text, and the calls."""
        read = self._calls.finish()
        if not read.tool_calls:
            return _Said(self._text[self._given :], [])
        calls = [
            ToolCall(
                id=f"call_{secrets.token_hex(12)}",
                function=FunctionOfCall(name=call["name"], arguments=json.dumps(call["args"])),
            )
            for call in read.tool_calls
        ]
        unread = [call["args"] or "" for call in read.invalid_tool_calls]
        texts = [read.text, *(text.removeprefix(UNREADABLE) for text in dict.fromkeys(unread))]
        return _Said("\n".join(text for text in texts if text), calls)


def _choice(body: ChatRequest) -> str:
    """Which tool is to be called, as `json_calls.instructions` has it."""
    if isinstance(body.tool_choice, NamedTool):
        return body.tool_choice.function.name
    return "any" if body.tool_choice == "required" else "auto"


def _constraint(model: Model, body: ChatRequest) -> Callable[[], Constraint] | None:
    """What makes a constraint for each answer, if there is to be one."""
    if (schema := body.answer_schema) is not None:
        return partial(model.constraint, schema, "response_format")
    if body.uses_tools and body.tool_choice not in (None, "auto"):
        return partial(model.constraint, _call_schema(body), "tools")
    return None


def _call_schema(body: ChatRequest) -> dict[str, Any]:
    """What a call is that must be made: of the tool that was named, or of any."""
    tools = [tool.function for tool in body.tools or ()]
    if isinstance(body.tool_choice, NamedTool):
        tools = [tool for tool in tools if tool.name == body.tool_choice.function.name]
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.name},
                "arguments": tool.parameters or {"type": "object"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}
