"""A ReAct agent with a calculator that may split its work into threads.

APR_MODEL names its chat model, such as ``openai:gpt-5``. Without it the bundled model answers
alone, and knows nothing but sums of arithmetic chains.
"""

import os
import runpy
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain.chat_models import init_chat_model
from langgraph.graph.state import CompiledStateGraph

from apr_agents import Limits, ParallelReasoningMiddleware, create_parallel_agent

CALCULATOR = Path(__file__).parents[1] / "tools" / "calculator.py"
LIMITS = Limits(max_threads=8, max_concurrency=8, timeout=300)


def build(model: str | None) -> CompiledStateGraph[Any, Any, Any, Any]:
    if not model:
        return create_parallel_agent("bundled", limits=LIMITS, name="react_parallel")
    chat, tools = init_chat_model(model), runpy.run_path(str(CALCULATOR))["tools"]
    threads = ParallelReasoningMiddleware(chat, tools, limits=LIMITS)
    return create_agent(chat, tools, middleware=[threads], name="react_parallel")


graph = build(os.environ.get("APR_MODEL"))
