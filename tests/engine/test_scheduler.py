"""The scheduler, with a memory that remembers which prefix each slot belongs to."""

from __future__ import annotations

from collections.abc import Sequence as Ids
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_agents.engine.pool import Pool, Run
from apr_agents.engine.request import Generate
from apr_agents.engine.scheduler import ALIKE, Scheduler, Sequence, Work


def slots_of(runs: Ids[Run]) -> list[int]:
    return [slot for run in runs for slot in range(run.start, run.end)]


class Simulated:
    """A scheduler whose model is arithmetic: the next token is a function of all before it.

    Every slot remembers the prefix whose last token it holds, and a token is computed only if
    its context has the slots of exactly its own prefixes.

    Attributes:
        outputs: what each sequence has generated, by number.
    """

    def __init__(self, slots: int = 400, most_running: int = 64, most_tokens: int = 64) -> None:
        self.pool = Pool(slots)
        self.scheduler = Scheduler(self.pool, most_running=most_running, most_tokens=most_tokens)
        self.memory: dict[int, tuple[int, ...]] = {}
        self.outputs: dict[int, list[int]] = {}
        self.sequences: dict[int, Sequence] = {}
        self.prefilled = 0

    def add(self, ids: Ids[int], max_tokens: int = 4, program: str = "") -> int:
        number = len(self.sequences)
        request = Generate(ids=ids, max_tokens=max_tokens, program=program)
        self.sequences[number] = self.scheduler.add(request, number)
        return number

    def finish(self, number: int) -> None:
        self.scheduler.finish(self.sequences[number])

    def step(self) -> list[int]:
        """One step; the numbers of the sequences that computed something, in order."""
        work = self.scheduler.next()
        assert len(self.scheduler.running) <= self.scheduler.most_running
        stretches: dict[int, list[Run]] = {}
        for runs in (runs for part in work for runs in part.context):
            assert stretches.setdefault(runs[0].start, runs) == runs, "two views of one stretch"
        own = [slot for part in work for slot in slots_of(part.own)]
        assert len(own) == len(set(own)), "two tokens in one slot"
        for part in work:
            self.check(part, set(own))
        for part in work:
            first = part.sequence.computed
            for place, slot in enumerate(slots_of(part.own), first + 1):
                self.memory[slot] = tuple(part.sequence.ids[:place])
        for part in work:
            self.prefilled += part.prefilled
            samples = part.samples
            self.scheduler.computed(part)
            if samples:
                self.sample(part.sequence)
        return [part.sequence.number for part in work]

    def check(self, part: Work, written: set[int]) -> None:
        sequence = part.sequence
        context = [slot for runs in part.context for slot in slots_of(runs)]
        assert len(context) == sequence.computed
        assert not written & set(context), "a slot is read and written in one step"
        for place, slot in enumerate(context, 1):
            assert self.memory[slot] == tuple(sequence.ids[:place])
        assert len(slots_of(part.own)) == part.count >= 1

    def sample(self, sequence: Sequence) -> None:
        token = following(sequence.ids)
        sequence.ids.append(token)
        self.outputs.setdefault(sequence.number, []).append(token)
        if sequence.left <= 0 or len(sequence.ids) >= self.pool.slots:
            self.scheduler.finish(sequence)

    def run(self, most: int = 3000) -> int:
        """Until nothing is left; how many steps that took."""
        for count in range(most):
            if not (self.scheduler.waiting or self.scheduler.running):
                return count
            self.step()
        raise AssertionError("it does not end")

    def assert_nothing_leaks(self) -> None:
        tree = self.scheduler.tree
        assert tree.held == 0
        assert self.pool.free + tree.loose == self.pool.slots
        tree.evict(self.pool.slots)
        assert self.pool.free == self.pool.slots


def following(ids: Ids[int]) -> int:
    return (sum(ids) + len(ids)) % 3


def continuation(ids: Ids[int], count: int) -> list[int]:
    found = list(ids)
    for _ in range(count):
        found.append(following(found))
    return found[len(ids) :]


def numbered(start: int, length: int) -> list[int]:
    return list(range(start, start + length))


actions = st.lists(
    st.one_of(
        st.tuples(
            st.just("add"),
            st.tuples(
                st.integers(0, 30),  # whose ids it begins with
                st.lists(st.integers(0, 2), min_size=1, max_size=30),
                st.integers(1, 25),
                st.sampled_from(["", "a", "b"]),
            ),
        ),
        st.tuples(st.just("step"), st.integers(1, 6)),
        st.tuples(st.just("finish"), st.integers(0, 30)),
    ),
    min_size=8,
    max_size=50,
)


