"""Adaptive parallel reasoning for LangGraph.

The model decides when to split its thinking; LangGraph runs the threads at once; the
parent gets back a short context.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apr_agents.backends.base import Backend, Delta, Request
    from apr_agents.errors import AprError
    from apr_agents.graph.build import create_parallel_agent
    from apr_agents.graph.merge import Conclusions, Full, MergePolicy, Summaries
    from apr_agents.limits import Limits
    from apr_agents.protocols.base import TextProtocol
    from apr_agents.protocols.threadweaver import ThreadWeaver
    from apr_agents.trace.events import Event
    from apr_agents.trace.metrics import Metrics
    from apr_agents.trace.trajectory import Trajectory
    from apr_agents.types import Outline, ThreadResult

# Loaded when first used: importing this package costs milliseconds.
_HOMES = {
    "AprError": "errors",
    "Backend": "backends.base",
    "Conclusions": "graph.merge",
    "Delta": "backends.base",
    "Event": "trace.events",
    "Full": "graph.merge",
    "Limits": "limits",
    "MergePolicy": "graph.merge",
    "Metrics": "trace.metrics",
    "Outline": "types",
    "Request": "backends.base",
    "Summaries": "graph.merge",
    "TextProtocol": "protocols.base",
    "ThreadResult": "types",
    "ThreadWeaver": "protocols.threadweaver",
    "Trajectory": "trace.trajectory",
    "create_parallel_agent": "graph.build",
}

__all__ = [
    "AprError",
    "Backend",
    "Conclusions",
    "Delta",
    "Event",
    "Full",
    "Limits",
    "MergePolicy",
    "Metrics",
    "Outline",
    "Request",
    "Summaries",
    "TextProtocol",
    "ThreadResult",
    "ThreadWeaver",
    "Trajectory",
    "create_parallel_agent",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
