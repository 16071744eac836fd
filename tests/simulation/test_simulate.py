"""The real graph on the simulated model."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_agents.errors import InvalidOption
from apr_agents.simulation.scenario import Hardware, Scenario, Workload
from apr_agents.simulation.simulate import percentile, simulate

SLOW = Hardware(prefill=1.0, decode=1.0)
"""A token a second, read or written."""

TWO = Workload(parts=2, tokens=16, prompt=10)

QUESTION = 8 + 1 + 10 + 1 + 4 + 3
"""1: parts 1-2 · \\n · the dots · \\n · Threads: 2 · \\n<think>\\n"""
OUTLINES = 4 + 2 * (4 + 10 + 2) + 1
"""<Parallel>\\n<Outlines>\\n · <Outline>1: · 1: parts 1-1 apart · </Outline>\\n · </Outlines>"""
HEADER = 5
"""\\n<Thread>\\n1:"""
NUMBER = 2
"""2: · what the headers of two threads do not share"""
THREAD = 16 + 3
"""the dots · \\n1</Thread>"""
JOIN = 1 + 2 * 7
"""\\n · <Thread>\\n1: 1</Thread>"""
ANSWER = 3 + 3 + 4
"""\\n</Parallel>\\n · 1+1 · \\n</think>\\n2"""


def test_a_sequential_run_takes_its_question_and_its_tokens() -> None:
    alone = simulate(Scenario(strategy="sequential", workload=TWO, hardware=SLOW))
    written = 2 * 16 + 4  # and \n</think>\n2
    assert alone.critical_path == alone.total_tokens == written
    assert alone.latency_p50 == alone.makespan == QUESTION + written
    assert alone.utilisation == 1 / 8
    assert (alone.threads, alone.accuracy, alone.prefix_hits, alone.queued) == (0, 1, 0, 0)


def test_an_adaptive_run_takes_its_longest_chain_and_prefills_what_is_new() -> None:
    split = simulate(Scenario(workload=TWO, hardware=SLOW))
    assert split.threads == 2
    assert split.critical_path == OUTLINES + THREAD + ANSWER
    assert split.total_tokens == OUTLINES + 2 * THREAD + ANSWER
    # The join begins as the first thread did, so its header is known by then.
    new = QUESTION + HEADER + (JOIN - HEADER)
    assert split.latency_p50 == new + split.critical_path
    read = QUESTION + 2 * (QUESTION + OUTLINES + HEADER) + (QUESTION + OUTLINES + JOIN)
    assert split.prefix_hits == pytest.approx(1 - (new + HEADER) / read)
    assert split.accuracy == 1


def test_with_one_lane_threads_run_one_by_one() -> None:
    one = simulate(Scenario(workload=TWO, hardware=Hardware(lanes=1, prefill=1.0, decode=1.0)))
    many = simulate(Scenario(workload=TWO, hardware=SLOW))
    assert one.critical_path == many.critical_path
    assert one.makespan == many.makespan + NUMBER + THREAD  # the other header is known by then
    assert one.utilisation == 1
    assert one.queued == (HEADER + THREAD) / 4


def test_threads_that_see_their_outline_only_read_less() -> None:
    isolated = simulate(Scenario(workload=TWO, hardware=SLOW, isolated=True))
    prefix = simulate(Scenario(workload=TWO, hardware=SLOW))
    assert isolated.accuracy == 1
    assert isolated.prefix_hits < prefix.prefix_hits


def work(**options: Any) -> Workload:
    return Workload(**{"parts": 8, "tokens": 2000, **options})


@pytest.mark.parametrize("threads", [1, 2, 4, 8, 16])
def test_the_critical_path_falls_as_threads_are_added_up_to_the_number_of_parts(
    threads: int,
) -> None:
    alone = simulate(Scenario(strategy="sequential", workload=work()))
    split = simulate(Scenario(threads=threads, workload=work()))
    ideal = 1 / min(threads, 8)
    assert ideal <= split.critical_path / alone.critical_path <= 1.1 * ideal
    assert split.latency_p50 / alone.latency_p50 <= 1.1 * ideal


@pytest.mark.parametrize("isolated", [False, True])
def test_a_chain_is_not_split_and_takes_what_it_takes_alone(isolated: bool) -> None:
    chain = work(share=0.0)
    alone = simulate(Scenario(strategy="sequential", workload=chain))
    split = simulate(Scenario(workload=chain, isolated=isolated))
    assert split.threads == 0
    assert split.critical_path == alone.critical_path


def test_what_must_be_done_in_order_bounds_the_gain() -> None:
    alone = simulate(Scenario(strategy="sequential", workload=work()))
    half = simulate(Scenario(workload=work(share=0.5)))
    amdahl = 0.5 + 0.5 / 8
    assert amdahl <= half.critical_path / alone.critical_path <= 1.05 * amdahl


def test_a_short_context_errs_less_and_a_vote_less_still() -> None:
    rotting = Workload(parts=8, tokens=200, prompt=20, error=2e-5, rot=50)
    users: dict[str, Any] = {"users": 100, "workload": rotting, "hardware": Hardware(lanes=2000)}
    alone, split, vote = (
        simulate(Scenario(strategy=strategy, **users))
        for strategy in ("sequential", "adaptive", "self_consistency")
    )
    assert alone.accuracy + 0.1 < split.accuracy < vote.accuracy
    assert (vote.threads, vote.critical_path) == (8, alone.critical_path)
    assert vote.total_tokens == 8 * alone.total_tokens


def test_a_vote_stops_the_samples_that_can_change_nothing() -> None:
    alone = simulate(Scenario(strategy="sequential"))
    vote = simulate(Scenario(strategy="self_consistency", samples=9, hardware=Hardware(lanes=5)))
    assert vote.total_tokens == 5 * alone.total_tokens
    assert vote.makespan == pytest.approx(alone.makespan)


def test_threads_take_the_lanes_that_are_free() -> None:
    hardware = Hardware(lanes=5)
    one = simulate(Scenario(threads="auto", hardware=hardware))
    many = simulate(Scenario(threads="auto", hardware=hardware, users=9, arrivals=0.1))
    assert one.threads == 5
    assert 0 < many.threads < 5


def test_a_question_may_take_so_long_and_no_longer() -> None:
    cut = simulate(Scenario(strategy="sequential", timeout=20.0))
    assert cut.latency_p50 == pytest.approx(20)
    assert cut.accuracy == 0


def test_users_who_come_one_by_one_do_not_wait_for_each_other() -> None:
    rare = simulate(Scenario(users=20, arrivals=0.001, workload=TWO))
    at_once = simulate(Scenario(users=20, workload=TWO))
    assert (rare.queued, at_once.queued > 0) == (0, True)
    assert rare.latency_p99 < at_once.latency_p99
    assert rare.makespan > 1000


def test_the_same_scenario_has_the_same_outcome_and_another_seed_another_one() -> None:
    rotting = Workload(error=1e-4)
    scenario = Scenario(users=20, arrivals=0.1, workload=rotting)
    assert simulate(scenario) == simulate(scenario)
    other = Scenario(users=20, arrivals=0.1, workload=rotting, seed=1)
    assert simulate(other) != simulate(scenario)


def test_a_run_of_two_thousand_threads() -> None:
    wide = Workload(parts=1600, tokens=50)
    split = simulate(
        Scenario(
            threads=40, max_depth=2, isolated=True, workload=wide, hardware=Hardware(lanes=2000)
        )
    )
    assert split.threads == 40 + 1600
    assert split.accuracy == 1
    assert split.critical_path < 0.03 * 1600 * 50


def test_a_thousand_users() -> None:
    crowd = Workload(parts=2, tokens=20, prompt=20)
    served = simulate(Scenario(users=1000, workload=crowd, hardware=Hardware(lanes=64)))
    assert (served.threads, served.accuracy) == (2, 1)
    assert served.utilisation > 0.95
    assert served.latency_p50 <= served.latency_p95 <= served.latency_p99 <= served.makespan


@settings(max_examples=50)
@given(
    strategy=st.sampled_from(["adaptive", "sequential", "self_consistency"]),
    parts=st.integers(1, 6),
    share=st.floats(0, 1),
    threads=st.integers(0, 6),
    lanes=st.integers(1, 4),
    slowdown=st.sampled_from([0.0, 0.5, 1.0]),
    isolated=st.booleans(),
    merge=st.sampled_from(["conclusions", "full", "sum"]),
)
def test_whatever_the_shape_the_sums_are_right(
    parts: int, share: float, lanes: int, slowdown: float, **options: Any
) -> None:
    outcome = simulate(
        Scenario(
            users=2,
            workload=Workload(parts=parts, tokens=10, share=share),
            hardware=Hardware(lanes=lanes, slowdown=slowdown),
            **options,
        )
    )
    assert outcome.accuracy == 1
    assert outcome.critical_path <= outcome.total_tokens
    assert 0 < outcome.utilisation <= 1 + 1e-9
    assert all(value >= 0 for value in asdict(outcome).values())


def test_a_percentile_is_a_value_that_so_many_do_not_exceed() -> None:
    values = [float(i) for i in range(20, 0, -1)]
    assert [percentile(values, p) for p in (1, 50, 95, 99, 100)] == [1, 10, 19, 20, 20]
    assert percentile([3.0], 99) == 3


@pytest.mark.parametrize(
    "option",
    [{"strategy": "mcts"}, {"users": 0}, {"arrivals": 0.0}, {"timeout": float("nan")}],
)
def test_a_scenario_that_cannot_be_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match=next(iter(option))):
        Scenario(**option)
