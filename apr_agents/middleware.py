"""Parallel reasoning as middleware of ``langchain.agents.create_agent`` and deepagents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Unpack

from langchain_core.language_models import BaseChatModel
from langchain_core.tools import BaseTool

from apr_agents.backends.base import Backend
from apr_agents.errors import MissingExtra
from apr_agents.graph.build import ThreadOptions
from apr_agents.graph.streams import ThreadsTransformer
from apr_agents.tools import recall_tool, spawn_tool

try:
    from langchain.agents.middleware import AgentMiddleware
except ImportError as error:
    raise MissingExtra("chat", "langchain") from error


class ParallelReasoningMiddleware(AgentMiddleware[Any, Any, Any]):
    """Gives an agent the tools ``spawn_threads`` and ``recall_thread``.

    The threads run as those of `create_parallel_agent`: bounded, isolated from each other's
    failures, saved where the agent saves, listed one by one in its streams.

    Args:
        model: of the threads, as for `create_parallel_agent`; often the agent's own.
        tools: what the threads may call; often the agent's own.
        options: as for `create_parallel_agent`.
    """

    transformers = (ThreadsTransformer,)

    def __init__(
        self,
        model: str | Backend | BaseChatModel,
        tools: Sequence[BaseTool | Callable[..., Any]] = (),
        **options: Unpack[ThreadOptions],
    ) -> None:
        super().__init__()
        self.tools = [spawn_tool(model, tools, **options), recall_tool()]
