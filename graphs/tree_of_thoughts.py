"""A tree of thoughts: proposes steps, judges them, keeps the best three, and answers from the best.

APR_MODEL names the chat model, such as ``openai:gpt-5``; without it, the graph only says so.
"""

import os

from langchain_core.language_models import FakeListChatModel

from apr_agents import Limits, TreeOfThoughts, create_parallel_agent

UNSET = "Set APR_MODEL to a chat model, such as openai:gpt-5."

graph = create_parallel_agent(
    os.environ.get("APR_MODEL") or FakeListChatModel(responses=[UNSET]),
    strategy=TreeOfThoughts(depth=3, branch=4, width=3),
    limits=Limits(max_threads=16, max_total_threads=100, max_concurrency=16, timeout=600),
    name="tree_of_thoughts",
)
