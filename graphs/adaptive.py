"""The bundled model, free to split: one graph over messages.

langgraph.json names it, so that LangGraph's server finds it.
"""

from apr_agents import Limits, create_parallel_agent

graph = create_parallel_agent(
    "bundled",
    limits=Limits(max_threads=8, max_concurrency=8, timeout=120),
    name="adaptive",
)
