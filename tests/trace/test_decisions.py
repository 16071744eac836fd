"""Why a run split or did not."""

from __future__ import annotations

from hypothesis import given, settings

from apr_agents.trace.decisions import SplitDecision, decisions
from apr_agents.types import Note, Summary, ThreadResult
from tests.trace.runs import block, call, roots, thread


def test_a_split_tells_what_one_thread_would_have_written() -> None:
    threads = thread("0.1", [call(5, budget=2)]), thread("0.2", [call(9)])
    root = thread("0", [call(10, budget=4, lanes=6), block(*threads), call(7, budget=2)])
    assert decisions(root) == [
        SplitDecision("0", 0, 4, 6, "split", "", 2, tokens=9, otherwise=14),
        SplitDecision("0", 2, 2, None, "alone", "", 0, tokens=7, otherwise=4),
        SplitDecision("0.1", 0, 2, None, "alone", "", 0, tokens=5, otherwise=3),
    ]


def test_a_nested_split_counts_whole_threads_and_longest_chains() -> None:
    inner = thread(
        "0.1", [call(1, budget=2), block(thread("0.1.1", [call(6)]), thread("0.1.2", [call(4)]))]
    )
    root = thread("0", [call(1, budget=4), block(inner, thread("0.2", [call(3)]))])
    outer, nested = decisions(root)
    assert (outer.tokens, outer.otherwise) == (1 + 6, 1 + 6 + 4 + 3)
    assert (nested.tokens, nested.otherwise) == (6, 10)


def test_a_refused_split_says_why() -> None:
    declined = Note(event="declined", why="3 threads asked for, none allowed")
    malformed = Note(event="malformed", why="no numbered outline")
    root = thread("0", [call(4), declined, call(6, budget=3), malformed, call(1)])
    assert [(made.step, made.choice, made.why, made.tokens, made.otherwise) for made in
            decisions(root)] == [
        (0, "declined", "3 threads asked for, none allowed", 4, 4),
        (2, "malformed", "no numbered outline", 6, 2),
    ]  # fmt: skip


def test_a_split_beside_a_refused_call_is_a_split() -> None:
    note = Note(event="malformed", why="asked twice")
    summary = Summary(text="", tokens=1, prompt_tokens=1)
    root = thread("0", [call(4, budget=3), note, summary, block(thread("0.1", [call(2)]))])
    assert [(made.choice, made.why) for made in decisions(root)] == [("split", "")]


def test_a_failed_policy_is_no_decision_to_split() -> None:
    note = Note(event="undecided", why="the join policy raised")
    root = thread("0", [call(4, budget=3), note])
    assert [(made.choice, made.why) for made in decisions(root)] == [("alone", "")]


def test_a_thread_that_may_not_split_has_no_decision() -> None:
    assert decisions(thread("0", [call(4), call(3)])) == []


@settings(max_examples=50)
@given(roots)
def test_a_split_saves_tokens_and_no_other_way_could_cost_more(root: ThreadResult) -> None:
    made = decisions(root)
    assert len({(each.thread, each.step) for each in made}) == len(made)
    for each in made:
        if each.choice == "split":
            assert each.otherwise >= each.tokens
        else:
            assert each.otherwise <= each.tokens
