"""What a parent sees of its threads, and that nothing they wrote is lost."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_agents.backends.scripted import Reply
from apr_agents.backends.scripted import tokens as scripted_tokens
from apr_agents.errors import InvalidOption
from apr_agents.graph.build import create_parallel_agent
from apr_agents.graph.merge import (
    POLICIES,
    Conclusions,
    Full,
    MergePolicy,
    Summaries,
    fit,
    resolve_merge,
    shortened,
    show,
)
from apr_agents.protocols.base import Shown
from apr_agents.protocols.threadweaver import ThreadWeaver
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
    class Lengths(MergePolicy):
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


def tail(text: str, count: int) -> str:
    return "".join(scripted_tokens(text)[-count:]) if count > 0 else ""


def count(text: str) -> int:
    return len(scripted_tokens(text))


def fitted(shown: list[Shown], room: int) -> str:
    return fit(shown, room, join=ThreadWeaver().join, count=count, tail=tail)


def test_a_join_that_fits_is_left_alone() -> None:
    shown = [Shown("1", "a b"), Shown("2", "c")]
    assert fitted(shown, 100) == ThreadWeaver().join(shown)


@given(lengths=st.lists(st.integers(0, 60), min_size=1, max_size=12), room=st.integers(1, 300))
def test_a_join_never_takes_more_than_its_room(lengths: list[int], room: int) -> None:
    shown = [Shown(str(i), "w " * length) for i, length in enumerate(lengths, 1)]
    assert len(scripted_tokens(fitted(shown, room))) <= room


def test_short_texts_leave_their_share_to_long_ones_whose_ends_are_shown() -> None:
    shown = [Shown("1", "short"), Shown("2", "x " * 100 + "the end")]
    text = fitted(shown, 60)
    assert "1: short</Thread>" in text
    assert "2: …" in text
    assert text.endswith("x the end</Thread>")
    assert 55 <= len(scripted_tokens(text)) <= 60


def test_more_threads_than_can_be_shown_are_counted() -> None:
    shown = [Shown(str(i), "text") for i in range(100)]
    assert "100 results:\n100 × text" in fitted(shown, 40)
    different = [Shown(str(i), f"text {i}") for i in range(100)]
    assert "100 results, too many to be shown here" in fitted(different, 40)


@given(
    words=st.lists(st.sampled_from(["a", "longer", "b\n"]), max_size=200), room=st.integers(1, 120)
)
def test_a_text_that_is_too_long_loses_its_middle_to_the_token(words: list[str], room: int) -> None:
    text = " ".join(words)
    cut = shortened(text, room, count=count, tail=tail)
    if count(text) <= room:
        assert cut == text
        return
    assert count(cut) <= room
    if said := re.search(r"\n\[… (\d+) of (\d+) tokens are left out here …\]\n", cut):
        start, end = cut[: said.start()], cut[said.end() :]
        assert text.startswith(start)
        assert text.endswith(end)
        assert count(start) + count(end) == count(text) - int(said[1])
        assert int(said[2]) == count(text)
    else:  # there is no room to say it
        assert room < 30
        assert text.endswith(cut)


@pytest.mark.parametrize("policy", [Full(), Conclusions(), Summaries()])
def test_a_thread_that_is_not_done_is_told_in_one_line(policy: Any) -> None:
    shown = show(policy, [result(status="failed", reason="no\nmore")], None)
    assert shown == [Shown("1", "(failed: no more)", id="0.1", asked="a")]


@pytest.mark.parametrize(
    ("name", "conclusions", "reduced"),
    [
        ("count", ["a", "b", "a "], "2 × a\n1 × b"),
        ("union", ["x, y", "y\nz"], "x, y, z"),
        ("sum", ["1", "-2.5", " 3"], "1.5"),
    ],
)
def test_conclusions_are_reduced_by_a_rule(name: str, conclusions: list[str], reduced: str) -> None:
    results = [
        result(id=f"0.{i}", outline=Outline(str(i), "a"), conclusion=text)
        for i, text in enumerate(conclusions, 1)
    ]
    failed = result(id="0.9", outline=Outline("9", "b"), status="failed", reason="gone")
    shown = show(POLICIES[name], [*results, failed], None)
    assert [one.text for one in shown] == [reduced, "(failed: gone)"]


def test_conclusions_to_which_a_rule_does_not_apply_are_shown() -> None:
    shown = show(POLICIES["sum"], [result(conclusion="1"), result(conclusion="two")], None)
    assert [one.text for one in shown] == ["1", "two"]


def test_policies_are_found_by_name() -> None:
    assert resolve_merge("full") == Full()
    assert resolve_merge(None) == Conclusions()
    assert resolve_merge(Summaries(summary_tokens=5)).summary_tokens == 5
    with pytest.raises(InvalidOption, match="one of conclusions, count, full, sum"):
        resolve_merge("best")
