"""One thread's fault never costs another thread its result."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from itertools import product
from typing import Any

import pytest

from apr_agents.backends.base import Delta, Request
from apr_agents.backends.scripted import Reply, ScriptedBackend
from apr_agents.errors import BackendFailed
from apr_agents.graph.build import create_parallel_agent
from apr_agents.limits import Limits

END = "\n</Parallel>\n</think>\n4"
INPUT = {"messages": [("user", "Q")]}
FAULTS = {
    "failed": Reply(" half", fails=BackendFailed("out of memory")),
    "timed_out": Reply(" half", hangs=True),
    "over_budget": Reply(" half" * 200),
}


@pytest.mark.parametrize("status", FAULTS)
@pytest.mark.parametrize("faulty", [(1,), (2,), (3,), (1, 2, 3)])
@pytest.mark.parametrize("depth", [1, 2])
async def test_a_fault_never_costs_a_sibling_its_result(
    ask: Any, scripted: Any, outlines: Any, status: str, faulty: tuple[int, ...], depth: int
) -> None:
    backend = scripted(
        {
            "0/0": outlines("a", "b", "c"),
            **{f"0.{i}/0": FAULTS[status] for i in faulty},
            "0.*/0": " 7</Thread>",
            "0/2": END,
        }
    )
    limits = Limits(
        max_depth=depth,
        max_tokens_per_thread=150,
        thread_timeout=0.25 if status == "timed_out" else 60.0,
    )
    run = await ask(create_parallel_agent(backend, limits=limits))
    assert run.answer == "4"
    for i, thread in enumerate(run.root.blocks[0].threads, 1):
        if i in faulty:
            assert thread.status == status
            assert thread.reason
            assert thread.transcript.startswith(" half")
            assert f"\n{i}: ({status}: {thread.reason})</Thread>" in run.root.blocks[0].joined
        else:
            assert (thread.status, thread.conclusion) == ("done", "7")
            assert f"\n{i}: 7</Thread>" in run.root.blocks[0].joined
    assert backend.in_flight == 0


async def test_a_backend_that_counts_no_tokens_cannot_hold_a_run(ask: Any) -> None:
    class Uncounted(ScriptedBackend):
        async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
            yield Delta("</Outlines>", tokens=0)

    run = await ask(create_parallel_agent(Uncounted(lambda _: "")))
    assert (run.answer, run.root.status) == (None, "failed")


async def test_a_fault_deep_down_is_told_one_level_up_only(
    ask: Any, scripted: Any, outlines: Any
) -> None:
    backend = scripted(
        {
            "0/0": outlines("a", "b"),
            "0.1/0": " " + outlines("c", "d"),
            "0.1.1/0": FAULTS["failed"],
            "0.1.2/0": " 7</Thread>",
            "0.1/2": "\n</Parallel>\n7</Thread>",
            "0.2/0": " 8</Thread>",
            "0/2": END,
        }
    )
    run = await ask(create_parallel_agent(backend))
    assert run.threads()["0.1.1"].reason == (
        "BackendFailed: The model backend failed: out of memory"
    )
    assert "(failed: BackendFailed" in run.threads()["0.1"].transcript
    assert run.root.blocks[0].joined == "\n<Thread>\n1: 7</Thread><Thread>\n2: 8</Thread>"


async def test_a_thread_that_fails_after_its_own_block_keeps_what_its_threads_found(
    ask: Any, scripted: Any, outlines: Any
) -> None:
    backend = scripted(
        {
            "0/0": outlines("a"),
            "0.1/0": " " + outlines("c"),
            "0.1.1/0": " 7</Thread>",
            "0.1/2": FAULTS["failed"],
            "0/2": END,
        }
    )
    run = await ask(create_parallel_agent(backend))
    assert run.threads()["0.1"].status == "failed"
    assert run.threads()["0.1.1"].conclusion == "7"
    assert run.answer == "4"


async def test_a_backends_own_timeout_is_a_failure_not_a_limit(
    ask: Any, scripted: Any, outlines: Any
) -> None:
    backend = scripted(
        {"0/0": outlines("a"), "0.1/0": Reply("", fails=TimeoutError("slow")), "0/2": END}
    )
    run = await ask(create_parallel_agent(backend))
    thread = run.threads()["0.1"]
    assert (thread.status, thread.reason) == ("failed", "TimeoutError: slow")


@pytest.mark.parametrize("at", ["0/0", "0/2"])
async def test_a_root_that_fails_raises(ask: Any, scripted: Any, outlines: Any, at: str) -> None:
    replies = {"0/0": outlines("a"), "0.*/0": " 4</Thread>", "0/2": END}
    backend = scripted({**replies, at: Reply("half", fails=BackendFailed("gone"))})
    with pytest.raises(BackendFailed, match="gone"):
        await ask(create_parallel_agent(backend))
    assert backend.in_flight == 0


def test_a_root_that_fails_raises_in_sync_code_too(scripted: Any) -> None:
    backend = scripted({"0/0": Reply("half", fails=BackendFailed("gone"))})
    with pytest.raises(BackendFailed, match="gone"):
        create_parallel_agent(backend).invoke(INPUT)


@pytest.mark.parametrize(
    "reply",
    [Reply("s", hangs=True), Reply("s", fails=BackendFailed("gone"))],
    ids=["hangs", "fails"],
)
async def test_a_summary_that_breaks_off_leaves_the_thread_its_own_conclusion(
    ask: Any, scripted: Any, outlines: Any, reply: Reply
) -> None:
    backend = scripted(
        {"0/0": outlines("a"), "0.1/0": " 2+2\n4</Thread>", "0.1/1": reply, "0/2": END}
    )
    limits = Limits(thread_timeout=0.25 if reply.hangs else 60.0)
    run = await ask(create_parallel_agent(backend, merge="summary", limits=limits))
    thread = run.threads()["0.1"]
    assert (thread.status, thread.conclusion) == ("done", "4")
    assert run.metrics().total_tokens == run.root.tokens
    assert [step.kind for step in thread.steps] == ["call", "summary"]


# --- cancellation ----------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("concurrency", [2, 64])
async def test_cancelling_the_caller_closes_every_stream(depth: int, concurrency: int) -> None:
    busy = asyncio.Event()

    def script(request: Request) -> Reply | str:
        if request.key.count(".") == depth:
            if backend.in_flight == min(2**depth, concurrency):
                busy.set()
            return Reply(" half", hangs=True)
        return " <Outlines><Outline>1: a</Outline><Outline>2: b</Outline></Outlines>"

    backend = ScriptedBackend(script)
    limits = Limits(max_depth=depth, max_concurrency=concurrency)
    agent = create_parallel_agent(backend, limits=limits)
    running = asyncio.ensure_future(agent.ainvoke(INPUT))
    await asyncio.wait_for(busy.wait(), 30)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert backend.in_flight == 0
    # The gate is free again as well.
    backend.script = lambda request: "</think>4"
    assert (await agent.ainvoke(INPUT))["messages"][-1].text == "4"


async def test_leaving_a_stream_early_closes_every_model_call(scripted: Any, outlines: Any) -> None:
    backend = scripted({"0/0": outlines("a", "b"), "0.*/0": Reply(" half", hangs=True)})
    events = create_parallel_agent(backend).astream(INPUT, stream_mode="custom", subgraphs=True)
    async for _, event in events:
        if event["type"] == "token" and event["id"] == "0.2":
            break
    await events.aclose()
    assert backend.in_flight == 0


async def test_a_run_cancelled_among_others_leaves_them_alone(scripted: Any, outlines: Any) -> None:
    replies = {"0/0": outlines("a", "b"), "0.*/0": " 4</Thread>", "0/2": END}
    for cancelled, steps in product(range(3), (1, 7, 20)):
        agent = create_parallel_agent(scripted(replies), limits=Limits(max_concurrency=2))
        runs = [asyncio.ensure_future(agent.ainvoke(INPUT)) for _ in range(3)]
        for _ in range(steps):
            await asyncio.sleep(0)
        runs[cancelled].cancel()
        done = await asyncio.gather(*runs, return_exceptions=True)
        assert isinstance(done.pop(cancelled), asyncio.CancelledError)
        assert [output["messages"][-1].text for output in done] == ["4", "4"]
