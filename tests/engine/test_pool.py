"""The pool: no slot twice, none lost, gaps join; keys and values stay where they are put."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from apr_agents.engine.pool import Pool, Run, append, length_of, slots_of, split

CPU = torch.device("cpu")

# Runs that do not touch each other, for what works on runs alone.
apart = st.lists(st.integers(1, 6), max_size=8).map(
    lambda lengths: [Run(10 * place, length) for place, length in enumerate(lengths)]
)


def slots(runs: list[Run]) -> list[int]:
    return [slot for run in runs for slot in range(run.start, run.end)]


class PoolAgainstASet(RuleBasedStateMachine):
    """The pool, and beside it the set of slots that are taken."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(40)
        self.taken: list[Run] = []

    @rule(length=st.integers(0, 45), data=st.data())
    def take(self, length: int, data: st.DataObject) -> None:
        used = set(slots(self.taken))
        free = set(range(40)) - used
        after = data.draw(st.sampled_from([None, *(run.end for run in self.taken)]))
        run = self.pool.take(length, after=after)
        if run is None:
            assert not free or length < 1
            return
        assert 1 <= run.length <= length
        assert set(slots([run])) <= free
        if after in free:
            assert run.start == after
        else:  # as much as lies side by side anywhere
            longest = max(
                len(word) for word in "".join(".#"[s in used] for s in range(40)).split("#")
            )
            assert run.length == min(length, longest)
        self.taken.append(run)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        run = self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))
        kept = data.draw(st.integers(0, run.length))
        self.pool.give_back(run.cut(kept, run.length))
        if kept:
            self.taken.append(run.cut(0, kept))

    @invariant()
    def every_slot_is_either_free_or_taken_once(self) -> None:
        used = slots(self.taken)
        assert len(used) == len(set(used))
        assert self.pool.free == 40 - len(used)

    def teardown(self) -> None:
        for run in self.taken:
            self.pool.give_back(run)
        assert self.pool.take(40) == Run(0, 40)


TestPoolAgainstASet = PoolAgainstASet.TestCase


def test_a_run_goes_on_behind_its_end_where_that_is_free() -> None:
    pool = Pool(30)
    first = pool.take(5)
    assert first == Run(0, 5)
    assert pool.take(5, after=first.end) == Run(5, 5)
    assert pool.take(5, after=first.end) == Run(10, 5)


def test_the_smallest_gap_that_is_large_enough_is_used() -> None:
    pool = Pool(30)
    pool.take(30)
    for gap in (Run(0, 9), Run(12, 4), Run(20, 6)):
        pool.give_back(gap)
    assert pool.take(4) == Run(12, 4)
    assert pool.take(20) == Run(0, 9)


def test_the_first_token_of_a_layer_decides_what_a_slot_holds() -> None:
    pool = Pool(8)
    for layer, (heads, width) in enumerate([(2, 4), (1, 6)]):
        key = torch.randn(3, heads, width)
        value = torch.randn(3, heads, 5)
        pool.store(layer, torch.tensor([6, 0, 3]), key, value)
        assert torch.equal(pool.keys[layer][[6, 0, 3]], key)
        assert torch.equal(pool.values[layer][[6, 0, 3]], value)
        assert pool.slot_bytes(layer) == 4 * heads * (width + 5)


@given(apart, st.integers(0, 50))
def test_split_runs_are_the_same_slots(runs: list[Run], count: int) -> None:
    first, others = split(runs, count)
    assert slots(first) + slots(others) == slots(runs)
    assert length_of(first) == min(count, length_of(runs))
    assert all(run.length for run in first + others)


@given(st.lists(st.integers(0, 30), unique=True))
def test_appended_runs_become_one_where_they_lie_side_by_side(starts: list[int]) -> None:
    runs: list[Run] = []
    append(runs, [Run(start, 1) for start in starts])
    assert slots(runs) == starts
    assert all(run.end != after.start for run, after in pairwise(runs))


@given(apart.filter(bool))
def test_slots_come_in_the_order_of_their_runs(runs: list[Run]) -> None:
    assert slots_of(runs, CPU).tolist() == slots(runs)
