from __future__ import annotations

import asyncio
import time
from itertools import pairwise

import pytest

from apr_agents.backends.gate import Gate


async def test_no_more_than_the_limit_are_inside_at_once() -> None:
    gate, inside, peak = Gate(3), 0, 0

    async def pass_through() -> None:
        nonlocal inside, peak
        async with gate.hold():
            inside += 1
            peak = max(peak, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(pass_through() for _ in range(20)))
    assert (inside, peak) == (0, 3)


async def test_a_place_is_free_again_after_a_failure_or_a_cancellation() -> None:
    gate = Gate(1)
    with pytest.raises(ZeroDivisionError):
        async with gate.hold():
            raise ZeroDivisionError

    async def stay() -> None:
        async with gate.hold():
            await asyncio.Event().wait()

    staying, waiting = asyncio.ensure_future(stay()), asyncio.ensure_future(stay())
    await asyncio.sleep(0)
    for task in (waiting, staying):
        task.cancel()
    await asyncio.wait([waiting, staying])
    async with asyncio.timeout(30), gate.hold():
        pass


async def test_starts_are_paced_evenly() -> None:
    gate, starts = Gate(8, rate=25), []

    async def start() -> None:
        async with gate.hold():
            starts.append(time.monotonic())

    await asyncio.gather(*(start() for _ in range(5)))
    starts.sort()
    gaps = [later - earlier for earlier, later in pairwise(starts)]
    assert min(gaps) > 0.02
    assert sum(gaps) > 0.15


async def test_rates_below_one_per_second_pace_too() -> None:
    gate = Gate(8, rate=0.5)
    async with gate.hold():
        pass
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), gate.hold():
            pass


def test_one_gate_serves_several_event_loops_in_turn() -> None:
    gate = Gate(1, rate=1000)

    async def crowd() -> int:
        async def one() -> int:
            async with gate.hold():
                await asyncio.sleep(0)
                return 1

        return sum(await asyncio.gather(*(one() for _ in range(3))))

    assert [asyncio.run(crowd()) for _ in range(2)] == [3, 3]
