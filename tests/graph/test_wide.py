"""Many threads at once: short joins, one gate, and nothing left over when the caller gives up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from apr_agents.backends.base import approximate_tokens
from apr_agents.backends.scripted import Reply, ScriptedBackend
from apr_agents.backends.scripted import tokens as scripted_tokens
from apr_agents.graph.build import create_parallel_agent
from apr_agents.limits import Limits
from apr_agents.types import Summary
from tests.graph.chat_script import Asked, Says, Sleep, call, calls, spawn

MANY = 64
INPUT: Any = {"messages": [("user", "Q")]}
WIDE = Limits(
    max_depth=1,
    max_threads=MANY,
    max_total_threads=MANY,
    max_concurrency=MANY,
    max_tokens_per_thread=10_000,
    max_total_tokens=10**6,
    max_join_tokens=1000,
)


def result(thread: str) -> str:
    """About 2,000 tokens, in one line, however they are counted."""
    return f"{thread}: " + " ".join(f"word{i:04}" for i in range(990)) + f" end of {thread}"


def text_model(script: Callable[[str, str], Reply | str]) -> ScriptedBackend:
    """A model that continues text; the script gets the thread and the prompt."""
    return ScriptedBackend(
        lambda request: script(request.key.partition("/")[0], request.prompt), chunk=10_000
    )


def block(count: int) -> str:
    lines = "".join(f"<Outline>{i}: x</Outline>" for i in range(1, count + 1))
    return f"<Outlines>{lines}</Outlines>"


def wide_text(summary: str = "") -> ScriptedBackend:
    def script(thread: str, prompt: str) -> str:
        if prompt.endswith("<Conclusion>"):
            return f"{summary} of {thread}</Conclusion>"
        if thread != "0":
            return f" {result(thread)}</Thread>"
        return block(MANY) if prompt.endswith("<think>\n") else "\n</Parallel>\n</think>\n4"

    return text_model(script)


def wide_chat(chat: Any, summary: str = "") -> Any:
    def script(asked: Asked) -> Any:
        if asked.last.startswith("Sum up"):
            return f"{summary} of {asked.thread}"
        if asked.thread != "0":
            return result(asked.thread)
        return spawn(*map(str, range(MANY))) if asked.number == 0 else "4"

    return chat(script)


# --- joins ----------------------------------------------------------------------------------


@pytest.mark.parametrize("merge", ["full", "conclusions"])
async def test_a_join_of_64_long_threads_keeps_to_its_tokens(
    ask: Any, chat: Any, merge: str
) -> None:
    backend = wide_text()
    record = await ask(create_parallel_agent(backend, merge=merge, limits=WIDE))
    joined = record.root.blocks[0].joined
    first, *_, last = (request.prompt for request in backend.requests)
    assert last == f"{first}{block(MANY)}{joined}"
    grown = len(scripted_tokens(last)) - len(scripted_tokens(first + block(MANY)))
    assert 850 <= grown <= 1000
    assert [t.transcript for t in record.root.blocks[0].threads] == [
        f" {result(f'0.{i}')}" for i in range(1, MANY + 1)
    ]
    again = await ask(create_parallel_agent(wide_text(), merge=merge, limits=WIDE))
    assert again.root.blocks[0].joined == joined

    model = wide_chat(chat)
    record = await ask(create_parallel_agent(model, merge=merge, limits=WIDE))
    joined = record.root.blocks[0].joined
    assert model.asked[-1].last == joined
    assert 900 <= approximate_tokens(joined) <= 1000
    assert [t.transcript for t in record.root.blocks[0].threads] == [
        result(f"0.{i}") for i in range(1, MANY + 1)
    ]
    assert all(f"[0.{i}] …" in joined for i in range(1, MANY + 1))
    again = await ask(create_parallel_agent(wide_chat(chat), merge=merge, limits=WIDE))
    assert again.root.blocks[0].joined == joined


@pytest.mark.parametrize("kind", ["text", "chat"])
async def test_too_many_summaries_are_summed_up_level_by_level(
    ask: Any, chat: Any, kind: str
) -> None:
    summary = "short words " * 20
    model: Any = wide_text(summary) if kind == "text" else wide_chat(chat, summary)
    record = await ask(create_parallel_agent(model, merge="summary", limits=WIDE))
    [joined] = record.root.blocks
    threads = [thread.conclusion for thread in joined.threads]
    assert threads == [f"{summary} of {thread.id}" for thread in joined.threads]
    digests = [step for step in record.root.steps if isinstance(step, Summary)]
    count = model.count if kind == "text" else approximate_tokens
    assert sum(map(count, threads)) > 1000
    assert 1 < len(digests) < MANY / 2
    assert all(digest.text in joined.joined for digest in digests)
    assert count(joined.joined) <= 1000
    assert all(result(t.id) in t.transcript for t in joined.threads)
    assert record.metrics().total_tokens == record.root.tokens
    assert record.answer == "4"


async def test_digests_come_to_an_end_where_they_do_not_fit_either(ask: Any) -> None:
    limits = Limits(
        max_depth=1, max_threads=8, max_join_tokens=60, max_tokens_per_thread=300, max_concurrency=8
    )

    def script(thread: str, prompt: str) -> str:
        if prompt.endswith("<Conclusion>"):
            return "many words " * 40 + "</Conclusion>"
        if thread != "0":
            return " 4</Thread>"
        return block(8) if prompt.endswith("<think>\n") else "\n</Parallel>\n</think>\n4"

    backend = text_model(script)
    record = await ask(create_parallel_agent(backend, merge="summary", limits=limits))
    assert backend.count(record.root.blocks[0].joined) <= 60
    assert record.answer == "4"


# --- one gate ---------------------------------------------------------------------------------

DEEP = Limits(
    max_depth=3, max_threads=4, max_total_threads=84, max_concurrency=3, max_total_tokens=10**6
)


@pytest.mark.parametrize("kind", ["text", "chat"])
@pytest.mark.parametrize("saved", [False, True])
async def test_three_levels_of_four_share_three_places_without_deadlock(
    ask: Any, chat: Any, kind: str, saved: bool
) -> None:
    def write(thread: str, prompt: str) -> str:
        if prompt.endswith((":", "<think>\n")) and thread.count(".") < 3:
            return f" {block(4)}"
        return "\n</Parallel>\n</think>\n4" if thread == "0" else " 1</Thread>"

    def say(asked: Asked) -> Any:
        splits = "spawn_threads" in asked.tools and asked.number == 0
        return spawn(*"abcd") if splits else "4" if asked.thread == "0" else "1"

    model: Any = text_model(write) if kind == "text" else chat(say)
    saver = InMemorySaver() if saved else None
    agent = create_parallel_agent(model, limits=DEEP, checkpointer=saver)
    async with asyncio.timeout(60):
        record = await ask(agent, config={"configurable": {"thread_id": "1"}})
    assert record.metrics().threads == 4 + 16 + 64
    assert {thread.status for thread in record.root.walk()} == {"done"}
    assert model.peak_in_flight == 3
    assert record.answer == "4"


# --- a caller that gives up -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text", "chat"])
@pytest.mark.parametrize("saved", [False, True])
async def test_a_caller_that_gives_up_leaves_nothing_behind(
    chat: Any, kind: str, saved: bool
) -> None:
    sleep = Sleep()

    def write(thread: str, prompt: str) -> Reply | str:
        if thread.count(".") < 2:
            return f" {block(4)}"
        return Reply(" half", hangs=True)

    def say(asked: Asked) -> Any:
        if asked.thread.count(".") < 2:
            return spawn(*"abcd")
        return calls(call("sleep")) if asked.thread.endswith("1") else Says(hangs=True)

    async def give_up() -> float:
        """Seconds until the run has ended."""
        model: Any = text_model(write) if kind == "text" else chat(say)
        agent = create_parallel_agent(
            model,
            [] if kind == "text" else [sleep.tool],
            limits=Limits(max_concurrency=16),
            checkpointer=InMemorySaver() if saved else None,
        )
        before = asyncio.all_tasks()
        running = asyncio.ensure_future(agent.ainvoke(INPUT, {"configurable": {"thread_id": "1"}}))
        async with asyncio.timeout(60):
            while model.in_flight + sleep.running < 16:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        started = time.monotonic()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        ended = time.monotonic()
        assert (model.in_flight, sleep.running) == (0, 0)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before
        return ended - started

    for _ in range(3):  # a machine that is busy may be late, but not each time
        if (late := await give_up()) <= 0.1:
            return
    pytest.fail(f"the run ended {late:.3f} s after its caller gave up")
