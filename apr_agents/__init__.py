"""Adaptive parallel reasoning for LangGraph.

The model decides when to split its thinking; LangGraph runs the threads at once; the
parent gets back a short context.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apr_agents.backends.base import Backend, Delta, Request
    from apr_agents.backends.chat_model import BackendChatModel
    from apr_agents.backends.gate import Gate
    from apr_agents.errors import AprError
    from apr_agents.graph.build import create_parallel_agent
    from apr_agents.graph.join import All, FirstSuccess, JoinPolicy, KOfN, Vote
    from apr_agents.graph.merge import Conclusions, Full, MergePolicy, Reduction, Summaries
    from apr_agents.limits import Limits
    from apr_agents.middleware import ParallelReasoningMiddleware
    from apr_agents.protocols.base import TextProtocol
    from apr_agents.protocols.threadweaver import ThreadWeaver
    from apr_agents.protocols.tool_calls import ToolCalls
    from apr_agents.tools import recall_tool, spawn_tool
    from apr_agents.trace.events import Event
    from apr_agents.trace.metrics import Metrics
    from apr_agents.trace.trajectory import Trajectory
    from apr_agents.types import Outline, ThreadResult

# Loaded when first used: importing this package costs milliseconds.
_HOMES = {
    "All": "graph.join",
    "AprError": "errors",
    "Backend": "backends.base",
    "BackendChatModel": "backends.chat_model",
    "Conclusions": "graph.merge",
    "Delta": "backends.base",
    "Event": "trace.events",
    "FirstSuccess": "graph.join",
    "Full": "graph.merge",
    "Gate": "backends.gate",
    "JoinPolicy": "graph.join",
    "KOfN": "graph.join",
    "Limits": "limits",
    "MergePolicy": "graph.merge",
    "Metrics": "trace.metrics",
    "Outline": "types",
    "ParallelReasoningMiddleware": "middleware",
    "Reduction": "graph.merge",
    "Request": "backends.base",
    "Summaries": "graph.merge",
    "TextProtocol": "protocols.base",
    "ThreadResult": "types",
    "ThreadWeaver": "protocols.threadweaver",
    "ToolCalls": "protocols.tool_calls",
    "Trajectory": "trace.trajectory",
    "Vote": "graph.join",
    "create_parallel_agent": "graph.build",
    "recall_tool": "tools",
    "spawn_tool": "tools",
}

__all__ = [
    "All",
    "AprError",
    "Backend",
    "BackendChatModel",
    "Conclusions",
    "Delta",
    "Event",
    "FirstSuccess",
    "Full",
    "Gate",
    "JoinPolicy",
    "KOfN",
    "Limits",
    "MergePolicy",
    "Metrics",
    "Outline",
    "ParallelReasoningMiddleware",
    "Reduction",
    "Request",
    "Summaries",
    "TextProtocol",
    "ThreadResult",
    "ThreadWeaver",
    "ToolCalls",
    "Trajectory",
    "Vote",
    "create_parallel_agent",
    "recall_tool",
    "spawn_tool",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