@settings(max_examples=250)
@given(
    actions,
    st.integers(50, 200),
    st.integers(1, 12),
    st.integers(1, 40),
)
def test_every_token_has_its_own_prefix_as_context_whatever_comes_and_goes(
    steps: list[tuple[str, Any]], slots: int, most_running: int, most_tokens: int
) -> None:
    simulated = Simulated(slots, most_running, most_tokens)
    cancelled = set()
    for kind, what in steps:
        if kind == "step":
            for _ in range(what):
                simulated.step()
        elif kind == "add":
            parent, more, max_tokens, program = what
            ids = [*simulated.sequences[parent].ids] if parent in simulated.sequences else []
            ids = [*ids[: slots - 40], *more][: slots - 1]
            simulated.add(ids, max_tokens, program)
        elif what in simulated.sequences:
            simulated.finish(what)
            cancelled.add(what)
    simulated.run()
    for number, sequence in simulated.sequences.items():
        output = simulated.outputs.get(number, [])
        prompt = list(sequence.request.ids)
        assert output == continuation(prompt, len(output))
        if number not in cancelled:
            assert len(output) == min(sequence.request.max_tokens, slots - len(prompt))
    simulated.assert_nothing_leaks()


def test_all_children_of_a_fork_start_in_one_step() -> None:
    simulated = Simulated(slots=2000, most_tokens=512)
    parent = numbered(10, 200)
    simulated.add(parent, 1)
    simulated.run()
    children = [simulated.add([*parent, 5000 + i, *numbered(0, 9)]) for i in range(16)]
    assert sorted(simulated.step()) == children
    assert simulated.prefilled == 200 + 16 * 10


def test_children_that_come_with_a_long_common_part_compute_it_once() -> None:
    simulated = Simulated(slots=2000, most_tokens=64)
    common = numbered(10, 3 * 64)
    children = [simulated.add([*common, 5000 + i]) for i in range(5)]
    assert [simulated.step() for _ in range(3)] == [[0], [0], [0]]
    assert sorted(simulated.step()) == children
    assert simulated.prefilled == len(common) + 5


def test_who_waits_for_a_common_part_does_not_wait_for_the_rest_of_that_prompt() -> None:
    simulated = Simulated(slots=2000, most_tokens=64)
    common = numbered(10, 64)
    simulated.add([*common, *numbered(1000, 640)])
    simulated.add([*common, 7])
    assert simulated.step() == [0]
    simulated.step()
    assert simulated.outputs[1]
    assert 0 not in simulated.outputs


def test_a_few_common_tokens_are_not_worth_waiting_for() -> None:
    simulated = Simulated()
    for i in range(3):
        simulated.add([*numbered(10, ALIKE - 1), 5000 + i])
    assert simulated.step() == [0, 1, 2]


def test_who_was_waited_for_may_leave() -> None:
    simulated = Simulated(most_tokens=16)
    common = numbered(10, 100)
    for i in range(2):
        simulated.add([*common, 5000 + i])
    simulated.step()
    simulated.finish(0)
    assert simulated.step() == [1]
    simulated.run()
    simulated.assert_nothing_leaks()


def test_a_program_with_a_hundred_requests_does_not_keep_another_waiting() -> None:
    simulated = Simulated(slots=4000, most_running=8)
    for i in range(100):
        simulated.add([i, i + 1, i + 2], 50, program="many")
    for _ in range(3):
        simulated.step()
    single = simulated.add([7, 7, 7], 50, program="one")
    assert single in simulated.step()
    assert simulated.outputs[single]
    before = len(simulated.outputs[single])
    for _ in range(10):
        simulated.step()
    assert len(simulated.outputs[single]) == before + 10


def test_a_program_that_fills_the_cache_makes_room_for_another() -> None:
    simulated = Simulated(slots=400, most_tokens=400)
    for i in range(6):
        simulated.add([i] * 40, 200, program="many")
    simulated.step()
    single = simulated.add([9] * 60, 20, program="one")
    steps = 0
    while single not in simulated.outputs:
        simulated.step()
        steps += 1
    assert steps <= 2
    simulated.run()
    assert all(len(simulated.outputs[i]) == 200 for i in range(6))


def test_prompts_of_several_programs_are_computed_in_turn() -> None:
    simulated = Simulated(slots=4000, most_tokens=32)
    for i in range(5):
        simulated.add([100 + i] * 64, program="many")
    simulated.add([7] * 64, program="one")
    for _ in range(4):
        simulated.step()
    assert set(simulated.outputs) == {0, 5}


