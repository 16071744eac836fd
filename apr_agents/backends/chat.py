"""Any LangChain chat model as what answers messages. Knows messages; never graphs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool

from apr_agents.backends.base import Backend, approximate_tail, approximate_tokens

CLOSING_TURNS = 6
"""Turns that an event loop takes to close what is left of a stream. LangChain's generators do not
close those that they iterate over: each, about three in all, is closed two turns after the other.
"""


class ChatBackend:
    """A chat model and what is known about it.

    Attributes:
        name: what trajectories call the model.
        calls_tools: whether it takes tools itself.
        bounds_output: whether it takes a bound on its output.
        tells_logprobs: whether it can tell the log-probability of its output.
        context_length: tokens of its context, where its profile says.
        most_threads: any number of threads can be told to a chat model.
    """

    most_threads: int | None = None

    def __init__(self, model: BaseChatModel) -> None:
        self.model = model
        named = (getattr(model, attribute, None) for attribute in ("model_name", "model"))
        self.name = next((str(name) for name in named if name), type(model).__name__)
        self.calls_tools = type(model).bind_tools is not BaseChatModel.bind_tools
        profile = getattr(model, "profile", None) or {}
        self.context_length: int | None = profile.get("max_input_tokens")
        self.bounds_output = "max_tokens" in type(model).model_fields
        self.tells_logprobs = "logprobs" in type(model).model_fields
        methods = ("_stream", "_astream")
        self._streams = any(
            getattr(type(model), method) is not getattr(BaseChatModel, method) for method in methods
        )
        self._bound: dict[tuple[str, ...], Any] = {}

    async def stream(
        self,
        messages: Sequence[BaseMessage],
        tools: Sequence[BaseTool | dict[str, Any]],
        *,
        max_tokens: int,
        logprobs: bool = False,
        config: RunnableConfig | None = None,
    ) -> AsyncGenerator[AIMessageChunk | AIMessage, None]:
        """The model's next message, in pieces. Closing the iterator cancels the request.

        A model that streams nothing gives its message whole.
        """
        options: dict[str, Any] = {"max_tokens": max_tokens} if self.bounds_output else {}
        if logprobs and self.tells_logprobs:
            options["logprobs"] = True
        bound = self._with(tools)
        if not self._streams:
            yield await bound.ainvoke(list(messages), config, **options)
            return
        pieces = bound.astream(list(messages), config, **options)
        try:
            async with aclosing(cast(AsyncGenerator[AIMessageChunk | AIMessage, None], pieces)):
                async for piece in pieces:
                    yield piece
        except GeneratorExit:
            for _ in range(CLOSING_TURNS):
                await asyncio.sleep(0)
            raise

    def _with(self, tools: Sequence[BaseTool | dict[str, Any]]) -> Any:
        if not tools:
            return self.model
        key = tuple(
            tool.name if isinstance(tool, BaseTool) else tool["function"]["description"]
            for tool in tools
        )
        if key not in self._bound:
            self._bound[key] = self.model.bind_tools(tools)
        return self._bound[key]

    async def aclose(self) -> None:
        """A chat model's client holds nothing of ours."""

    async def free_lanes(self) -> int | None:
        """What the backend behind the model tells, if there is one."""
        backend = getattr(self.model, "backend", None)
        return await backend.free_lanes() if isinstance(backend, Backend) else None

    def count(self, text: str) -> int:
        """Tokens in ``text``, about: the model's own tokenizer is out of reach."""
        return approximate_tokens(text)

    def tail(self, text: str, tokens: int) -> str:
        """The end of ``text``, about ``tokens`` tokens long."""
        return approximate_tail(text, tokens)
