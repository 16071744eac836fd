"""Self-consistency: what is counted, who wins, and when the rest is stopped."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_agents import Limits, SelfConsistency, create_parallel_agent
from apr_agents.backends.base import Request
from apr_agents.backends.scripted import Reply, ScriptedBackend, TokenClock
from apr_agents.strategies.self_consistency import ballot
from apr_agents.trace.trajectory import Trajectory
from tests.strategies.conftest import WIDE, Rule, Solve


def saying(*answers: Reply | str) -> Rule:
    """The n-th call gives the n-th of these answers."""
    told = iter(answers)
    return lambda prompt: next(told)


# --- what an answer is -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("67", "67"),
        ("25+42 = 67.", "67"),
        ("12-5=7", "7"),
        ("x = -5", "-5"),
        ("It is 1,234.50 dollars", "1234.5"),
        ("007", "7"),
        ("First 3, then 4.\nThe answer is 12 apples.\nI hope this helps: 99", "12"),
        ("**Answer:** 5", "5"),
        ("The final answer is:\n**42**", "42"),
        (r"so \boxed{3} or rather \boxed{\frac{1}{2}} of 9", "2"),
        (r"\boxed{x^{a}+b}", "x^{a}+b"),
        (r"\boxed{open", r"\boxed{open"),
        ("Paris.", "paris"),
        ("I thought of 1789.\nThe answer is Paris", "paris"),
        ("Yes,  it\tis  ", "yes, it is"),
        ("1" * 50, "1" * 50),
        ("", ""),
    ],
)
def test_the_answer_in_a_text(text: str, answer: str) -> None:
    assert ballot(text) == answer


@given(st.text())
def test_every_text_has_an_answer(text: str) -> None:
    assert isinstance(ballot(text), str)


@given(st.integers(-(10**30), 10**30), st.sampled_from(["{}", "{:,}", "{}.0", "so: {}."]))
def test_a_number_is_the_same_however_it_is_written(number: int, form: str) -> None:
    assert ballot(form.format(number)) == str(number)


# --- who wins --------------------------------------------------------------------------


async def test_the_answer_of_most_samples_wins(solve: Solve) -> None:
    run = await solve(SelfConsistency(n=5), saying("It is 5", "4", "I say 4", "6", "= 4"))
    assert run.answer == "4"  # the text of the first that says so
    assert run.asked == [["Q"] * 5]


async def test_of_equal_votes_the_first_answer_wins(solve: Solve) -> None:
    run = await solve(SelfConsistency(n=4), saying("2", "1", "1", "2"))
    assert run.answer == "2"


async def test_another_extraction_counts_other_things(solve: Solve) -> None:
    by_length = SelfConsistency(n=3, extract=lambda text: str(len(text)))
    assert (await solve(by_length, saying("ab", "xyz", "uvw"))).answer == "xyz"


async def test_samples_without_an_answer_have_no_vote(solve: Solve) -> None:
    def extract(text: str) -> str | None:
        return None if text == "none" else str(int(text))

    run = await solve(SelfConsistency(n=5, extract=extract), saying("none", "x", "y", "none", "7"))
    assert run.answer == "7"
    assert len(run.notes) == 2
    assert run.notes[0].startswith("extract raised ValueError")


async def test_where_nobody_votes_the_first_sample_is_taken(solve: Solve) -> None:
    run = await solve(SelfConsistency(n=2, extract=lambda text: None), saying("a", "b"))
    assert run.answer == "a"


async def test_failed_samples_do_not_vote(solve: Solve) -> None:
    broken = Reply("1", fails=RuntimeError("gone"))
    run = await solve(SelfConsistency(n=4), saying(broken, broken, broken, "2"))
    assert run.answer == "2"


# --- the early stop --------------------------------------------------------------------


def on_a_clock(
    answers: list[tuple[str, int]], strategy: SelfConsistency, limits: Limits = WIDE
) -> tuple[Trajectory, int, int]:
    """The run of samples that take so many ticks each, when it is over, and its model calls."""
    clock = TokenClock()

    def script(request: Request) -> str:
        answer, ticks = answers[int(request.key.partition("/")[0].split(".")[1]) - 1]
        return "<a>" * (ticks - 2) + "\n" + answer

    model = ScriptedBackend(script, clock=clock)
    agent = create_parallel_agent(model, strategy=strategy, limits=limits)
    output = agent.invoke({"messages": [("user", "Q")]})
    return Trajectory.model_validate(output["trajectory"]), clock.now, len(model.requests)


def test_samples_that_can_change_nothing_are_stopped() -> None:
    """Three of five agree after 30 ticks; the others would take 1000."""
    answers = [("1", 1000), ("7", 10), ("7", 20), ("8", 1000), ("7", 30)]
    trajectory, ticks, _ = on_a_clock(answers, SelfConsistency(n=5))
    assert ballot(trajectory.answer or "") == "7"
    statuses = [thread.status for thread in trajectory.root.blocks[0].threads]
    assert statuses == ["cancelled", "done", "done", "cancelled", "done"]
    assert ticks < 100


@given(
    said=st.text("abc", min_size=5, max_size=5),
    order=st.permutations([10, 20, 30, 40, 50]),
    most=st.sampled_from([2, 3, 5]),
)
@settings(max_examples=60)
def test_the_early_stop_never_changes_the_answer(said: str, order: list[int], most: int) -> None:
    answers = list(zip(said, order, strict=True))
    trajectory, _, _ = on_a_clock(answers, SelfConsistency(n=5), Limits(max_threads=most))
    done = [
        ballot(thread.conclusion)
        for block in trajectory.root.blocks
        for thread in block.threads
        if thread.status == "done"
    ]
    votes = Counter(said)
    first = max(said, key=votes.__getitem__)
    assert ballot(trajectory.answer or "") == first
    if len(done) < 5:  # what is not known could have changed nothing
        second = max(count for vote, count in [*Counter(done).items(), ("", 0)] if vote != first)
        assert done.count(first) > second + 5 - len(done)


def test_a_second_block_is_not_asked_for_where_the_first_has_decided() -> None:
    answers: list[tuple[str, int]] = [("7", 10)] * 10
    limits = Limits(max_threads=6)
    trajectory, _, calls = on_a_clock(answers, SelfConsistency(n=10), limits)
    assert calls == 6
    assert len(trajectory.root.blocks) == 1


def test_a_vote_of_the_second_block_counts_with_the_first() -> None:
    """The second block alone would be decided for b before its last sample."""
    answers = [
        *zip("aaaab", [10] * 5, strict=True),
        *zip("bbbba", [10, 10, 10, 90, 10], strict=True),
    ]
    trajectory, _, calls = on_a_clock(answers, SelfConsistency(n=10), Limits(max_threads=5))
    assert calls == 10
    assert ballot(trajectory.answer or "") == "a"  # five each, and a was first