def test_requests_without_a_program_come_in_the_order_of_their_arrival() -> None:
    simulated = Simulated(most_running=1)
    numbers = [simulated.add([i], max_tokens=1 + i) for i in range(4)]
    order = []
    while simulated.scheduler.waiting or simulated.scheduler.running:
        order += simulated.step()
    assert sorted(set(order), key=order.index) == numbers


def test_inside_a_program_the_longest_critical_path_comes_first() -> None:
    simulated = Simulated(most_running=1)
    for max_tokens in (2, 9, 5):
        simulated.add([1, 2], max_tokens, program="one")
    assert simulated.step() == [1]


def test_decoding_goes_on_while_prompts_are_computed() -> None:
    simulated = Simulated(slots=1000, most_tokens=16)
    first = simulated.add([1, 2], 30)
    simulated.step()
    simulated.add(numbered(10, 100))
    for _ in range(5):
        assert simulated.step()[0] == first


def test_a_step_computes_no_more_prompt_tokens_than_it_may() -> None:
    simulated = Simulated(slots=1000, most_tokens=50)
    for i in range(4):
        simulated.add([i] * 40)
    work = simulated.scheduler.next()
    assert [part.count for part in work] == [40, 10]


def test_what_has_no_room_waits_and_the_cache_stays_as_it_is() -> None:
    simulated = Simulated(slots=200, most_tokens=200)
    simulated.add([5] * 20, 1)
    simulated.run()
    first = simulated.add([6] * 60, 60)
    simulated.step()
    simulated.add([7] * 100, 10)
    for _ in range(40):
        assert simulated.step() == [first]
    assert simulated.scheduler.tree.match([5] * 20).length == 20
    simulated.run()


def test_the_latest_makes_way_when_slots_run_out() -> None:
    simulated = Simulated(slots=150, most_tokens=200)
    for i in range(3):
        simulated.add([i] * 10, 70)
    while len(simulated.scheduler.running) == 3 or not simulated.scheduler.running:
        simulated.step()
    assert set(simulated.scheduler.running) == {0, 1}


def test_what_made_way_goes_on_from_what_the_cache_still_has() -> None:
    simulated = Simulated(slots=120, most_tokens=200)
    numbers = [simulated.add([i] * 10, 60) for i in range(3)]
    simulated.run()
    assert [len(simulated.outputs[number]) for number in numbers] == [60, 60, 60]
    assert simulated.prefilled >= 30
    simulated.assert_nothing_leaks()


def test_tokens_that_are_computed_once_more_count_as_prefilled() -> None:
    simulated = Simulated(slots=400, most_tokens=400)
    number = simulated.add(numbered(10, 20), 30)
    for _ in range(11):
        simulated.step()
    assert simulated.prefilled == 20
    sequence = simulated.sequences[number]
    simulated.scheduler._preempt(sequence)
    simulated.scheduler.tree.evict(400)
    simulated.step()
    assert len(sequence.ids) == 32
    assert simulated.prefilled == 20 + 30  # its 31st token had never been computed


def test_reserved_slots_are_given_back_before_anybody_has_to_make_way() -> None:
    simulated = Simulated(slots=160, most_tokens=200)
    first, second = (simulated.add([i] * 10, 100) for i in range(2))
    for _ in range(70):
        simulated.step()
    assert simulated.pool.free <= 160 - 2 * (10 + 69)
    assert set(simulated.scheduler.running) == {first, second}
    assert all(len(simulated.outputs[number]) == 70 for number in (first, second))


@pytest.mark.parametrize("when", ["waiting", "running", "preempted", "finished"])
def test_a_sequence_can_be_finished_in_any_state(when: str) -> None:
    simulated = Simulated()
    number = simulated.add([1, 2, 3], 40)
    if when != "waiting":
        simulated.step()
    if when == "preempted":
        simulated.scheduler._preempt(simulated.sequences[number])
    if when == "finished":
        simulated.finish(number)
    simulated.finish(number)
    assert simulated.scheduler.next() == []
    simulated.assert_nothing_leaks()


def test_a_long_sequence_has_few_runs_though_many_grow_side_by_side() -> None:
    simulated = Simulated(slots=8000, most_running=32)
    for i in range(8):
        simulated.add([i, i], 600)
    for _ in range(400):
        simulated.step()
    most = max(len(s.own) + len(s.spare) for s in simulated.sequences.values())
    assert most <= 8
