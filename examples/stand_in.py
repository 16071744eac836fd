"""A chat model that needs no network: it goes by a rule where a real one would think.

The other examples import it. With a real model they stay the same but for one line:
``init_chat_model("openai:gpt-5")`` from ``langchain.chat_models`` in place of ``StandIn(rule)``.
"""

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult


class StandIn(BaseChatModel):
    """Says what ``rule`` makes of the messages so far, ``seconds`` later."""

    rule: Callable[[list[BaseMessage]], AIMessage]
    seconds: float = 0.0

    @property
    def _llm_type(self) -> str:
        return "stand-in"

    def bind_tools(self, tools: Any, **_: Any) -> Any:
        return self

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self.rule(messages))])

    async def _agenerate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        await asyncio.sleep(self.seconds)
        return self._generate(messages)


def call(tool: str, **args: Any) -> AIMessage:
    """The message of a model that calls a tool."""
    return AIMessage("", tool_calls=[{"name": tool, "args": args, "id": uuid4().hex}])
