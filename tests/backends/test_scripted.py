from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage

from apr_agents.backends.base import Delta, Request
from apr_agents.backends.scripted import Reply, ScriptedBackend, TokenClock, tokens

FIVE = "a b c"


async def listen(
    backend: ScriptedBackend, *, max_tokens: int = 100, stops: tuple[str, ...] = ()
) -> list[Delta]:
    request = Request(prompt="one two", max_tokens=max_tokens, stops=stops)
    async with aclosing(backend.stream(request)) as deltas:
        return [delta async for delta in deltas]


@given(st.text())
def test_tokens_lose_no_character(text: str) -> None:
    assert "".join(tokens(text)) == text


def test_tags_are_single_tokens() -> None:
    assert tokens("<Thread>\n1: x2</Thread>") == [
        "<Thread>",
        "\n",
        "1",
        ":",
        " ",
        "x2",
        "</Thread>",
    ]


async def test_a_reply_comes_token_by_token_and_ends_by_itself() -> None:
    deltas = await listen(ScriptedBackend(lambda request: FIVE))
    assert [delta.text for delta in deltas] == ["a", " ", "b", " ", "c", ""]
    assert [delta.tokens for delta in deltas] == [1, 1, 1, 1, 1, 0]
    assert [delta.prompt_tokens for delta in deltas] == [3, 0, 0, 0, 0, 0]
    assert [delta.ended for delta in deltas] == [False] * 5 + [True]


async def test_an_empty_reply_still_tells_the_length_of_its_prompt() -> None:
    assert await listen(ScriptedBackend(lambda request: "")) == [Delta("", 0, 3, ended=True)]


async def test_a_limit_cuts_a_reply_which_then_has_not_ended() -> None:
    deltas = await listen(ScriptedBackend(lambda request: FIVE, chunk=2), max_tokens=3)
    assert [delta.text for delta in deltas] == ["a ", "b"]
    assert not any(delta.ended for delta in deltas)


async def test_a_stop_is_the_last_thing_written() -> None:
    backend = ScriptedBackend(lambda request: "a</Thread> b")
    deltas = await listen(backend, stops=("</Thread>",))
    assert "".join(delta.text for delta in deltas) == "a</Thread>"


async def test_a_failure_comes_after_its_text() -> None:
    backend = ScriptedBackend(lambda request: Reply("a b", fails=ValueError("broken")))
    heard = []

    async def hear() -> None:
        async for delta in backend.stream(Request(prompt="", max_tokens=9)):
            heard.append(delta.text)

    with pytest.raises(ValueError, match="broken"):
        await hear()
    assert heard == ["a", " ", "b"]
    assert backend.in_flight == 0


async def test_closing_a_stream_that_hangs_frees_its_lane() -> None:
    backend = ScriptedBackend(lambda request: Reply("a", hangs=True), lanes=1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await listen(backend)
    assert backend.in_flight == 0
    async with aclosing(backend.stream(Request(prompt="", max_tokens=1))) as deltas:
        assert (await anext(deltas)).text == "a"
    assert (backend.in_flight, backend.peak_in_flight) == (0, 1)


@pytest.mark.parametrize(("lanes", "ticks"), [(1, 20), (2, 10), (3, 10), (4, 5), (None, 5)])
async def test_the_clock_counts_what_the_lanes_take(lanes: int | None, ticks: int) -> None:
    clock = TokenClock()
    backend = ScriptedBackend(lambda request: FIVE, clock=clock, lanes=lanes)
    await asyncio.gather(*(listen(backend) for _ in range(4)))
    assert clock.now == ticks


async def test_sleepers_wake_in_order_of_their_time() -> None:
    clock, woken = TokenClock(), []

    async def sleep(ticks: int) -> None:
        await clock.sleep(ticks)
        woken.append((ticks, clock.now))

    await asyncio.gather(*(sleep(ticks) for ticks in (5, 1, 3, 1)))
    assert woken == [(1, 1), (1, 1), (3, 3), (5, 5)]


async def test_the_clock_stands_still_while_anybody_can_act() -> None:
    clock = TokenClock()

    async def work() -> int:
        for _ in range(50):
            await asyncio.sleep(0)
        return clock.now

    _, seen = await asyncio.gather(clock.sleep(7), work())
    assert (seen, clock.now) == (0, 7)


async def test_a_cancelled_sleeper_does_not_stop_the_clock() -> None:
    clock = TokenClock()
    sleeper = asyncio.ensure_future(clock.sleep(3))
    await asyncio.sleep(0)
    sleeper.cancel()
    await clock.sleep(5)
    assert clock.now == 5


def test_messages_are_rendered_line_by_line() -> None:
    backend = ScriptedBackend(lambda request: "")
    assert backend.render([HumanMessage("a"), AIMessage("b")]) == "a\nb"
