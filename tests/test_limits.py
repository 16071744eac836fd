from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_agents.errors import AprError, InvalidOption
from apr_agents.limits import Allowance, Limits


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_depth", -1),
        ("max_threads", -1),
        ("max_threads", 1.5),
        ("max_threads", True),
        ("max_threads", "many"),
        ("max_total_threads", "auto"),
        ("max_total_threads", -3),
        ("max_concurrency", 0),
        ("requests_per_second", 0),
        ("max_tokens_per_thread", 0),
        ("max_total_tokens", "many"),
        ("thread_timeout", -1.0),
        ("thread_timeout", math.inf),
        ("timeout", math.nan),
        ("timeout", True),
    ],
)
def test_a_limit_that_cannot_be_is_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(InvalidOption, match=option) as caught:
        Limits(**{option: value})
    assert isinstance(caught.value, AprError)
    assert isinstance(caught.value, ValueError)
    assert (caught.value.option, caught.value.value) == (option, value)


@pytest.mark.parametrize("option", ["thread_timeout", "timeout"])
def test_a_run_cannot_go_without_an_end(option: str) -> None:
    with pytest.raises(InvalidOption, match=option):
        Limits(**{option: None})  # type: ignore[arg-type]


def test_zero_forbids_threads() -> None:
    for option in ("max_depth", "max_threads", "max_total_threads"):
        limits = Limits(**{option: 0})  # type: ignore[arg-type]
        assert Allowance.of(limits).block_size(limits) == 0


def test_limits_are_frozen_and_every_field_is_explained() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Limits().max_depth = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        Limits(3)  # type: ignore[misc]
    assert all(f"{field.name}: " in (Limits.__doc__ or "") for field in dataclasses.fields(Limits))


def test_a_parent_keeps_a_reserve_and_shares_the_rest() -> None:
    limits = Limits(
        max_depth=2, max_total_threads=10, max_total_tokens=1000, timeout=100.0, thread_timeout=60.0
    )
    child = Allowance.of(limits).share(3, limits)
    assert child == Allowance(
        depth=1, threads=2, calls=64, own_tokens=4096, tokens=250, seconds=60.0
    )
    grandchild = child.share(2, limits)
    assert grandchild == Allowance(
        depth=0, threads=0, calls=64, own_tokens=4096, tokens=93, seconds=45.0
    )
    assert grandchild.block_size(limits) == 0


def test_spending_never_leaves_less_than_nothing() -> None:
    allowance = Allowance(depth=1, threads=2, calls=5, own_tokens=10, tokens=20, seconds=3.0)
    left = allowance.less(tokens=30, threads=9, seconds=9.0)
    assert left == Allowance(depth=1, threads=0, calls=5, own_tokens=10, tokens=0, seconds=0.0)
    assert left.next_call == 0
    own = allowance.less_own(tokens=4, seconds=1.0)
    assert own == Allowance(depth=1, threads=2, calls=4, own_tokens=6, tokens=16, seconds=2.0)
    assert own.next_call == 6


@given(st.data(), st.integers(0, 4), st.integers(1, 40), st.integers(1, 5000))
def test_however_a_tree_spawns_its_threads_and_tokens_stay_within_the_limits(
    data: st.DataObject, depth: int, threads: int, tokens: int
) -> None:
    limits = Limits(
        max_depth=depth, max_threads=5, max_total_threads=threads, max_total_tokens=tokens
    )

    def live(allowance: Allowance) -> tuple[int, int]:
        """Threads started below and tokens spent by a thread that spends all it may."""
        started, spent = 0, 0
        for _ in range(data.draw(st.integers(0, 3))):
            most = allowance.block_size(limits)
            if not most:
                break
            children = data.draw(st.integers(1, most))
            share = allowance.share(children, limits)
            below = [live(share) for _ in range(children)]
            count = children + sum(n for n, _ in below)
            cost = sum(t for _, t in below)
            allowance = allowance.less(tokens=cost, threads=count)
            started, spent = started + count, spent + cost
        return started, spent + allowance.next_call

    started, spent = live(Allowance.of(limits))
    assert started <= threads
    assert spent <= tokens
