"""A ReAct agent with a calculator that may split its work into threads.

APR_MODEL names its chat model, such as ``openai:gpt-5``. Without it, the bundled model answers
alone, and only sums of arithmetic chains.
"""

import os
from typing import Any

from langchain.agents import create_agent
from langchain.chat_models import init_chat_model
from langgraph.graph.state import CompiledStateGraph

from apr_agents import Limits, ParallelReasoningMiddleware, create_parallel_agent

LIMITS = Limits(max_threads=8, max_concurrency=8, timeout=300)


def calculate(numbers: list[float], operation: str) -> float | str:
    """Work out a sum ("+") or a product ("*") of numbers."""
    if operation not in ("+", "*"):
        return "operation is + or *"
    result = 0.0 if operation == "+" else 1.0
    for number in numbers:
        result = result + number if operation == "+" else result * number
    return result


def build(model: str | None) -> CompiledStateGraph[Any, Any, Any, Any]:
    if model is None:
        return create_parallel_agent("bundled", limits=LIMITS, name="react_parallel")
    chat = init_chat_model(model)
    threads = ParallelReasoningMiddleware(chat, [calculate], limits=LIMITS)
    return create_agent(chat, [calculate], middleware=[threads], name="react_parallel")


graph = build(os.environ.get("APR_MODEL"))
