"""What LangGraph's streams show of a run: every mode, in async and sync, saved or not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deepagents import create_deep_agent
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from apr_agents import ParallelReasoningMiddleware, ThreadsTransformer, create_parallel_agent
from tests.graph.chat_script import StreamingChat, ToolChat, spawn
from tests.graph.mortal import Log, Script

INPUT = {"messages": [("user", "Q")]}
CONFIG: Any = {"configurable": {"thread_id": "talk"}}
REPLIES = {"0/0": ["a", "b", "c"], "0.2/0": ["d", "e"]}
OUTLINES = {"0.1": "a", "0.2": "b", "0.2.1": "d", "0.2.2": "e", "0.3": "c"}
CONCLUSIONS = {
    **{id_: f"found {outline}" for id_, outline in OUTLINES.items()},
    "0.2": "found [0.2.1] found d\n[0.2.2] found e",
}
ANSWER = "found " + "\n".join(f"[{id_}] {CONCLUSIONS[id_]}" for id_ in ("0.1", "0.2", "0.3"))

saved_or_not = pytest.mark.parametrize("saved", [False, True], ids=["", "saved"])


def strict_saver() -> InMemorySaver:
    """A saver that refuses to read anything but plain data and messages."""
    return InMemorySaver(serde=JsonPlusSerializer(allowed_msgpack_modules=None))


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log")


@pytest.fixture
def agent(log: Log) -> Callable[..., Any]:
    def make(saved: bool, replies: Any = REPLIES, tools: Any = (), **options: Any) -> Any:
        model = Script(replies=replies, log=log, **options)
        return create_parallel_agent(model, tools, checkpointer=strict_saver() if saved else None)

    return make


async def stream(agent: Any, mode: Any, **options: Any) -> list[Any]:
    return [part async for part in agent.astream(INPUT, CONFIG, stream_mode=mode, **options)]


# --- the graph's own modes -----------------------------------------------------------------------


@saved_or_not
async def test_values_end_with_the_output(agent: Any, saved: bool) -> None:
    values = await stream(agent(saved), "values")
    assert values[0]["messages"][0].text == "Q"
    assert values[-1]["messages"][-1].text == ANSWER
    assert values[-1]["trajectory"]["answer"] == ANSWER


@saved_or_not
async def test_updates_tell_the_steps_of_the_root(agent: Any, saved: bool) -> None:
    updates = await stream(agent(saved), "updates")
    steps = [name for update in updates for name in update]
    block = ["thread"] * 3 if saved else ["threads"]
    assert steps == ["start", "reason", *block, "merge", "reason"]
    assert updates[-1]["reason"]["messages"][0].text == ANSWER


@pytest.mark.parametrize("mode", ["tasks", "debug"])
@saved_or_not
async def test_every_task_that_starts_ends(agent: Any, saved: bool, mode: Any) -> None:
    parts = [part for _, part in await stream(agent(saved), mode, subgraphs=True)]
    tasks = (
        [part["payload"] for part in parts if part["type"] != "checkpoint"]
        if (mode == "debug")
        else parts
    )
    begun = [task["id"] for task in tasks if "input" in task]
    ended = {task["id"]: task["error"] for task in tasks if "result" in task}
    assert sorted(ended) == sorted(begun)
    assert set(ended.values()) == {None}


async def test_checkpoints_are_streamed_as_they_are_saved(agent: Any) -> None:
    saved = agent(True)
    parts = await stream(saved, "checkpoints")
    last, state = parts[-1]["values"], (await saved.aget_state(CONFIG)).values
    assert last["messages"] == state["messages"]
    assert last["trajectory"] == state["trajectory"]
    steps = [part["metadata"]["step"] for part in parts]
    assert steps == [*range(-1, 6)]
    assert await stream(agent(False), "checkpoints") == []


# --- events ---------------------------------------------------------------------------------------


@saved_or_not
async def test_events_name_the_threads_in_outline_order(agent: Any, saved: bool) -> None:
    events = [event for _, event in await stream(agent(saved), "custom", subgraphs=True)]
    assert json.loads(json.dumps(events)) == events
    started = {event["id"]: event["text"] for event in events if event["type"] == "started"}
    assert started == {"0": "", **OUTLINES}
    order = [id_ for id_ in started if id_.count(".") == 1]
    assert order == ["0.1", "0.2", "0.3"]
    assert [id_ for id_ in started if id_.count(".") == 2] == ["0.2.1", "0.2.2"]
    finished = {event["id"]: event["text"] for event in events if event["type"] == "finished"}
    assert finished == {"0": ANSWER, **CONCLUSIONS}


@saved_or_not
async def test_sync_and_async_streams_tell_the_same(agent: Any, saved: bool, timeless: Any) -> None:
    def told(events: list[Any]) -> list[Any]:
        by_thread = sorted(events, key=lambda event: event["id"])  # each thread's in its order
        return timeless(by_thread)

    one = [event for _, event in await stream(agent(saved), "custom", subgraphs=True)]
    parts = agent(saved).stream(INPUT, CONFIG, stream_mode="custom", subgraphs=True)
    other = [event for _, event in await asyncio.to_thread(list, parts)]
    assert told(one) == told(other)


@saved_or_not
async def test_a_tool_call_is_an_event_of_its_thread(agent: Any, saved: bool) -> None:
    @tool
    def look_up(what: str) -> str:
        """Look something up."""
        return f"{what}!"

    made = agent(saved, {"0/0": ["a", "b"], "0.2/0": {"look_up": ["x"]}}, [look_up])
    events = [event for _, event in await stream(made, "custom", subgraphs=True)]
    assert [(event["id"], event["text"]) for event in events if event["type"] == "tool"] == [
        ("0.2", "look_up({'what': 'x'})")
    ]


async def test_where_threads_are_subgraphs_their_events_come_with_the_subgraphs(
    agent: Any,
) -> None:
    """Where nothing is saved they are not, and come in any case."""
    for saved, count in ((True, 1), (False, 6)):
        events = await stream(agent(saved), "custom")
        assert len({event["id"] for event in events if event["type"] == "started"}) == count
    places = {
        event["id"]: place
        for place, event in await stream(agent(True), "custom", subgraphs=True)
        if event["type"] == "finished"
    }
    assert places["0"] == ()
    assert places["0.2.1"] == places["0.2.2"] == places["0.2"] != places["0.1"]


# --- messages -------------------------------------------------------------------------------------


def says(asked: Any) -> AIMessage | str:
    if asked.last == "Q":
        return spawn("a", "b")
    return f"found {asked.last}"


async def tokens(agent: Any) -> dict[str | None, str]:
    """All that was written, by thread."""
    written: dict[str | None, str] = {}
    for _, (message, metadata) in await stream(agent, "messages", subgraphs=True):
        if isinstance(message, AIMessageChunk):
            thread = metadata.get("apr_thread")
            written[thread] = written.get(thread, "") + message.text
    return written


@saved_or_not
async def test_tokens_say_which_thread_they_belong_to(chat: Any, saved: bool) -> None:
    model = chat(says, StreamingChat)
    agent = create_parallel_agent(model, checkpointer=strict_saver() if saved else None)
    assert await tokens(agent) == {
        "0": "found [0.1] found a\n[0.2] found b",
        "0.1": "found a",
        "0.2": "found b",
    }


@saved_or_not
async def test_so_they_do_inside_create_agent(chat: Any, log: Log, saved: bool) -> None:
    agent = create_agent(
        Script(replies={"0/0": ["a", "b"]}, log=log),
        middleware=[ParallelReasoningMiddleware(chat(says, StreamingChat))],
        checkpointer=strict_saver() if saved else None,
    )
    assert await tokens(agent) == {"0.1": "found a", "0.2": "found b"}


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "in pieces"])
@saved_or_not
async def test_the_answer_comes_once(chat: Any, saved: bool, streaming: bool) -> None:
    """Not once from the model and once more from the agent."""
    model = chat(says, StreamingChat if streaming else ToolChat)
    agent = create_parallel_agent(model, checkpointer=strict_saver() if saved else None)
    parts = await stream(agent, ["messages", "values"], subgraphs=True)
    answer = parts[-1][2]["messages"][-1]
    heard = [part[0] for _, mode, part in parts if mode == "messages"]
    written: dict[str, str] = {}
    for message in heard:
        written[message.id] = written.get(message.id, "") + message.text
    assert written[answer.id] == answer.text
    assert sorted(filter(None, written.values())) == sorted(["found a", "found b", answer.text])


# --- event streams (v3) ---------------------------------------------------------------------------


v3 = pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")


def parallel(model: Any, saver: Any) -> Any:
    return create_parallel_agent(model, checkpointer=saver)


def inside(model: Any, saver: Any) -> Any:
    middleware = [ParallelReasoningMiddleware(model)]
    return create_agent(model, name="agent", middleware=middleware, checkpointer=saver)


def deep(model: Any, saver: Any) -> Any:
    middleware = [ParallelReasoningMiddleware(model)]
    return create_deep_agent(model, name="agent", middleware=middleware, checkpointer=saver)


AGENTS = [parallel, inside, deep]


@v3
@pytest.mark.parametrize("listed", ["threads", "subagents"])
@pytest.mark.parametrize("make", AGENTS)
@saved_or_not
async def test_event_streams_list_every_thread(
    log: Log, saved: bool, make: Any, listed: str
) -> None:
    agent = make(Script(replies=REPLIES, log=log), strict_saver() if saved else None)
    run = await agent.astream_events(INPUT, CONFIG, version="v3")
    threads = {thread.id: thread async for thread in getattr(run, listed)}
    assert {id_: thread.outline for id_, thread in threads.items()} == OUTLINES
    assert {id_: thread.output for id_, thread in threads.items()} == CONCLUSIONS
    assert {id_: thread.text for id_, thread in threads.items()} == CONCLUSIONS
    assert {thread.status for thread in threads.values()} == {"done"}
    assert {thread.name for thread in threads.values()} == set(OUTLINES)
    assert (await run.output())["messages"][-1].text == ANSWER


@v3
@pytest.mark.parametrize("make", AGENTS)
@saved_or_not
def test_sync_event_streams_list_them_too(log: Log, saved: bool, make: Any) -> None:
    agent = make(Script(replies=REPLIES, log=log), strict_saver() if saved else None)
    run = agent.stream_events(INPUT, CONFIG, version="v3")
    assert {thread.id: thread.output for thread in list(run.threads)} == CONCLUSIONS


@v3
@pytest.mark.parametrize("make", AGENTS)
@saved_or_not
async def test_a_thread_is_listed_while_it_runs(log: Log, saved: bool, make: Any) -> None:
    """Thread 0.1 waits until it has been seen."""
    model = Script(replies={"0/0": ["a", "b"]}, waits={"0.1/0": "seen"}, log=log)
    agent = make(model, strict_saver() if saved else None)
    run = await agent.astream_events(INPUT, CONFIG, version="v3")
    async with asyncio.timeout(30):
        async for thread in run.threads:
            if thread.id == "0.1":
                assert (thread.status, thread.output) == (None, None)
                log("seen")
                first = thread
    assert (first.status, first.output) == ("done", "found a")


@v3
@saved_or_not
async def test_a_graph_around_the_agent_lists_them_when_told_to(agent: Any, saved: bool) -> None:
    around = StateGraph(MessagesState)
    around.add_node("think", agent(False))
    around.add_edge(START, "think")
    saver = strict_saver() if saved else None
    for compiled, called in ([ThreadsTransformer], None), ((), [ThreadsTransformer]):
        graph = around.compile(checkpointer=saver, transformers=compiled)
        config = {"configurable": {"thread_id": str(called)}}
        run = await graph.astream_events(INPUT, config, version="v3", transformers=called)
        threads = [thread async for thread in run.threads]
        assert {thread.id: thread.output for thread in threads} == CONCLUSIONS


@v3
async def test_a_failed_thread_is_listed_as_such(log: Log) -> None:
    class Fails(Script):
        def _reply(self, messages: Any, key: str) -> Any:
            if key == "0.2/0":
                raise OSError("out of order")
            return super()._reply(messages, key)

    broken = Fails(replies={"0/0": ["a", "b"]}, log=log)
    run = await create_parallel_agent(broken).astream_events(INPUT, CONFIG, version="v3")
    threads = [thread async for thread in run.threads]
    assert {thread.id: (thread.status, thread.output) for thread in threads} == {
        "0.1": ("done", "found a"),
        "0.2": ("failed", ""),
    }


@v3
@pytest.mark.parametrize("inside_agent", [False, True])
async def test_a_run_that_goes_on_lists_the_threads_that_go_on(
    log: Log, inside_agent: bool
) -> None:
    @tool
    def ask(what: str) -> str:
        """Ask the human."""
        return f"{what}: {interrupt(what)}"

    model = Script(replies={"0/0": ["a", "b"], "0.2/0": {"ask": ["x"]}}, log=log)
    if inside_agent:
        middleware = [ParallelReasoningMiddleware(model, [ask])]
        agent: Any = create_agent(model, middleware=middleware, checkpointer=strict_saver())
    else:
        agent = create_parallel_agent(model, [ask], checkpointer=strict_saver())
    run = await agent.astream_events(INPUT, CONFIG, version="v3")
    before = {thread.id: thread async for thread in run.threads}
    assert {id_: thread.status for id_, thread in before.items()} == {"0.1": "done", "0.2": None}

    run = await agent.astream_events(Command(resume="yes"), CONFIG, version="v3")
    after = [(thread.id, thread) async for thread in run.threads]
    assert [(id_, thread.status, thread.output) for id_, thread in after] == [
        ("0.2", "done", "found x: yes")
    ]


@v3
@saved_or_not
async def test_threads_of_an_agent_that_a_tool_runs_are_not_taken_for_those_around_it(
    log: Log, saved: bool
) -> None:
    inner = create_parallel_agent(
        Script(replies={"0/0": ["inner a", "inner b"], "0.1/0": "small"}, log=log)
    )

    @tool
    async def delegate(what: str) -> str:
        """Have another agent do it."""
        return str((await inner.ainvoke({"messages": [("user", what)]}))["messages"][-1].text)

    model = Script(replies={"0/0": ["a"], "0.1/0": {"delegate": ["x"]}, "0.1/1": "great"}, log=log)
    outer = create_parallel_agent(model, [delegate], checkpointer=strict_saver() if saved else None)
    run = await outer.astream_events(INPUT, CONFIG, version="v3")
    threads = [thread async for thread in run.threads]
    assert [(thread.id, thread.outline, thread.output) for thread in threads] == [
        ("0.1", "a", "great"),
        ("0.1", "inner a", "small"),
        ("0.2", "inner b", "found inner b"),
    ]
