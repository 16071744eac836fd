"""The agent among LangGraph's own things: checkpointers, other graphs, streams."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, MessagesState, StateGraph

from apr_agents.backends.base import Request
from apr_agents.backends.scripted import Reply, ScriptedBackend, TokenClock
from apr_agents.errors import BackendFailed
from apr_agents.graph.build import create_parallel_agent
from apr_agents.graph.state import Thread
from apr_agents.limits import Limits
from apr_agents.trace.trajectory import Trajectory

ANSWER = "\n</Parallel>\n</think>\n4"
INPUT = {"messages": [("user", "Q")]}
CONFIG: Any = {"configurable": {"thread_id": "talk"}}


@pytest.fixture
def replies(outlines: Any) -> dict[str, Reply | str]:
    return {
        "0/0": outlines("a", "b"),
        "0.1/0": " " + outlines("c", "d"),
        "0.1.*/0": " 2</Thread>",
        "0.1/2": "\n</Parallel>\n4</Thread>",
        "0.2/0": " 3</Thread>",
        "0/2": ANSWER,
    }


def strict_saver() -> InMemorySaver:
    """A saver that refuses to read anything but plain data and messages."""
    return InMemorySaver(serde=JsonPlusSerializer(allowed_msgpack_modules=None))


# --- checkpointers ---------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2])
async def test_checkpointed_runs_are_the_same_runs(
    ask: Any, scripted: Any, replies: Any, timeless: Any, tmp_path: Path, depth: int
) -> None:
    if depth == 1:
        replies["0.1/2"] = " 4</Thread>"
    limits = Limits(max_depth=depth)
    plain = await ask(create_parallel_agent(scripted(replies), limits=limits))
    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "talk.db")) as sqlite:
        for saver in (strict_saver(), sqlite):
            agent = create_parallel_agent(scripted(replies), limits=limits, checkpointer=saver)
            run = await ask(agent, config=CONFIG)
            assert timeless(run.to_dict()) == timeless(plain.to_dict())
            saved = (await agent.aget_state(CONFIG)).values
            assert Trajectory.model_validate(saved["trajectory"]) == run
            assert saved["messages"][-1].text == "4"
    assert len(plain.threads()) == (5 if depth == 2 else 3)


def test_checkpoints_work_in_sync_code(scripted: Any, replies: Any) -> None:
    agent = create_parallel_agent(scripted(replies), checkpointer=strict_saver())
    assert agent.invoke(INPUT, CONFIG)["messages"][-1].text == "4"


async def test_state_is_plain_json_data_at_every_step(scripted: Any, replies: Any) -> None:
    agent = create_parallel_agent(scripted(replies), checkpointer=strict_saver())
    await agent.ainvoke(INPUT, CONFIG)
    seen = 0
    async for snapshot in agent.aget_state_history(CONFIG):
        for key, value in snapshot.values.items():
            if key == "messages":
                continue
            again = json.loads(json.dumps(value))
            if key == "thread":
                assert Thread.of(again) == Thread.of(value)
                seen += 1
    assert seen > 3
    # What was merged is in the thread's record and nowhere else.
    assert (await agent.aget_state(CONFIG)).values["results"] == []


async def test_a_conversation_goes_on_with_a_fresh_thread(scripted: Any, replies: Any) -> None:
    backend = scripted(replies)
    agent = create_parallel_agent(backend, checkpointer=strict_saver())
    first = await agent.ainvoke(INPUT, CONFIG)
    second = await agent.ainvoke({"messages": [("user", "And then?")]}, CONFIG)
    assert [message.text for message in second["messages"]] == ["Q", "4", "And then?", "4"]
    runs = [Trajectory.model_validate(output["trajectory"]) for output in (first, second)]
    assert runs[1].question == "Q\n4\nAnd then?\nThreads: 8\n<think>\n"
    assert list(runs[1].threads()) == list(runs[0].threads())
    assert runs[1].root.tokens == runs[0].root.tokens


async def test_a_run_that_broke_off_goes_on_where_it_was(
    scripted: Any, replies: Any, timeless: Any, ask: Any, tmp_path: Path
) -> None:
    whole = await ask(create_parallel_agent(scripted(replies)))
    path = str(tmp_path / "talk.db")
    broken = scripted({**replies, "0/2": Reply("", fails=BackendFailed("power cut"))})
    async with AsyncSqliteSaver.from_conn_string(path) as saver:
        with pytest.raises(BackendFailed):
            await create_parallel_agent(broken, checkpointer=saver).ainvoke(INPUT, CONFIG)
    mended = scripted(replies)
    async with AsyncSqliteSaver.from_conn_string(path) as saver:
        output = await create_parallel_agent(mended, checkpointer=saver).ainvoke(None, CONFIG)
    assert [request.key for request in mended.requests] == ["0/2"]
    assert timeless(output["trajectory"]) == timeless(whole.to_dict())


async def test_a_thread_that_was_finished_is_not_run_again(scripted: Any, outlines: Any) -> None:
    """Cut off while one of two leaves still works: only that one is repeated."""
    replies = {"0/0": outlines("a", "b"), "0.*/0": " 3</Thread>", "0/2": ANSWER}
    saver = strict_saver()
    limits = Limits(max_depth=1)
    cut = scripted({**replies, "0.2/0": Reply(" half", hangs=True)})
    agent = create_parallel_agent(cut, limits=limits, checkpointer=saver)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await agent.ainvoke(INPUT, CONFIG)
    assert cut.in_flight == 0
    mended = scripted(replies)
    agent = create_parallel_agent(mended, limits=limits, checkpointer=saver)
    output = await agent.ainvoke(None, CONFIG)
    assert [request.key for request in mended.requests] == ["0.2/0", "0/2"]
    run = Trajectory.model_validate(output["trajectory"])
    assert [thread.status for thread in run.root.walk()] == ["done"] * 3


# --- inside another graph -----------------------------------------------------------------


def around(agent: Any, **options: Any) -> Any:
    def check(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(f"checked: {state['messages'][-1].text}")]}

    graph = StateGraph(MessagesState)
    graph.add_node("think", agent)
    graph.add_node("check", check)
    graph.add_edge(START, "think")
    graph.add_edge("think", "check")
    graph.add_edge("check", END)
    return graph.compile(**options)


async def test_the_agent_is_one_node_of_a_graph_over_messages(scripted: Any, replies: Any) -> None:
    graph = around(create_parallel_agent(scripted(replies)))
    for output in (await graph.ainvoke(INPUT), await asyncio.to_thread(graph.invoke, INPUT)):
        assert [message.text for message in output["messages"]] == ["Q", "4", "checked: 4"]
        assert set(output) == {"messages"}


async def test_the_checkpointer_of_the_graph_around_serves_the_agent_too(
    scripted: Any, replies: Any
) -> None:
    backend = scripted(replies)
    graph = around(create_parallel_agent(backend), checkpointer=strict_saver())
    await graph.ainvoke(INPUT, CONFIG)
    output = await graph.ainvoke({"messages": [("user", "again")]}, CONFIG)
    assert [message.text for message in output["messages"]] == [
        "Q", "4", "checked: 4", "again", "4", "checked: 4",
    ]  # fmt: skip
    assert sum(request.key == "0.1.1/0" for request in backend.requests) == 2


async def test_two_agents_in_one_graph_do_not_mix(scripted: Any, replies: Any) -> None:
    first = create_parallel_agent(scripted(replies), name="first")
    second = create_parallel_agent(scripted({"0/0": "</think>5"}), name="second")
    graph = StateGraph(MessagesState)
    graph.add_node("one", first)
    graph.add_node("two", second)
    graph.add_edge(START, "one")
    graph.add_edge("one", "two")
    output = await graph.compile().ainvoke(INPUT)
    assert [message.text for message in output["messages"]] == ["Q", "4", "5"]


# --- streams --------------------------------------------------------------------------------


async def test_the_custom_stream_tells_what_happens_in_every_thread(
    scripted: Any, replies: Any
) -> None:
    agent = create_parallel_agent(scripted(replies))
    stream = agent.astream(INPUT, stream_mode="custom", subgraphs=True)
    events = [event async for _, event in stream]
    told: dict[str, set[str]] = {}
    for event in events:
        told.setdefault(event["type"], set()).add(event["id"])
    threads = ["0", "0.1", "0.1.1", "0.1.2", "0.2"]
    assert told["started"] == set(threads)
    assert told["finished"] == set(threads)
    assert told["merged"] == {"0", "0.1"}
    spawned = {event["id"]: event["threads"] for event in events if event["type"] == "spawned"}
    assert spawned == {"0": ["0.1", "0.2"], "0.1": ["0.1.1", "0.1.2"]}
    outlines = {event["id"]: event["text"] for event in events if event["type"] == "started"}
    assert outlines == {"0": "", "0.1": "a", "0.1.1": "c", "0.1.2": "d", "0.2": "b"}
    last = events[-1]
    assert (last["type"], last["id"], last["status"], last["text"]) == (
        "finished", "0", "done", "4",
    )  # fmt: skip
    counted = sum(event["tokens"] for event in events if event["type"] == "token")
    assert counted == last["tokens"]
    assert json.loads(json.dumps(events)) == events


async def test_events_of_a_thread_come_in_order(scripted: Any, replies: Any) -> None:
    agent = create_parallel_agent(scripted(replies))
    stream = agent.astream(INPUT, stream_mode="custom", subgraphs=True)
    told = [event["type"] async for _, event in stream if event["id"] == "0.1"]
    kinds = [kind for kind, before in zip(told, ["", *told], strict=False) if kind != before]
    call = ["admitted", "token"]
    assert kinds == ["started", *call, "spawned", "merged", *call, "finished"]


async def test_decisions_that_were_not_carried_out_are_told(scripted: Any, outlines: Any) -> None:
    backend = scripted({"0/0": "</Outlines>", "0/2": outlines("a"), "0/4": "</think>4"})
    agent = create_parallel_agent(backend, limits=Limits(max_threads=0))
    events = [event async for event in agent.astream(INPUT, stream_mode="custom")]
    told = [(e["type"], e["text"]) for e in events if e["type"] in ("malformed", "declined")]
    assert told == [
        ("malformed", "</Outlines> without <Outlines>"),
        ("declined", "1 threads asked for, none allowed"),
    ]


def test_events_reach_sync_streams(scripted: Any, replies: Any) -> None:
    agent = create_parallel_agent(scripted(replies))
    events = [e for _, e in agent.stream(INPUT, stream_mode="custom", subgraphs=True)]
    assert {e["id"] for e in events if e["type"] == "finished"} == {
        "0", "0.1", "0.1.1", "0.1.2", "0.2",
    }  # fmt: skip


async def test_events_come_while_the_run_is_still_going() -> None:
    hold = asyncio.Event()

    class Waiting(ScriptedBackend):
        async def stream(self, request: Request) -> Any:
            async for delta in super().stream(request):
                yield delta
                await hold.wait()

    agent = create_parallel_agent(Waiting(lambda request: "a</think>4"))
    kinds = []
    async with asyncio.timeout(30):
        async for event in agent.astream(INPUT, stream_mode="custom"):
            kinds.append(event["type"])
            if event["type"] == "token":
                assert "finished" not in kinds
                hold.set()
    assert kinds[-1] == "finished"


# --- wide blocks -------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [False, True])
async def test_hundreds_of_leaves_join_in_order(
    ask: Any, scripted: Any, outlines: Any, durable: bool
) -> None:
    backend = scripted(
        {"0/0": outlines(*map(str, range(200))), "0.*/0": " 4</Thread>", "0/2": ANSWER},
        chunk=100,
        clock=TokenClock(),
    )
    limits = Limits(
        max_depth=1,
        max_threads=200,
        max_total_threads=200,
        max_tokens_per_thread=10**5,
        max_total_tokens=10**6,
        max_concurrency=50,
    )
    checkpointer = strict_saver() if durable else None
    agent = create_parallel_agent(backend, limits=limits, checkpointer=checkpointer)
    run = await ask(agent, config=CONFIG)
    assert run.answer == "4"
    assert [t.outline.text for t in run.root.blocks[0].threads] == [*map(str, range(200))]
    assert backend.peak_in_flight == 50
