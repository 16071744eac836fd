"""A text backend as a LangChain chat model, for whatever takes a chat model.

Knows messages and backends; never graphs. Tools are told to the model in the system
message, and its calls are read out of the text that it generates.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import Any, NamedTuple, cast
from uuid import uuid4

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    AnyMessage,
    BaseMessage,
    InvalidToolCall,
    ToolCall,
)
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from pydantic import ConfigDict, Field, PrivateAttr

from apr_agents.backends import resolve
from apr_agents.backends.base import Backend, Request
from apr_agents.backends.loop import iterate_in_background, run_in_background
from apr_agents.errors import BackendFailed, EmptyQuestion, InvalidOption
from apr_agents.json_calls import CallReader, Read, describe, instructions, plain
from apr_agents.tokens import well_formed

ToolChoice = str | bool | Mapping[str, Any] | None


class BackendChatModel(BaseChatModel):
    """Any `Backend` as a LangChain chat model.

    Tool calls are asked for as JSON, since a text backend has none of its own: whether they
    come is up to the model, and so is whether it follows a ``tool_choice``.

    Args:
        backend: a `Backend`, or a string: ``"bundled"``, ``"local:DIRECTORY_OR_HUB_ID"``.
        max_tokens: tokens that one call may generate; a call may say otherwise.
        stop: texts at which a call ends, left out of its content; a call may say otherwise.

    Raises:
        UnknownModel: ``backend`` leads to no model.
        MissingExtra: the model needs packages that are not installed.
        InvalidOption: an option has a value it cannot have.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    backend: Backend = Field(exclude=True, repr=False)
    max_tokens: int = 4096
    stop: list[str] = Field(default_factory=list)
    streaming: bool = False
    """Whether ``invoke`` streams as well, for callbacks that want tokens."""
    _calls: int = PrivateAttr(default=0)

    def __init__(
        self,
        backend: Backend | str,
        *,
        max_tokens: int = 4096,
        stop: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        options["backend"] = _text_backend(backend)
        options["max_tokens"] = _at_least_one(max_tokens)
        options["stop"] = list(_stops(stop or ()))
        super().__init__(**options)

    @property
    def model_name(self) -> str:
        """What traces call the model."""
        return self.backend.name

    @property
    def _llm_type(self) -> str:
        return "apr-agents"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        sampling = {
            name: getattr(self.backend, name)
            for name in ("temperature", "seed")
            if hasattr(self.backend, name)
        }
        return {
            "model": self.model_name,
            "backend": type(self.backend).__name__,
            **sampling,
            "max_tokens": self.max_tokens,
            "stop": self.stop,
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop or self.stop, **kwargs)
        params["ls_provider"] = "apr-agents"
        temperature = getattr(self.backend, "temperature", None)
        if temperature is not None:
            params["ls_temperature"] = temperature
        return params

    def get_num_tokens(self, text: str) -> int:
        """Tokens in ``text``, as the backend counts them."""
        return self.backend.count(text)

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: ToolChoice = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools that it may call.

        Args:
            tool_choice: ``"any"``: it is told to call a tool; a tool's name: it is told to
                call this one; ``"none"``: it learns of no tool.
        """
        described = describe(tools)
        return self.bind(tools=described, tool_choice=_chosen(tool_choice, described), **kwargs)

    # --- LangChain's four ways to ask ------------------------------------------------

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[ChatGenerationChunk, None]:
        async with aclosing(self._pieces(messages, stop, **kwargs)) as pieces:
            async for piece in pieces:
                yield ChatGenerationChunk(message=piece.chunk())

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        async with aclosing(self._pieces(messages, stop, **kwargs)) as pieces:
            message = _whole([piece async for piece in pieces])
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with closing(iterate_in_background(self._astream(messages, stop, **kwargs))) as chunks:
            yield from chunks

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return run_in_background(self._agenerate(messages, stop, **kwargs))

    # --- one call ----------------------------------------------------------------------

    async def _pieces(
        self, messages: list[BaseMessage], stop: list[str] | None, **kwargs: Any
    ) -> AsyncGenerator[_Piece, None]:
        """The next message in pieces, the last of which has an end."""
        options = _Options.of(kwargs)
        request = self._request(messages, stop, options)
        until, reader = _Until(request.stops), CallReader() if options.tools else None
        tokens = prompt_tokens = generated = 0
        ended = False
        async with aclosing(self.backend.stream(request)) as deltas:
            async for delta in deltas:
                tokens, generated = tokens + delta.tokens, generated + delta.tokens
                prompt_tokens += delta.prompt_tokens
                ended = delta.ended
                text = until.feed(delta.text)
                if reader is not None:
                    text = reader.feed(text)
                if text:
                    yield _Piece(text, tokens, prompt_tokens)
                    tokens = prompt_tokens = 0
                if until.found:
                    break
        if not (generated or ended):
            raise BackendFailed("it generated nothing")
        text = until.rest()
        if reader is None:
            read = Read(text, [], [])
        else:
            let_through = reader.feed(text)
            read = reader.finish()
            read = read._replace(text=let_through + read.text)
        for call in (*read.tool_calls, *read.invalid_tool_calls):
            call["id"] = f"call_{uuid4().hex}"
        reason = "tool_calls" if read.tool_calls else "stop" if ended or until.found else "length"
        end = _End(read.tool_calls, read.invalid_tool_calls, reason, self.model_name)
        yield _Piece(read.text, tokens, prompt_tokens, end)

    def _request(
        self, messages: list[BaseMessage], stop: list[str] | None, options: _Options
    ) -> Request:
        if not any(message.text.strip() for message in messages):
            raise EmptyQuestion
        for message in messages:
            _refuse_media(message)
        system = instructions(options.tools, options.choice) if options.tools else ""
        told = cast("list[AnyMessage]", plain(messages, system))
        self._calls += 1
        return Request(
            prompt=well_formed(self.backend.render(told)),
            max_tokens=self.max_tokens if options.max_tokens is None else options.max_tokens,
            stops=tuple(self.stop) if stop is None else _stops(stop),
            key=f"chat/{self._calls}",
        )


class _Options(NamedTuple):
    """What a call may say for itself."""

    max_tokens: int | None
    tools: list[dict[str, Any]]
    choice: str

    @classmethod
    def of(cls, kwargs: dict[str, Any]) -> _Options:
        known = {"max_tokens", "tools", "tool_choice", "stream"}
        for name in kwargs.keys() - known:
            takes = "left out: a call takes max_tokens, stop, tools and tool_choice"
            raise InvalidOption(name, kwargs[name], takes)
        max_tokens = kwargs.get("max_tokens")
        tools = describe(kwargs.get("tools") or ())
        choice = _chosen(kwargs.get("tool_choice"), tools)
        return cls(
            None if max_tokens is None else _at_least_one(max_tokens),
            [] if choice == "none" else tools,
            choice,
        )


class _End(NamedTuple):
    """What is known at the end of a message."""

    tool_calls: list[ToolCall]
    invalid_tool_calls: list[InvalidToolCall]
    finish_reason: str
    model_name: str

    @property
    def metadata(self) -> dict[str, Any]:
        return {"finish_reason": self.finish_reason, "model_name": self.model_name}


class _Piece(NamedTuple):
    """A piece of a message: its text, and what was counted since the one before."""

    text: str
    tokens: int
    prompt_tokens: int
    end: _End | None = None

    def chunk(self) -> AIMessageChunk:
        usage = _usage(self.prompt_tokens, self.tokens)
        if self.end is None:
            return AIMessageChunk(content=self.text, usage_metadata=usage)
        calls = [
            *((call["name"], _dump(call["args"]), call["id"]) for call in self.end.tool_calls),
            *((call["name"], call["args"], call["id"]) for call in self.end.invalid_tool_calls),
        ]
        return AIMessageChunk(
            content=self.text,
            usage_metadata=usage,
            # From 1: in LangChain's block format, 0 is the text.
            tool_call_chunks=[
                tool_call_chunk(name=name, args=args, id=call_id, index=index)
                for index, (name, args, call_id) in enumerate(calls, 1)
            ],
            response_metadata=self.end.metadata,
            chunk_position="last",
        )


def _whole(pieces: Sequence[_Piece]) -> AIMessage:
    end = pieces[-1].end
    assert end is not None
    return AIMessage(
        content="".join(piece.text for piece in pieces),
        tool_calls=end.tool_calls,
        invalid_tool_calls=end.invalid_tool_calls,
        response_metadata=end.metadata,
        usage_metadata=_usage(
            sum(piece.prompt_tokens for piece in pieces), sum(piece.tokens for piece in pieces)
        ),
    )


class _Until:
    """Lets text through up to the first stop; holds back what may be the beginning of one.

    The first stop is the one that is complete first, wherever the text is cut.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = stops
        self.found = False
        self._held = ""

    def feed(self, text: str) -> str:
        text, self._held = self._held + text, ""
        places = [(at + len(stop), at) for stop in self.stops if (at := text.find(stop)) >= 0]
        if places:
            self.found = True
            return text[: min(places)[1]]
        begun = (
            length
            for stop in self.stops
            for length in range(1, len(stop))
            if text.endswith(stop[:length])
        )
        end = len(text) - max(begun, default=0)
        self._held = text[end:]
        return text[:end]

    def rest(self) -> str:
        """What was held back and is no stop after all."""
        return self._held


def _usage(prompt_tokens: int, tokens: int) -> UsageMetadata:
    return UsageMetadata(
        input_tokens=prompt_tokens, output_tokens=tokens, total_tokens=prompt_tokens + tokens
    )


def _chosen(choice: ToolChoice, tools: Sequence[dict[str, Any]]) -> str:
    """``auto``, ``any``, ``none`` or a tool's name, from all the ways to say it."""
    if isinstance(choice, Mapping):  # OpenAI's and Anthropic's
        named = choice.get("function", choice)
        choice = named.get("name") or choice.get("type")
    if choice is True or choice == "required":
        return "any"
    if not choice:
        return "auto"
    names = [tool["function"]["name"] for tool in tools]
    if choice not in ("auto", "any", "none", *names):
        raise InvalidOption("tool_choice", choice, f"'auto', 'any', 'none' or one of {names}")
    return str(choice)


def _text_backend(backend: Backend | str) -> Backend:
    found = resolve(backend) if isinstance(backend, str) else backend
    if not isinstance(found, Backend):
        raise InvalidOption(
            "backend", backend, "a Backend or the name of one; a chat model is used as it is"
        )
    return found


def _stops(stop: Sequence[str]) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(text, str) and text for text in stops):
        raise InvalidOption("stop", stop, "a list of texts that are not empty")
    return stops


def _at_least_one(max_tokens: int) -> int:
    if type(max_tokens) is not int or max_tokens < 1:
        raise InvalidOption("max_tokens", max_tokens, "a whole number of at least 1")
    return max_tokens


def _refuse_media(message: BaseMessage) -> None:
    """A model's own messages may hold anything; only their text is shown to it."""
    if isinstance(message, AIMessage) or isinstance(message.content, str):
        return
    for block in message.content:
        kind = block.get("type") if isinstance(block, dict) else "text"
        if kind != "text":
            raise InvalidOption("A content block", kind, "text: the backend reads nothing else")


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
