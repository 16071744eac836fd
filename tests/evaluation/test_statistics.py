from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_agents.evaluation.statistics import Estimate, bootstrap, paired, pareto

numbers = st.floats(-1e6, 1e6)
samples = st.lists(numbers, min_size=1, max_size=20)
seeds = st.integers(0, 2**32)


def test_one_value_or_equal_values_leave_no_doubt() -> None:
    assert bootstrap([3.0], seed=1) == (3.0, 3.0, 3.0)
    assert bootstrap([2.0] * 7, seed=1) == (2.0, 2.0, 2.0)


def test_the_interval_of_two_values_is_as_by_hand() -> None:
    # Drawn anew, 0 and 1 give the means 0, ½ and 1 with chances ¼, ½ and ¼: more than 2.5 % each.
    assert bootstrap([0.0, 1.0], seed=5) == (0.5, 0.0, 1.0)


def test_a_rare_event_has_the_interval_of_the_binomial_distribution() -> None:
    # 1 of 10 right: the number of right ones drawn is binomial (10, 0.1), which is at most 3 with
    # a chance of 98.7 %, at most 2 with one of 93.0 %, and 0 with one of 34.9 %.
    assert bootstrap([1.0] + [0.0] * 9, seed=0) == pytest.approx((0.1, 0.0, 0.3))


@given(samples, seeds)
def test_an_interval_lies_within_the_values_and_repeats(values: list[float], seed: int) -> None:
    found = bootstrap(values, seed=seed)
    slack = 1e-9 * max(map(abs, values))
    assert min(values) - slack <= found.low <= found.high <= max(values) + slack
    assert found == bootstrap(values, seed=seed)


@given(samples, st.floats(-100, 100), seeds)
def test_an_interval_moves_with_its_values(values: list[float], by: float, seed: int) -> None:
    moved = bootstrap([value + by for value in values], seed=seed)
    expected = Estimate(*(bound + by for bound in bootstrap(values, seed=seed)))
    assert moved == pytest.approx(expected, abs=1e-6)


def test_a_paired_difference_counts_problems_that_both_have() -> None:
    assert paired([5.0, None, 3.0], [4.0, 1.0, None], seed=0) == (1.0, 1.0, 1.0)
    assert paired([None, 1.0], [1.0, None], seed=0) is None


def test_pairing_sees_a_difference_that_the_spread_of_the_problems_hides() -> None:
    easy_and_hard = [10.0, 200.0, 3000.0, 40000.0]
    shorter = [value - 1 for value in easy_and_hard]
    assert paired(shorter, easy_and_hard, seed=3) == (-1.0, -1.0, -1.0)
    ours, theirs = bootstrap(shorter, seed=3), bootstrap(easy_and_hard, seed=3)
    assert ours.low < theirs.low < ours.high  # they overlap


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=20), seeds)
def test_a_difference_the_other_way_round_is_its_negative(
    pairs: list[tuple[float, float]], seed: int
) -> None:
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    there, back = paired(ours, theirs, seed=seed), paired(theirs, ours, seed=seed)
    assert there is not None
    assert back is not None
    assert there == pytest.approx((-back.mean, -back.high, -back.low), abs=1e-6)


def test_a_front_is_as_by_hand() -> None:
    points = [(3.0, 0.9), (1.0, 0.5), (2.0, 0.4), (3.0, 0.8), (9.0, 0.9), (1.0, 0.5), (4.0, 0.95)]
    assert pareto(points) == [1, 5, 0, 6]


points = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20)


@given(points)
def test_a_front_holds_what_nothing_beats_and_only_that(points: list[tuple[int, int]]) -> None:
    def beats(one: tuple[int, int], other: tuple[int, int]) -> bool:
        return one[0] <= other[0] and one[1] >= other[1] and one != other

    unbeaten = [i for i, p in enumerate(points) if not any(beats(other, p) for other in points)]
    front = pareto(points)
    assert sorted(front) == unbeaten
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)
