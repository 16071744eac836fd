from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from apr_agents import Limits, create_parallel_agent
from apr_agents.backends.gate import Gate
from apr_agents.backends.scripted import Reply, ScriptedBackend
from apr_agents.simulation.clock import VirtualTimeLoop

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(work)


def test_waiting_takes_its_exact_length_and_no_time() -> None:
    async def work() -> list[tuple[str, float]]:
        seen: list[tuple[str, float]] = []

        async def wait(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            seen.append((name, asyncio.get_running_loop().time()))

        await asyncio.gather(wait("a week", 604800), wait("a blink", 0.125), wait("a day", 86400))
        return seen

    assert run(work()) == [("a blink", 0.125), ("a day", 86400), ("a week", 604800)]


def test_time_stands_still_while_anything_can_run() -> None:
    async def work() -> float:
        timer = asyncio.ensure_future(asyncio.sleep(1))
        for _ in range(1000):
            await asyncio.sleep(0)
        now = asyncio.get_running_loop().time()
        await timer
        return now

    assert run(work()) == 0


def test_a_timeout_comes_between_two_timers() -> None:
    async def work() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.sleep(7)
        return asyncio.get_running_loop().time()

    assert run(work()) == 5


def test_work_in_another_thread_is_waited_for_and_takes_no_time() -> None:
    async def work() -> tuple[int, float]:
        return await asyncio.to_thread(sum, range(9)), asyncio.get_running_loop().time()

    assert run(work()) == (36, 0)


def test_a_gate_counts_tokens_per_virtual_second() -> None:
    async def work() -> list[float]:
        gate, passed = Gate(9, tokens_per_second=10), []

        async def call() -> None:
            async with gate.hold(10):
                passed.append(asyncio.get_running_loop().time())

        await asyncio.gather(*(call() for _ in range(4)))
        return passed

    assert run(work()) == pytest.approx([0, 1, 2, 3])


def test_the_limits_of_a_run_count_virtual_seconds() -> None:
    class Slow(ScriptedBackend):
        async def _take(self, ticks: int) -> None:
            await asyncio.sleep(ticks)

    def script(request: Any) -> Reply | str:
        if request.key == "0/0":
            return "<Outlines><Outline>1: a</Outline><Outline>2: b</Outline></Outlines>"
        return {"0.1/0": "...</Thread>", "0.2/0": "." * 99, "0/2": "</think>7"}[request.key]

    async def work() -> Any:
        limits = Limits(thread_timeout=50, timeout=1000)
        agent = create_parallel_agent(Slow(script), limits=limits)
        state = await agent.ainvoke({"messages": [("user", "q")]})
        return state["trajectory"]["root"], asyncio.get_running_loop().time()

    root, ended = run(work())
    block = root["steps"][1]
    assert [thread["status"] for thread in block["threads"]] == ["done", "timed_out"]
    assert [thread["seconds"] for thread in block["threads"]] == pytest.approx([4, 50])
    outlines, answer = root["steps"][0]["tokens"], root["steps"][2]["tokens"]
    assert ended == outlines + 50 + answer
    assert root["seconds"] == pytest.approx(ended)
