"""Adaptive parallel reasoning for LangGraph.

The model decides when to split its thinking; LangGraph runs the threads at once; the
parent gets back a short context.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apr_agents.backends.base import Backend, Delta, Request
    from apr_agents.backends.chat_model import BackendChatModel
    from apr_agents.backends.completions import CompletionsBackend
    from apr_agents.backends.gate import Gate
    from apr_agents.errors import AprError
    from apr_agents.graph.build import create_parallel_agent
    from apr_agents.graph.join import All, FirstSuccess, JoinPolicy, KOfN, Vote
    from apr_agents.graph.merge import Conclusions, Full, MergePolicy, Reduction, Summaries
    from apr_agents.graph.streams import ThreadsTransformer
    from apr_agents.limits import Limits
    from apr_agents.middleware import ParallelReasoningMiddleware
    from apr_agents.protocols.apr import APR
    from apr_agents.protocols.base import TextProtocol, TraceBlock, TraceThread
    from apr_agents.protocols.multiverse import Multiverse
    from apr_agents.protocols.npr import NPR
    from apr_agents.protocols.parallel_r1 import ParallelR1
    from apr_agents.protocols.threadweaver import ThreadWeaver
    from apr_agents.protocols.tool_calls import ToolCalls
    from apr_agents.strategies.base import Ask, Strategy
    from apr_agents.strategies.beam import Beam
    from apr_agents.strategies.best_of_n import BestOfN
    from apr_agents.strategies.mcts import MonteCarloTreeSearch
    from apr_agents.strategies.self_consistency import SelfConsistency
    from apr_agents.strategies.skeleton_of_thought import SkeletonOfThought
    from apr_agents.strategies.thoughts import ThoughtPrompts
    from apr_agents.strategies.tree_of_thoughts import TreeOfThoughts
    from apr_agents.tools import recall_tool, spawn_tool
    from apr_agents.trace.events import Event
    from apr_agents.trace.metrics import Metrics, Prices
    from apr_agents.trace.otel import export_spans
    from apr_agents.trace.trajectory import Trajectory
    from apr_agents.training.config import GRPOConfig, Optimization, SFTConfig
    from apr_agents.training.pgrpo import grpo
    from apr_agents.training.rewards import Outcome, Reward
    from apr_agents.training.sft import sft
    from apr_agents.types import Outline, ThreadResult

# Loaded when first used: importing this package costs milliseconds.
_HOMES = {
    "APR": "protocols.apr",
    "All": "graph.join",
    "AprError": "errors",
    "Ask": "strategies.base",
    "Backend": "backends.base",
    "BackendChatModel": "backends.chat_model",
    "Beam": "strategies.beam",
    "BestOfN": "strategies.best_of_n",
    "CompletionsBackend": "backends.completions",
    "Conclusions": "graph.merge",
    "Delta": "backends.base",
    "Event": "trace.events",
    "FirstSuccess": "graph.join",
    "Full": "graph.merge",
    "GRPOConfig": "training.config",
    "Gate": "backends.gate",
    "JoinPolicy": "graph.join",
    "KOfN": "graph.join",
    "Limits": "limits",
    "MergePolicy": "graph.merge",
    "Metrics": "trace.metrics",
    "MonteCarloTreeSearch": "strategies.mcts",
    "Multiverse": "protocols.multiverse",
    "NPR": "protocols.npr",
    "Optimization": "training.config",
    "Outcome": "training.rewards",
    "Outline": "types",
    "ParallelR1": "protocols.parallel_r1",
    "ParallelReasoningMiddleware": "middleware",
    "Prices": "trace.metrics",
    "Reduction": "graph.merge",
    "Request": "backends.base",
    "Reward": "training.rewards",
    "SFTConfig": "training.config",
    "SelfConsistency": "strategies.self_consistency",
    "SkeletonOfThought": "strategies.skeleton_of_thought",
    "Strategy": "strategies.base",
    "Summaries": "graph.merge",
    "TextProtocol": "protocols.base",
    "ThoughtPrompts": "strategies.thoughts",
    "ThreadResult": "types",
    "ThreadWeaver": "protocols.threadweaver",
    "ThreadsTransformer": "graph.streams",
    "ToolCalls": "protocols.tool_calls",
    "TraceBlock": "protocols.base",
    "TraceThread": "protocols.base",
    "Trajectory": "trace.trajectory",
    "TreeOfThoughts": "strategies.tree_of_thoughts",
    "Vote": "graph.join",
    "create_parallel_agent": "graph.build",
    "export_spans": "trace.otel",
    "grpo": "training.pgrpo",
    "recall_tool": "tools",
    "sft": "training.sft",
    "spawn_tool": "tools",
}

__all__ = [
    "APR",
    "NPR",
    "All",
    "AprError",
    "Ask",
    "Backend",
    "BackendChatModel",
    "Beam",
    "BestOfN",
    "CompletionsBackend",
    "Conclusions",
    "Delta",
    "Event",
    "FirstSuccess",
    "Full",
    "GRPOConfig",
    "Gate",
    "JoinPolicy",
    "KOfN",
    "Limits",
    "MergePolicy",
    "Metrics",
    "MonteCarloTreeSearch",
    "Multiverse",
    "Optimization",
    "Outcome",
    "Outline",
    "ParallelR1",
    "ParallelReasoningMiddleware",
    "Prices",
    "Reduction",
    "Request",
    "Reward",
    "SFTConfig",
    "SelfConsistency",
    "SkeletonOfThought",
    "Strategy",
    "Summaries",
    "TextProtocol",
    "ThoughtPrompts",
    "ThreadResult",
    "ThreadWeaver",
    "ThreadsTransformer",
    "ToolCalls",
    "TraceBlock",
    "TraceThread",
    "Trajectory",
    "TreeOfThoughts",
    "Vote",
    "create_parallel_agent",
    "export_spans",
    "grpo",
    "recall_tool",
    "sft",
    "spawn_tool",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
