"""Virtual times of the simulated server, computed by hand. A dot is a token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_agents.backends.base import Delta, Request
from apr_agents.errors import InvalidOption
from apr_agents.simulation.clock import VirtualTimeLoop
from apr_agents.simulation.scenario import Hardware
from apr_agents.simulation.server import SimulatedServer

LONG, OTHER = "." * 32, "," * 32
"""Half a second of prefill, at 64 tokens a second."""


def server(
    tokens: int = 16, reply: Callable[[Request, int], str] | None = None, **options: Any
) -> SimulatedServer:
    """One that generates 8 tokens a second, and 16 in each reply."""
    hardware = Hardware(**{"prefill": 64.0, "decode": 8.0, **options})
    return SimulatedServer(hardware, reply or (lambda request, context: "." * tokens))


def ends(served: SimulatedServer, *calls: tuple[str, float], **options: Any) -> list[float]:
    """When calls with these prompts are over that start at these times."""

    async def call(prompt: str, at: float) -> float:
        await asyncio.sleep(at)
        request = Request(prompt=prompt, max_tokens=options.get("max_tokens", 999))
        async for _ in served.stream(request):
            pass
        return asyncio.get_running_loop().time()

    async def all_calls() -> list[float]:
        return await asyncio.gather(*(call(*each) for each in calls))

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(all_calls())


def test_a_call_takes_its_prefill_and_its_tokens() -> None:
    assert ends(server(), (LONG, 0)) == [0.5 + 2]
    assert ends(server(), (LONG, 0), max_tokens=4) == [0.5 + 0.5]


def test_calls_wait_for_a_lane_in_order_of_arrival() -> None:
    served = server(lanes=1)
    assert ends(served, ("", 1), ("", 0), ("", 0.5)) == [6, 2, 4]
    assert served.queued == [0, 1.5, 3]
    assert served.busy == 6


def test_lanes_do_not_slow_each_other_down_unless_told_to() -> None:
    assert ends(server(lanes=3), ("", 0), ("", 0), ("", 1)) == [2, 2, 3]


def test_lanes_that_take_turns_are_half_as_fast_while_there_are_two() -> None:
    # Alone for a second: 8 tokens. Together for two: 8 each. The second one alone: 8 in a second.
    assert ends(server(slowdown=1.0), ("", 0), ("", 1)) == [3, 4]


def test_a_slowdown_is_for_each_other_lane_that_generates() -> None:
    # Three lanes at 8 / (1 + 2/2) tokens a second; one that still prefills counts for nothing.
    assert ends(server(slowdown=0.5), ("", 0), ("", 0), ("", 0)) == [4, 4, 4]
    assert ends(server(slowdown=0.5, prefill=16.0), ("", 0), (LONG, 0)) == [2, 4]


def test_only_what_is_no_prefix_of_an_earlier_context_is_prefilled() -> None:
    served = server()
    assert ends(served, (LONG, 0), (LONG, 1), (OTHER, 1)) == [2.5, 3, 3.5]
    assert (served.prompt_tokens, served.prefilled) == (96, 64)
    # The answer is a part of the context too.
    assert ends(served, (LONG + "." * 16 + OTHER, 0)) == [2.5]


def test_a_prefix_is_counted_in_whole_tokens() -> None:
    served = server()
    ends(served, ("one two three", 0))
    served.prefilled = 0
    ends(served, ("one two things", 0))
    assert served.prefilled == 1  # "things", of which two letters are shared


@given(st.lists(st.text("ab.", max_size=6), max_size=8), st.text("ab.", max_size=8))
def test_the_longest_prefix_is_found_among_all_contexts(known: list[str], prompt: str) -> None:
    served = server(tokens=0, lanes=1)
    ends(served, *((text, 0) for text in known))
    shared = [
        max(n for n in range(len(prompt) + 1) if text.startswith(prompt[:n])) for text in known
    ]
    assert served._known.longest(prompt) == max(shared, default=0)


def test_a_call_that_is_given_up_frees_its_lane_and_slows_nobody_down_any_more() -> None:
    served = server(lanes=2, slowdown=1.0)

    async def call() -> float:
        async with aclosing(served.stream(Request(prompt="", max_tokens=99))) as deltas:
            async for _ in deltas:
                pass
        return asyncio.get_running_loop().time()

    async def give_up() -> int:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call(), 1)
        return await served.free_lanes()

    async def work() -> tuple[float, float, int]:
        first, free = await asyncio.gather(call(), give_up())
        return first, await call(), free

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        # Together for a second: 4 tokens. Alone: 12 in 1.5 s. Then another one alone.
        assert runner.run(work()) == (2.5, 4.5, 1)


def test_a_reply_comes_in_pieces_and_says_how_it_ended() -> None:
    async def hear(max_tokens: int) -> list[Delta]:
        served = server(reply=lambda request, context: f"<Outline>{context}</Outline>" + "." * 13)
        request = Request(prompt="a b", max_tokens=max_tokens)
        return [delta async for delta in served.stream(request)]

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        whole, cut = runner.run(hear(99)), runner.run(hear(5))
    assert "".join(delta.text for delta in whole) == "<Outline>3</Outline>" + "." * 13
    assert [delta.tokens for delta in whole] == [2] * 8
    assert [delta.prompt_tokens for delta in whole] == [3] + [0] * 7
    assert [delta.ended for delta in whole] == [False] * 7 + [True]
    assert "".join(delta.text for delta in cut) == "<Outline>3</Outline>.."
    assert not any(delta.ended for delta in cut)


@pytest.mark.parametrize(
    "option",
    [
        {"lanes": 0},
        {"prefill": 0.0},
        {"decode": -1.0},
        {"decode": float("nan")},
        {"prefill": float("inf")},
        {"slowdown": -0.5},
    ],
)
def test_hardware_that_cannot_be_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match=next(iter(option))):
        Hardware(**option)
