"""A policy that has stopped deciding is noticed; one that has not yet begun to is not."""

from __future__ import annotations

import json

import pytest

from apr_agents.training.collapse import Watch

HALF = {"split_parallel": 0.5, "split_control": 0.5}
NEVER = {"split_parallel": 0.0, "split_control": 0.0}
ALWAYS = {"split_parallel": 1.0, "split_control": 1.0}


def seen(watch: Watch, *steps: dict[str, float]) -> list[str | None]:
    return [watch.see(measured) for measured in steps]


@pytest.mark.parametrize(("end", "says"), [(NEVER, "never splits"), (ALWAYS, "always splits")])
def test_it_takes_patience_at_one_end(end: dict[str, float], says: str) -> None:
    *before, last = seen(Watch(3), HALF, end, end, HALF, end, end, end)
    assert before == [None] * 6
    assert last is not None
    assert says in last


@pytest.mark.parametrize("start", [NEVER, ALWAYS])
def test_a_policy_that_starts_at_one_end_has_time_to_leave_it(start: dict[str, float]) -> None:
    assert seen(Watch(2), *[start] * 9) == [None] * 9


def test_always_splitting_what_can_be_split_is_no_collapse() -> None:
    right = {"split_parallel": 1.0, "split_control": 0.0}
    assert seen(Watch(2), HALF, *[right] * 9) == [None] * 10


def test_threads_that_repeat_each_other_are_spam_from_the_start() -> None:
    assert seen(Watch(2), *[HALF | {"repeated": 0.7}] * 2) == [
        None, "most of its threads repeat a sibling",
    ]  # fmt: skip


def test_a_step_without_such_problems_says_nothing() -> None:
    assert seen(Watch(2), HALF, NEVER, {}, {"split_control": 0.0}, NEVER)[-1] is not None


def test_without_patience_it_never_says_anything() -> None:
    assert seen(Watch(0), HALF, *[NEVER] * 9) == [None] * 10


def test_it_goes_on_from_what_another_had_seen() -> None:
    first = Watch(3)
    assert seen(first, HALF, NEVER, NEVER) == [None] * 3
    again = Watch(3, json.loads(json.dumps(first.state)))
    assert again.see(NEVER) is not None
