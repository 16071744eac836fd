"""What runs are worth, by hand, and that nothing else than a shorter path to the answer pays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_agents.training.rewards import (
    REWARDS,
    Correctness,
    Outcome,
    ParallelEfficiency,
    Reward,
    UsefulEfficiency,
    repetitions,
    useful_tokens,
)
from tests.training.records import thread

LEFT = "first we add the apples and the pears of the left basket: 12 + 7 = 19"
RIGHT = "now the cherries of the other one, of which some were eaten: 40 - 22 = 18"
ALONE = thread(f"{LEFT} {RIGHT}", 100)
SPLIT = thread("let us split", 20, thread(LEFT, 40), thread(RIGHT, 50), then=10)
"""Critical path 20 + 50 + 10 = 80 of 120 tokens."""

REWARDED: list[Reward] = [ParallelEfficiency(), UsefulEfficiency()]


def test_the_reward_of_the_paper_by_hand() -> None:
    reward = ParallelEfficiency(rho=0.5, clip=0.2)
    split, alone, wrong = reward(
        [Outcome(SPLIT, True), Outcome(ALONE, True), Outcome(SPLIT, False)]
    )
    assert split == pytest.approx(1 + 0.5 * (1 - 80 / 120))
    assert alone == 1
    assert wrong == 0
    wide = thread("", 10, *(thread(f"{LEFT} {i}", 100) for i in range(9)), then=0)
    assert reward([Outcome(wide, True)]) == [1 + 0.2]


@pytest.mark.parametrize("reward", REWARDED)
def test_a_wrong_answer_earns_nothing_for_speed(reward: Reward) -> None:
    assert reward([Outcome(SPLIT, False), Outcome(None, False)]) == [0, 0]


def test_threads_for_their_own_sake_earn_nothing() -> None:
    junk = [
        thread(f"{i} is a number that nobody asked about, {i * i} is another", 50) for i in range(8)
    ]
    spam = thread("let us split", 20, *SPLIT.blocks[0].threads, *junk, then=10)
    judge = UsefulEfficiency(rho=0.5, clip=1.0)
    honest, spammed = judge([Outcome(SPLIT, True), Outcome(spam, True)])
    assert spammed <= honest
    # The formula of the paper pays for it.
    paid, overpaid = ParallelEfficiency(rho=0.5, clip=1.0)(
        [Outcome(SPLIT, True), Outcome(spam, True)]
    )
    assert overpaid > paid


def test_a_thread_that_repeats_a_sibling_is_caught() -> None:
    twice = thread("let us split", 20, thread(LEFT, 40), thread(f"Again: {LEFT}", 42), then=10)
    assert repetitions(twice.blocks[0].threads) == [False, True]
    assert repetitions(SPLIT.blocks[0].threads) == [False, False]
    assert useful_tokens(twice) == 20 + 40 + 10
    # All there is to do lies on its critical path.
    assert UsefulEfficiency()([Outcome(twice, True)]) == [1.0]


def test_threads_that_come_to_nothing_are_no_work_saved() -> None:
    stopped = thread(RIGHT, 50, status="over_budget")
    run = thread("let us split", 20, thread(LEFT, 40), stopped, then=10)
    assert useful_tokens(run) == 70
    nested = thread("a", 1, thread("b", 2, stopped, thread(LEFT, 40), then=3), then=4)
    assert useful_tokens(nested) == 1 + 2 + 40 + 3 + 4


def test_work_is_the_least_with_which_a_run_of_the_group_was_right() -> None:
    split, alone, _ = UsefulEfficiency(rho=0.5, clip=1.0)(
        [Outcome(SPLIT, True), Outcome(ALONE, True), Outcome(thread("7", 1), False)]
    )
    assert split == pytest.approx(1 + 0.5 * (1 - 80 / 100))
    assert alone == 1


@pytest.mark.parametrize("reward", REWARDED)
def test_threads_have_their_price_but_a_right_answer_stays_worth_more(reward: Reward) -> None:
    free, priced, dear = reward(
        [Outcome(SPLIT, True), Outcome(SPLIT, True, 0.02), Outcome(SPLIT, True, 5.0)]
    )
    assert priced == pytest.approx(free - 2 * 0.02)
    assert dear == pytest.approx(1 - 0.2)


def test_correctness_alone_knows_no_speed() -> None:
    assert Correctness()([Outcome(SPLIT, True), Outcome(ALONE, True), Outcome(None, False)]) == [
        1, 1, 0,
    ]  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 90), st.booleans(), st.floats(0, 9)), min_size=1))
def test_no_wrong_answer_is_worth_as_much_as_a_right_one(
    runs: list[tuple[int, bool, float]],
) -> None:
    outcomes = [
        Outcome(thread("x", size, thread(LEFT, size), thread(RIGHT, 3 * size)), correct, price)
        for size, correct, price in runs
    ]
    for kind in REWARDS.values():
        for outcome, worth in zip(outcomes, kind()(outcomes), strict=True):
            assert 0.8 <= worth <= 1.2 if outcome.correct else worth == 0
