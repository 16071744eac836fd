"""Answers questions about a folder of text files; threads read at the same time.

APR_MODEL names the chat model, such as ``openai:gpt-5``; without it, the graph only says so.
APR_ROOT is the folder, by default the working directory. Nothing outside it can be read.
"""

import os
import runpy
from pathlib import Path

from langchain_core.language_models import FakeListChatModel

from apr_agents import Limits, create_parallel_agent, recall_tool

FILES = Path(__file__).parents[1] / "tools" / "files.py"
UNSET = "Set APR_MODEL to a chat model that calls tools, such as openai:gpt-5."
PROMPT = (
    "Answer from the files alone, and say which lines support what you say. Search first; where "
    "several files matter, have each read by a thread of its own."
)

graph = create_parallel_agent(
    os.environ.get("APR_MODEL") or FakeListChatModel(responses=[UNSET]),
    [*runpy.run_path(str(FILES))["file_tools"](os.environ.get("APR_ROOT", ".")), recall_tool()],
    system_prompt=PROMPT,
    limits=Limits(max_threads=8, max_concurrency=8, timeout=300),
    name="research_over_files",
)
