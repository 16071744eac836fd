"""What is trained is what inference meets: the tries hold the contexts of real runs."""

from __future__ import annotations

import random

import pytest

from apr_agents import Limits, create_parallel_agent
from apr_agents.backends.base import Request
from apr_agents.backends.scripted import ScriptedBackend
from apr_agents.protocols.threadweaver import ThreadWeaver
from apr_agents.tasks.arithmetic import KINDS, demonstrate, format_question
from apr_agents.tasks.base import Demonstration
from apr_agents.training.demonstrations import MergeName, to_trie
from apr_agents.training.tokenizer import build_tokenizer
from apr_agents.training.trie import branches

tokenizer = build_tokenizer()


def encode(text: str) -> list[int]:
    return tokenizer.backend_tokenizer.encode(text).ids


def teacher(shown: Demonstration) -> ScriptedBackend:
    """A model that does just what the demonstration shows."""
    block = shown.block
    ending = f"{shown.thinking}\n</think>\n{shown.answer}"

    def script(request: Request) -> str:
        thread, call = request.key.split("/")
        if block is None:
            return ending
        if thread == "0":
            opening = ThreadWeaver().block(block.outlines)
            return opening if call == "0" else f"</Parallel>\n{ending}"
        index = int(thread.split(".")[1]) - 1
        if "</Conclusion>" in request.stops:
            return f"{block.conclusions[index]}</Conclusion>"
        return f"{block.threads[index]}</Thread>"

    return ScriptedBackend(script)


@pytest.mark.parametrize("merge", ["conclusions", "full", "summary"])
@pytest.mark.parametrize(("kind", "budget"), [("wide", 8), ("wide", 2), ("chain", 4), ("whole", 0)])
async def test_every_context_of_a_run_is_a_branch_of_its_trie(
    merge: MergeName, kind: str, budget: int
) -> None:
    shown = demonstrate(format_question(KINDS[kind](random.Random(3))), budget)
    backend = teacher(shown)
    agent = create_parallel_agent(
        backend, merge=merge, limits=Limits(max_threads=budget, max_depth=1)
    )
    answered = await agent.ainvoke({"messages": [("user", shown.question)]})
    assert answered["messages"][-1].content == shown.answer

    trie = to_trie(
        shown, encode, eos_id=tokenizer.eos_token_id, merge=merge, summaries=merge == "summary"
    )
    trained = {tuple(context) for context, _ in branches(trie)}
    # A thread's closing tag is a segment of its own, behind the thread's text.
    met = {tuple(encode(request.prompt)) for request in backend.requests}
    assert met <= trained
    assert len(met) == len(backend.requests)


def test_what_was_joined_is_never_a_target() -> None:
    shown = demonstrate(format_question(KINDS["wide"](random.Random(5))), 8)
    assert shown.block is not None
    trie = to_trie(shown, encode, eos_id=tokenizer.eos_token_id, merge="full")
    written = [tokenizer.decode(completion) for _, completion in branches(trie)]
    for text in shown.block.threads:
        assert sum(text in completion for completion in written) == 1
