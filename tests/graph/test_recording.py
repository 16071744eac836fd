"""When things happened, and what it costs a run if that cannot be told."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt

from apr_agents.backends.gate import Gate
from apr_agents.backends.scripted import Reply, TokenClock
from apr_agents.graph import state
from apr_agents.graph.build import create_parallel_agent, create_runner
from apr_agents.graph.runner import Scene
from apr_agents.graph.state import Thread
from apr_agents.limits import Allowance, Limits
from apr_agents.trace.trajectory import Trajectory
from apr_agents.types import Block, Call, Generated, Summary, Timed, ToolUse
from tests.graph.chat_script import Asked, Says, call, calls, spawn


def timed(run: Trajectory) -> list[Timed]:
    return [step for each in run.root.walk() for step in each.steps if isinstance(step, Timed)]


@pytest.fixture
def replies(outlines: Any) -> dict[str, Reply | str]:
    return {
        "0/0": outlines("a", "b", "c", "d"),
        "0.*/0": " 1</Thread>",
        "0/2": "\n</Parallel></think>4",
    }


async def test_steps_of_a_thread_follow_each_other(ask: Any, scripted: Any, replies: Any) -> None:
    run = await ask(create_parallel_agent(scripted(replies)))
    first, block, last = run.root.steps
    assert 0 <= run.root.started <= first.started <= first.ended
    assert first.ended == block.started <= block.ended <= last.started <= last.ended
    assert run.root.ended == last.ended
    for step in timed(run):
        assert step.seconds >= 0
    for step in (step for step in timed(run) if isinstance(step, Generated)):
        assert step.waited >= 0
        assert step.first_token is not None
        assert step.waited + step.first_token <= step.seconds + 1e-6


async def test_calls_that_the_gate_holds_back_have_waited(
    ask: Any, scripted: Any, replies: Any
) -> None:
    """With one lane, each thread waits until those before it have written."""
    backend = scripted(replies, clock=TokenClock())
    run = await ask(create_parallel_agent(backend, limits=Limits(max_concurrency=1)))
    children = [step for each in run.root.blocks[0].threads for step in each.steps]
    admitted = [step.started + step.waited for step in children]
    for before, after in zip(children, admitted[1:], strict=False):
        assert before.ended <= after + 1e-6
    assert run.metrics().gate_wait == pytest.approx(sum(step.waited for step in timed(run) if
                                                        isinstance(step, Generated)))  # fmt: skip
    assert run.metrics().gate_wait > 0


async def test_a_call_that_never_got_through_has_only_waited(
    ask: Any, scripted: Any, replies: Any
) -> None:
    gate = Gate(1)
    agent = create_parallel_agent(scripted(replies), limits=Limits(timeout=0.05), gate=gate)
    async with gate.hold():
        run = await ask(agent)
    (step,) = run.root.steps
    assert run.root.status == "timed_out"
    assert (step.waited, step.first_token, step.tokens) == (step.seconds, None, 0)
    assert step.waited > 0


async def test_a_budget_is_recorded_with_every_call(chat: Any, ask: Any) -> None:
    def says(asked: Asked) -> Any:
        return spawn("a", "b") if asked.last == "Q" else "done"

    limits = Limits(max_threads=5, max_total_threads=6)
    run = await ask(create_parallel_agent(chat(says), limits=limits))
    assert [step.budget for step in run.root.steps if isinstance(step, Call)] == [5, 4]
    assert [each.steps[0].budget for each in run.root.blocks[0].threads] == [2, 2]


async def test_prefix_hits_are_recorded_where_a_chat_model_tells(chat: Any, ask: Any) -> None:
    usage: Any = {"input_tokens": 50, "output_tokens": 2, "total_tokens": 52}

    def says(asked: Asked) -> Any:
        if asked.last == "Q":
            return spawn("a")
        told = {"input_token_details": {"cache_read": 40}} if asked.thread == "0.1" else {}
        return AIMessage("done", usage_metadata={**usage, **told})

    run = await ask(create_parallel_agent(chat(says)))
    told = [step.cached_tokens for step in timed(run) if isinstance(step, Call)]
    assert sorted(told, key=str) == [40, None, None]
    assert run.metrics().prefix_hit_share == 40 / 50


async def test_a_summary_may_start_no_thread(ask: Any, scripted: Any, outlines: Any) -> None:
    replies = {
        "0/0": outlines("a", "b"),
        "0.*/0": " 1</Thread>",
        "0.*/1": " one</Conclusion>",
        "0/2": "\n</Parallel></think>4",
    }
    run = await ask(create_parallel_agent(scripted(replies), merge="summary"))
    summaries = [step for step in timed(run) if isinstance(step, Summary)]
    assert [step.budget for step in summaries] == [0, 0]
    assert all(step.started > 0 for step in summaries)


async def test_tools_and_threads_of_one_message_overlap(chat: Any, ask: Any) -> None:
    @tool
    async def wait_for_a(what: str) -> str:
        """Wait."""
        await used.wait()
        return what

    used = asyncio.Event()

    def says(asked: Asked) -> Any:
        if asked.last == "Q":
            return calls(*spawn("a").tool_calls, call("wait_for_a", what="x"))
        if asked.thread == "0.1":
            return Says("done", when=lambda: used.set() or True)  # type: ignore[func-returns-value]
        return "end"

    run = await ask(create_parallel_agent(chat(says), [wait_for_a]))
    _, use, block, _ = run.root.steps
    assert isinstance(use, ToolUse)
    assert isinstance(block, Block)
    (thread,) = block.threads
    assert block.started <= min(use.started, thread.started)
    assert max(use.started, thread.started) < min(use.ended, thread.ended)


# --- clocks --------------------------------------------------------------------------------------


def a_thread(began: float) -> Thread:
    return Thread(base="", allowance=Allowance.of(Limits()), began=began)


def test_time_goes_on_where_the_record_ends_though_the_clock_was_set_back() -> None:
    """As in another process, after a restart."""
    thread = a_thread(state.now() + 3600)
    assert thread.clock() == 0
    thread.steps.append(Call(text="", tokens=1, prompt_tokens=1, started=5.0, seconds=2.0))
    assert thread.clock() == 7.0


def test_the_clock_of_a_run_is_that_of_the_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.time() - 100
    assert a_thread(began).clock() == pytest.approx(100, abs=10)
    before = a_thread(began).clock()
    monkeypatch.setattr(time, "time", lambda: 0.0)  # somebody sets it
    assert a_thread(began).clock() >= before


async def test_a_run_that_goes_on_later_has_times_in_order(chat: Any) -> None:
    @tool
    def ask_human(what: str) -> str:
        """Ask."""
        return str(interrupt(what))

    def says(asked: Asked) -> Any:
        if asked.last == "Q":
            return spawn("a", "b")
        if asked.last == "b":
            return calls(call("ask_human", what="?"))
        return "done"

    agent = create_parallel_agent(chat(says), [ask_human], checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "talk"}}
    await agent.ainvoke({"messages": [("user", "Q")]}, config)
    (task,) = (await agent.aget_state(config)).tasks[1:]
    waited_from = state.now()
    output = await agent.ainvoke(Command(resume={task.interrupts[0].id: "42"}), config)
    run = Trajectory.model_validate(output["trajectory"])
    assert run.began is not None
    asked = run.threads()["0.2"]
    first, use, last = asked.steps
    assert isinstance(use, ToolUse)
    assert first.ended < waited_from - run.began.timestamp() < use.started + 1e-3
    assert first.ended <= use.started <= use.ended <= last.started
    assert run.root.blocks[0].ended >= asked.ended > run.threads()["0.1"].ended


# --- what cannot be told -------------------------------------------------------------------------


async def test_a_stream_that_breaks_costs_a_run_nothing(
    scripted: Any, replies: Any, timeless: Any
) -> None:
    told: list[str] = []

    def closed(event: Any) -> None:
        told.append(event["type"])
        raise RuntimeError("the stream is closed")

    runner = create_runner(scripted(replies))

    async def run(emit: Any) -> Any:
        root = runner.start([HumanMessage("Q")])
        scene = Scene(emit)
        await runner.live(root, scene)
        return timeless(runner.trajectory(root, emit).to_dict())

    assert await run(closed) == await run(lambda event: None)
    assert {"started", "admitted", "token", "spawned", "merged", "finished"} <= set(told)
