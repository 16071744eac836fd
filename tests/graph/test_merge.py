"""What a parent sees of its threads, and that nothing they wrote is lost."""

from __future__ import annotations

from typing import Any

import pytest

from apr_agents.backends.scripted import Reply
from apr_agents.errors import InvalidOption
from apr_agents.graph.build import create_parallel_agent
from apr_agents.graph.merge import (
    LONGEST_CONCLUSION,
    Conclusions,
    Full,
    Summaries,
    resolve_merge,
    show,
)
from apr_agents.protocols.base import Shown
from apr_agents.types import Call, Outline, ThreadResult

END = "\n</Parallel>\n</think>\n4"


@pytest.fixture
def replies(outlines: Any) -> dict[str, Reply | str]:
    return {
        "0/0": outlines("a", "b"),
        "0.1/0": " 12*7\n=84\n</Thread>",
        "0.1/1": "It is 84.</Conclusion> and more",
        "0.2/0": " 5+2\n<Conclusion>seven</Conclusion>",
        "0.2/1": "Seven",
        "0/2": END,
    }


JOINED = {
    "full": (
        "\n<Thread>\n1: 12*7\n=84\n</Thread>"
        "<Thread>\n2: 5+2\n<Conclusion>seven</Conclusion></Thread>"
    ),
    "conclusions": "\n<Thread>\n1: =84</Thread><Thread>\n2: seven</Thread>",
    "summary": "\n<Thread>\n1: It is 84.</Thread><Thread>\n2: Seven</Thread>",
}


@pytest.mark.parametrize("merge", JOINED)
async def test_each_policy_shows_its_part_and_keeps_every_transcript(
    ask: Any, scripted: Any, replies: Any, merge: str
) -> None:
    backend = scripted(replies)
    run = await ask(create_parallel_agent(backend, merge=merge))
    assert (run.answer, run.merge) == ("4", merge)
    assert run.root.blocks[0].joined == JOINED[merge]
    assert backend.requests[-1].prompt.endswith(f"</Outlines>{JOINED[merge]}")
    threads = run.threads()
    assert threads["0.1"].transcript == " 12*7\n=84\n"
    assert threads["0.2"].transcript == " 5+2\n<Conclusion>seven</Conclusion>"


async def test_results_only_are_the_default(ask: Any, scripted: Any, replies: Any) -> None:
    run = await ask(create_parallel_agent(scripted(replies)))
    assert run.merge == "conclusions"


async def test_a_summary_continues_the_threads_own_context_within_its_tokens(
    ask: Any, scripted: Any, replies: Any
) -> None:
    backend = scripted({**replies, "0.2/1": "word " * 50})
    run = await ask(create_parallel_agent(backend, merge=Summaries(summary_tokens=6)))
    asked = {request.key: request for request in backend.requests}
    assert asked["0.1/1"].prompt == asked["0.1/0"].prompt + " 12*7\n=84\n\n<Conclusion>"
    assert asked["0.1/1"].stops == ("</Conclusion>",)
    assert asked["0.1/1"].max_tokens == 6
    thread = run.threads()["0.2"]
    assert thread.conclusion == "word word word"
    assert thread.steps[-1].kind == "summary"
    assert thread.tokens == sum(step.tokens for step in thread.steps)


async def test_only_threads_that_are_done_are_summed_up(
    ask: Any, scripted: Any, replies: Any
) -> None:
    backend = scripted({**replies, "0.1/0": Reply(" x", fails=OSError("gone"))})
    run = await ask(create_parallel_agent(backend, merge="summary"))
    assert [request.key for request in backend.requests if request.key.endswith("/1")] == ["0.2/1"]
    assert "1: (failed: OSError: gone)</Thread>" in run.root.blocks[0].joined


async def test_an_empty_summary_leaves_the_thread_its_own_conclusion(
    ask: Any, scripted: Any, replies: Any
) -> None:
    run = await ask(
        create_parallel_agent(scripted({**replies, "0.1/1": " </Conclusion>"}), merge="summary")
    )
    assert run.threads()["0.1"].conclusion == "=84"


async def test_a_policy_of_ones_own_is_used(ask: Any, scripted: Any, replies: Any) -> None:
    class Lengths:
        name = "lengths"
        summary_tokens = None

        def show(self, result: ThreadResult) -> tuple[str, bool]:
            return f"{len(result.transcript)} characters", False

    run = await ask(create_parallel_agent(scripted(replies), merge=Lengths()))
    assert run.merge == "lengths"
    assert "1: 10 characters</Thread>" in run.root.blocks[0].joined


def result(**changes: Any) -> ThreadResult:
    steps = [Call(text=" text", tokens=1, prompt_tokens=1)]
    data = {"id": "0.1", "outline": Outline("1", "a"), "status": "done", "conclusion": "c"}
    return ThreadResult(**{**data, "tokens": 1, "seconds": 0.0, "steps": steps, **changes})


def test_of_a_long_conclusion_the_end_is_shown() -> None:
    long = "x" * LONGEST_CONCLUSION
    assert show(Conclusions(), result(conclusion=long)).text == long
    shown = show(Conclusions(), result(conclusion="y" + long))
    assert shown == Shown("1", "…" + long)


@pytest.mark.parametrize("policy", [Full(), Conclusions(), Summaries()])
def test_a_thread_that_is_not_done_is_told_in_one_line(policy: Any) -> None:
    shown = show(policy, result(status="cancelled", reason="not needed"))
    assert shown == Shown("1", "(cancelled: not needed)")


def test_policies_are_found_by_name() -> None:
    assert resolve_merge("full") == Full()
    assert resolve_merge(None) == Conclusions()
    assert resolve_merge(Summaries(summary_tokens=5)).summary_tokens == 5
    with pytest.raises(InvalidOption, match="one of conclusions, full, summary"):
        resolve_merge("best")
