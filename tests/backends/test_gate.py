from __future__ import annotations

import asyncio
import gc
import itertools
import time
from collections import Counter
from itertools import pairwise

import pytest

from apr_agents.backends.gate import STARTED_TOGETHER, Gate
from apr_agents.errors import InvalidOption

HOSTS = itertools.count()


@pytest.fixture
def host() -> str:
    """A host that no other test asks for: a caught error may keep its gate for a while."""
    return f"gate{next(HOSTS)}.test"


async def waited(gate: Gate, tokens: int = 0) -> float:
    """Seconds until the gate let a call of ``tokens`` in, which used them all."""
    started = time.monotonic()
    async with gate.hold(tokens):
        return time.monotonic() - started


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


# --- tokens ------------------------------------------------------------------------


async def test_a_seconds_worth_of_tokens_passes_at_once_and_more_must_wait() -> None:
    gate = Gate(8, tokens_per_second=1000)
    assert await waited(gate, 600) < 0.05
    assert await waited(gate, 400) < 0.05
    assert await waited(gate, 100) > 0.08


async def test_calls_without_tokens_wait_for_none() -> None:
    gate = Gate(8, tokens_per_second=1)
    assert await waited(gate, 1) < 0.05
    assert await waited(gate) < 0.05


async def test_an_estimate_beyond_a_seconds_worth_passes_and_is_owed() -> None:
    gate = Gate(8, tokens_per_second=1000)
    assert await waited(gate, 1100) < 0.05
    assert await waited(gate) > 0.08


async def test_tokens_that_were_not_spent_come_back_to_whoever_waits() -> None:
    gate = Gate(8, tokens_per_second=100)
    async with gate.hold(100) as held:
        waiting = asyncio.ensure_future(waited(gate, 90))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        held.spent(5)
        assert await waiting < 0.5


async def test_tokens_beyond_the_estimate_are_owed() -> None:
    gate = Gate(8, tokens_per_second=1000)
    async with gate.hold() as held:
        held.spent(600)
        held.spent(1100)
    assert await waited(gate) > 0.08


async def test_the_estimate_stands_where_nothing_else_is_said() -> None:
    gate = Gate(8, tokens_per_second=1000)
    with pytest.raises(ZeroDivisionError):
        async with gate.hold(1000):
            raise ZeroDivisionError
    assert await waited(gate, 100) > 0.08


async def test_whoever_gives_up_waiting_takes_no_tokens() -> None:
    gate = Gate(8, rate=5, tokens_per_second=1000)
    await waited(gate)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02), gate.hold(1000):  # has its tokens, waits for its start
            pass
    assert await waited(gate, 1000) < 0.6
    gate = Gate(8, tokens_per_second=1000)
    with pytest.raises(TimeoutError):
        async with gate.hold(1000), asyncio.timeout(0.02), gate.hold(1000):
            pass
    assert await waited(gate, 100) < 0.5


async def test_a_large_call_is_not_overtaken_for_ever() -> None:
    gate, order = Gate(8, tokens_per_second=1000), []

    async def call(tokens: int) -> None:
        async with gate.hold(tokens):
            order.append(tokens)

    await waited(gate, 950)
    await asyncio.gather(*(call(tokens) for tokens in (100, 20, 10)))
    assert order == [100, 20, 10]


async def test_without_a_bound_tokens_are_not_counted() -> None:
    async with Gate(1).hold(10**9) as held:
        held.spent(10**12)
    assert await waited(Gate(1), 10**9) < 0.05


# --- shared gates ------------------------------------------------------------------


def test_agents_of_one_server_share_a_gate(host: str) -> None:
    url = f"http://{host}:8000/v1"
    gate = Gate.shared(url, concurrency=4, requests_per_second=10, tokens_per_second=1000)
    assert (gate.concurrency, gate.rate, gate.tokens_per_second) == (4, 10, 1000)
    bounds = {"concurrency": 4, "requests_per_second": 10, "tokens_per_second": 1000}
    for same in (url, url.upper(), f"http://me:secret@{host}:8000/other?a=b#c"):
        assert Gate.shared(same, **bounds) is gate
    for other in (f"http://{host}", f"http://{host}:8001", f"https://{host}:8000"):
        assert Gate.shared(other, **bounds) is not gate


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://gate.test", "http://gate.test:80/v1"),
        ("https://gate.test/v1", "HTTPS://gate.test:443"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
    ],
)
def test_a_server_may_be_written_in_several_ways(one: str, other: str) -> None:
    gate = Gate.shared(one, concurrency=2)
    assert Gate.shared(other, concurrency=2) is gate


def test_other_bounds_for_the_same_server_are_refused_with_the_first(host: str) -> None:
    url = f"http://{host}"
    gate = Gate.shared(url, concurrency=4, tokens_per_second=500)
    with pytest.raises(InvalidOption) as caught:
        Gate.shared(url, concurrency=4, tokens_per_second=600)
    assert (caught.value.option, caught.value.value) == ("tokens_per_second", 600)
    for said in ("concurrency=4", "requests_per_second=None", "tokens_per_second=500"):
        assert said in str(caught.value)
    assert gate.tokens_per_second == 500


def test_a_shared_gate_goes_when_nobody_keeps_it(host: str) -> None:
    url = f"http://{host}"
    gate = Gate.shared(url, concurrency=4)
    del gate
    gc.collect()
    assert Gate.shared(url, concurrency=5).concurrency == 5


async def test_a_shared_gate_stays_while_a_call_is_inside(host: str) -> None:
    url = f"http://{host}"

    async def call() -> None:
        async with Gate.shared(url, concurrency=1).hold():
            await asyncio.Event().wait()

    inside = asyncio.ensure_future(call())
    await asyncio.sleep(0)
    gc.collect()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02), Gate.shared(url, concurrency=1).hold():
            pass
    inside.cancel()
    await asyncio.wait([inside])


@pytest.mark.parametrize("url", ["", "localhost:8000", "http://", "http://host:many", "ftp://host"])
def test_a_url_that_names_no_server_is_refused(url: str) -> None:
    with pytest.raises(InvalidOption, match="url"):
        Gate.shared(url, concurrency=1)


@pytest.mark.parametrize(
    ("bounds", "named"),
    [
        ({"concurrency": 0}, "concurrency"),
        ({"concurrency": 1, "rate": 0}, "requests_per_second"),
        ({"concurrency": 1, "tokens_per_second": -1}, "tokens_per_second"),
        ({"concurrency": 1, "tokens_per_second": float("nan")}, "tokens_per_second"),
    ],
)
def test_bounds_that_let_nobody_in_are_refused(bounds: dict[str, float], named: str) -> None:
    with pytest.raises(InvalidOption, match=named):
        Gate(**bounds)


async def test_calls_that_come_together_start_a_few_in_each_turn_of_the_event_loop() -> None:
    gate = Gate(1000)
    turn, started = 0, []

    async def call(number: int) -> None:
        async with gate.hold():
            started.append((turn, number))

    calls = asyncio.gather(*(call(number) for number in range(100)))
    while not calls.done():
        turn += 1
        await asyncio.sleep(0)
    assert [number for _, number in started] == list(range(100))
    assert max(Counter(turn for turn, _ in started).values()) <= 2 * STARTED_TOGETHER
    assert len({turn for turn, _ in started}) >= 4
