"""Every limit: a run that meets one goes on or ends with a status, and never raises."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_agents.backends.base import Delta, Request
from apr_agents.backends.scripted import Reply, ScriptedBackend, TokenClock, tokens
from apr_agents.graph.build import create_parallel_agent
from apr_agents.limits import Limits
from apr_agents.trace.trajectory import Trajectory
from apr_agents.types import Call, Outline, Summary

END = "\n</Parallel>\n</think>\n4"
INPUT = {"messages": [("user", "Q")]}


def notes(run: Trajectory, id: str = "0") -> list[tuple[str, str]]:
    return [(s.event, s.why) for s in run.threads()[id].steps if s.kind == "note"]


def own_tokens(thread: Any) -> int:
    return sum(step.tokens for step in thread.steps if isinstance(step, Call | Summary))


# --- threads ------------------------------------------------------------------------


async def test_outlines_beyond_the_block_get_no_thread_and_the_parent_is_told_in_one_line(
    ask: Any, scripted: Any, outlines: Any
) -> None:
    backend = scripted({"0/0": outlines(*"abcde"), "0.*/0": " 4</Thread>", "0/2": END})
    run = await ask(create_parallel_agent(backend, limits=Limits(max_threads=3)))
    (block,) = run.root.blocks
    assert [thread.id for thread in block.threads] == ["0.1", "0.2", "0.3"]
    assert block.left_out == [Outline("4", "d"), Outline("5", "e")]
    assert block.joined == (
        "\n<Thread>\n1: 4</Thread><Thread>\n2: 4</Thread><Thread>\n3: 4</Thread>"
        "<Thread>\n4: (not started: no more than 3 threads were allowed; 2 left out)</Thread>"
    )
    assert run.answer == "4"
    assert run.budget == 3


async def test_ten_thousand_outlines_start_only_what_is_allowed(ask: Any, scripted: Any) -> None:
    many = "".join(f"<Outline>{i}: x</Outline>" for i in range(10_000))
    backend = scripted(
        {"0/0": f"<Outlines>{many}</Outlines>", "0.*/0": " 4</Thread>", "0/2": END}, chunk=1000
    )
    limits = Limits(max_tokens_per_thread=200_000, max_total_tokens=10**6)
    run = await ask(create_parallel_agent(backend, limits=limits))
    assert run.answer == "4"
    assert len(run.root.blocks[0].threads) == 8
    assert len(run.root.blocks[0].left_out) == 9_992
    assert len(run.root.blocks[0].joined) < 1000


@pytest.mark.parametrize(
    "limits",
    [Limits(max_threads=0), Limits(max_total_threads=0), Limits(max_depth=0)],
    ids=["block", "run", "depth"],
)
async def test_a_declined_spawn_goes_on_sequentially(
    ask: Any, scripted: Any, outlines: Any, limits: Limits
) -> None:
    split = outlines("a", "b")
    backend = scripted({"0/0": split, "0/2": "alone</think>4"})
    run = await ask(create_parallel_agent(backend, limits=limits))
    assert run.answer == "4"
    assert run.budget == 0
    assert notes(run) == [("declined", "2 threads asked for, none allowed")]
    assert backend.requests[-1].prompt.endswith(f"{split}\n</Parallel>\n")


async def test_the_run_never_starts_more_threads_than_its_total(
    ask: Any, scripted: Any, outlines: Any
) -> None:
    backend = scripted(
        {
            "0/0": outlines("a", "b"),
            "0/2": "\n</Parallel>\n" + outlines("c", "d"),
            "0/4": "\n</Parallel>\n" + outlines("e"),
            "0.*/0": " 4</Thread>",
            "0/6": "alone</think>4",
        }
    )
    run = await ask(create_parallel_agent(backend, limits=Limits(max_total_threads=3)))
    assert [len(block.threads) for block in run.root.blocks] == [2, 1]
    assert run.root.blocks[1].left_out == [Outline("2", "d")]
    assert notes(run) == [("declined", "1 threads asked for, none allowed")]
    assert run.answer == "4"


@pytest.mark.parametrize("total", [1, 5, 20, 64])
async def test_a_spawn_storm_ends_with_what_became_of_its_threads(total: int) -> None:
    backend = ScriptedBackend(
        lambda request: "<Outlines><Outline>1: a</Outline><Outline>2: b</Outline></Outlines>"
    )
    limits = Limits(
        max_depth=3, max_total_threads=total, max_tokens_per_thread=200, max_total_tokens=20_000
    )
    output = await create_parallel_agent(backend, limits=limits).ainvoke(INPUT)
    run = Trajectory.model_validate(output["trajectory"])
    lines = output["messages"][-1].text.splitlines()
    assert lines == [
        f"[{thread.id}] ({thread.status}: {thread.reason})"
        for thread in run.root.blocks[-1].threads
    ]
    metrics = run.metrics()
    assert 1 <= metrics.threads <= total
    assert metrics.total_tokens <= 20_000
    assert run.root.status == "over_budget"
    assert run.answer is None
    assert all(own_tokens(thread) <= 200 for thread in run.root.walk())


# --- tokens -------------------------------------------------------------------------


async def test_a_thread_that_talks_too_much_ends_over_budget_and_costs_nobody_else(
    ask: Any, scripted: Any, outlines: Any
) -> None:
    backend = scripted(
        {
            "0/0": outlines("a", "b"),
            "0.1/0": " x" * 500 + "</Thread>",
            "0.2/0": " 4</Thread>",
            "0/2": END,
        }
    )
    run = await ask(create_parallel_agent(backend, limits=Limits(max_tokens_per_thread=60)))
    talker, other = run.root.blocks[0].threads
    assert (talker.status, talker.tokens) == ("over_budget", 60)
    assert talker.transcript == " x" * 30
    assert (other.status, other.conclusion) == ("done", "4")
    assert "1: (over_budget: its 60 tokens ran out)</Thread>" in run.root.blocks[0].joined
    assert run.answer == "4"


async def test_a_full_context_ends_a_thread_over_budget(
    ask: Any, scripted: Any, outlines: Any
) -> None:
    replies = {
        "0/0": outlines("a", "b"),
        "0.1/0": " x" * 500,
        "0.2/0": " 4</Thread>",
        "0/2": END,
    }

    class Short(ScriptedBackend):
        async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
            room = 100 - len(tokens(request.prompt))
            limit = min(request.max_tokens, room)
            async with aclosing(super().stream(replace(request, max_tokens=limit))) as deltas:
                async for delta in deltas:
                    yield delta

    run = await ask(create_parallel_agent(Short(scripted(replies).script)))
    thread = run.threads()["0.1"]
    assert (thread.status, thread.reason) == ("over_budget", "the model's context is full")
    assert run.metrics().peak_context == 100
    assert run.answer == "4"


async def test_tokens_of_several_calls_count_as_one_thread(ask: Any, scripted: Any) -> None:
    backend = scripted({"0/0": "a b</Outlines>", "0/2": "c d e f g"})
    run = await ask(create_parallel_agent(backend, limits=Limits(max_tokens_per_thread=7)))
    assert [step.tokens for step in run.root.steps if step.kind == "call"] == [4, 3]
    assert run.root.status == "over_budget"


async def test_a_summary_counts_as_its_threads_tokens(
    ask: Any, scripted: Any, outlines: Any
) -> None:
    split = outlines("a")
    backend = scripted(
        {
            "0/0": split,
            "0.1/0": " a b c</Thread>",
            "0.1/1": "s " * 100,
            "0/2": END,
        }
    )
    limits = Limits(max_tokens_per_thread=len(tokens(split)))
    run = await ask(create_parallel_agent(backend, merge="summary", limits=limits))
    assert run.threads()["0.1"].tokens == len(tokens(split)) > 7


async def test_the_whole_run_keeps_within_its_tokens(
    ask: Any, scripted: Any, outlines: Any
) -> None:
    split = outlines("a", "b")
    spent = len(tokens(split))
    backend = scripted({"0/0": split, "0.*/0": " x" * 900, "0/2": " y" * 900})
    run = await ask(create_parallel_agent(backend, limits=Limits(max_total_tokens=spent + 100)))
    # Three quarters of what is left go to the threads in equal shares, the rest to the parent.
    assert [thread.tokens for thread in run.root.blocks[0].threads] == [37, 37]
    assert own_tokens(run.root) == spent + 26
    assert run.metrics().total_tokens == spent + 100
    assert run.root.status == "over_budget"


async def test_threads_that_could_not_say_a_word_are_not_started(
    ask: Any, scripted: Any, outlines: Any
) -> None:
    split = outlines("a", "b")
    backend = scripted({"0/0": split, "0/2": " x"})
    limits = Limits(max_total_tokens=len(tokens(split)) + 2)
    run = await ask(create_parallel_agent(backend, limits=limits))
    assert notes(run) == [("declined", "2 threads asked for, none allowed")]


async def test_an_answer_cut_by_its_tokens_is_still_an_answer(ask: Any, scripted: Any) -> None:
    backend = scripted({"0/0": "t</think>4 and much more"})
    run = await ask(create_parallel_agent(backend, limits=Limits(max_tokens_per_thread=3)))
    assert (run.answer, run.root.status) == ("4", "over_budget")


# --- time ---------------------------------------------------------------------------


async def test_a_thread_that_hangs_times_out_and_costs_nobody_else(
    ask: Any, scripted: Any, outlines: Any
) -> None:
    backend = scripted(
        {
            "0/0": outlines("a", "b"),
            "0.1/0": Reply(" half", hangs=True),
            "0.2/0": " 4</Thread>",
            "0/2": END,
        }
    )
    run = await ask(create_parallel_agent(backend, limits=Limits(thread_timeout=0.25)))
    hanging, other = run.root.blocks[0].threads
    assert (hanging.status, hanging.transcript) == ("timed_out", " half")
    assert hanging.reason == "it took longer than 0.25 s"
    assert 0.2 < hanging.seconds < 30
    assert (other.status, run.answer) == ("done", "4")
    assert backend.in_flight == 0


async def test_a_run_that_hangs_gives_an_empty_answer_with_its_status(scripted: Any) -> None:
    backend = scripted({"0/0": Reply("thinking", hangs=True)})
    agent = create_parallel_agent(backend, limits=Limits(timeout=0.05))
    output = await agent.ainvoke(INPUT)
    message = output["messages"][-1]
    assert message.text == ""
    assert message.response_metadata["status"] == "timed_out"
    assert Trajectory.model_validate(output["trajectory"]).answer is None
    assert backend.in_flight == 0


async def test_threads_leave_their_parent_time_to_answer(
    ask: Any, scripted: Any, outlines: Any
) -> None:
    backend = scripted({"0/0": outlines("a", "b"), "0.*/0": Reply(" half", hangs=True), "0/2": END})
    run = await ask(create_parallel_agent(backend, limits=Limits(timeout=1.0)))
    assert [thread.status for thread in run.root.blocks[0].threads] == ["timed_out"] * 2
    assert (run.answer, run.root.status) == ("4", "done")


async def test_the_time_of_threads_is_their_parents_time(
    ask: Any, scripted: Any, outlines: Any
) -> None:
    hangs = Reply(" half", hangs=True)
    backend = scripted({"0/0": outlines("a"), "0.*/0": hangs, "0/2": outlines("b"), "0/4": hangs})
    run = await ask(create_parallel_agent(backend, limits=Limits(timeout=1.2)))
    first, second, root = run.threads()["0.1"], run.threads()["0.2"], run.root
    assert {thread.status for thread in run.root.walk()} == {"timed_out"}

    def seconds(reason: str) -> float:
        return float(reason.removeprefix("it took longer than ").removesuffix(" s"))

    # Each block may take three quarters of what is left.
    assert 0.6 < seconds(first.reason) <= 0.9
    assert seconds(second.reason) <= 0.225
    assert seconds(root.reason) <= 0.3


async def test_time_at_the_gate_counts(ask: Any, scripted: Any, outlines: Any) -> None:
    backend = scripted(
        {
            "0/0": outlines("a", "b"),
            "0.1/0": Reply(" half", hangs=True),
            "0.2/0": " 4</Thread>",
            "0/2": END,
        }
    )
    limits = Limits(max_concurrency=1, thread_timeout=0.05)
    run = await ask(create_parallel_agent(backend, limits=limits))
    assert run.root.blocks[0].threads[0].status == "timed_out"
    assert run.answer == "4"


# --- concurrency and rate -------------------------------------------------------------


def always_spawns(request: Request) -> str:
    if request.prompt.endswith((":", "<think>\n")):
        return " <Outlines><Outline>1: a</Outline><Outline>2: b</Outline></Outlines>"
    return " done</Thread>" if "." in request.key else END


@pytest.mark.parametrize("concurrency", [1, 2, 5])
async def test_no_more_calls_are_in_flight_than_allowed(ask: Any, concurrency: int) -> None:
    clock = TokenClock()
    backend = ScriptedBackend(always_spawns, clock=clock)
    limits = Limits(max_depth=3, max_concurrency=concurrency, max_total_tokens=10**6)
    run = await ask(create_parallel_agent(backend, limits=limits))
    assert run.metrics().threads == 14
    assert backend.peak_in_flight == concurrency
    if concurrency == 1:
        assert clock.now == run.metrics().total_tokens


async def test_three_hundred_questions_at_once_keep_to_one_gate_without_deadlock() -> None:
    def first_threads_spawn(request: Request) -> str:
        eldest = set(request.key.partition("/")[0].split(".")[1:]) <= {"1"}
        return always_spawns(request) if eldest else " done</Thread>"

    backend = ScriptedBackend(first_threads_spawn, chunk=1000)
    agent = create_parallel_agent(backend, limits=Limits(max_depth=3, max_concurrency=8))
    async with asyncio.timeout(60):
        outputs = await asyncio.gather(*(agent.ainvoke(INPUT) for _ in range(300)))
    assert backend.peak_in_flight == 8
    assert backend.in_flight == 0
    assert all(output["messages"][-1].text == "4" for output in outputs)
    assert {request.key.count(".") for request in backend.requests} == {0, 1, 2, 3}
    assert len(backend.requests) == 300 * (4 * 2 + 3)


async def test_calls_start_no_faster_than_the_rate(ask: Any, scripted: Any, outlines: Any) -> None:
    backend = scripted({"0/0": outlines(*"abcd"), "0.*/0": " 4</Thread>", "0/2": END})
    agent = create_parallel_agent(backend, limits=Limits(requests_per_second=50))
    started = time.monotonic()
    run = await ask(agent)
    assert run.answer == "4"
    assert len(backend.requests) == 6
    assert time.monotonic() - started >= 5 * 0.02


# --- any model --------------------------------------------------------------------------

words = st.sampled_from(
    ["<Outlines>", "</Outlines>", "<Outline>1: a</Outline>", "<Outline>2: b</Outline>",
     "<Thread>", "</Thread>", "</think>", "<Conclusion>", "</Conclusion>", "<Outline>", "\n", "x "]
)  # fmt: skip


@settings(max_examples=60)
@given(
    outputs=st.lists(st.lists(words, max_size=8).map("".join), min_size=1, max_size=6),
    merge=st.sampled_from(["full", "conclusions", "summary"]),
    faults=st.sampled_from([None, "fails"]),
)
def test_whatever_a_model_writes_the_run_ends_within_its_limits(
    outputs: list[str], merge: str, faults: str | None
) -> None:
    def script(request: Request) -> Reply | str:
        thread, _, number = request.key.partition("/")
        which = sum(map(ord, thread)) + int(number)
        text = outputs[which % len(outputs)]
        fails = OSError("gone") if faults and "." in thread and which % 3 == 0 else None
        return Reply(text, fails=fails)

    limits = Limits(
        max_depth=2,
        max_threads=2,
        max_total_threads=7,
        max_tokens_per_thread=60,
        max_total_tokens=300,
    )
    agent = create_parallel_agent(ScriptedBackend(script), merge=merge, limits=limits)
    output = asyncio.run(agent.ainvoke(INPUT))
    run = Trajectory.model_validate(output["trajectory"])
    metrics = run.metrics()
    assert metrics.threads <= 7
    assert metrics.total_tokens <= 300
    assert metrics.total_tokens == run.root.tokens
    for thread in run.root.walk():
        assert own_tokens(thread) <= 60
        assert all(len(block.threads) <= 2 for block in thread.blocks)
        assert (thread.status == "done") is (thread.reason is None)
