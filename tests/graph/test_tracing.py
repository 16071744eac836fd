"""What LangChain's tracers see of a run: names, tags, metadata and parents."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.messages import AIMessageChunk
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from langchain_core.tracers.schemas import Run
from langgraph.checkpoint.memory import InMemorySaver

from apr_agents.backends.scripted import Reply
from apr_agents.graph.build import create_parallel_agent
from apr_agents.trace.trajectory import Trajectory
from tests.graph.chat_script import Asked, calls, spawn
from tests.graph.chat_script import call as tool_call

INPUT: Any = {"messages": [("user", "Q")]}

saved_or_not = pytest.mark.parametrize("saved", [False, True], ids=["", "saved"])


@tool
def look_up(what: str) -> str:
    """Look something up."""
    return f"{what}!"


def says(asked: Asked) -> Any:
    match asked.thread, asked.number:
        case "0", 0:
            return spawn("a", "b")
        case "0.2", 0:
            return spawn("c", "d")
        case "0.2.1", 0:
            return calls(tool_call("look_up", what="x"))
    return f"found {asked.last}"


def walk(run: Run, above: tuple[Run, ...] = ()) -> Iterator[tuple[Run, tuple[Run, ...]]]:
    """Every run, with those above it, the innermost first."""
    yield run, above
    for child in run.child_runs:
        yield from walk(child, (run, *above))


def told(run: Run) -> dict[str, Any]:
    metadata: dict[str, Any] = (run.extra or {}).get("metadata", {})
    return metadata


async def traced(agent: Any, **config: Any) -> list[tuple[Run, tuple[Run, ...]]]:
    collector = RunCollectorCallbackHandler()
    options: RunnableConfig = {
        "callbacks": [collector],
        "configurable": {"thread_id": "talk"},
        "tags": ["mine"],
        "metadata": {"user": "me"},
        **config,  # type: ignore[typeddict-item]
    }
    await agent.ainvoke(INPUT, options)
    (root,) = collector.traced_runs
    return list(walk(root))


@saved_or_not
async def test_every_call_says_whose_it_is(chat: Any, saved: bool) -> None:
    agent = create_parallel_agent(
        chat(says), [look_up], checkpointer=InMemorySaver() if saved else None
    )
    runs = [run for run, _ in await traced(agent) if run.run_type in ("llm", "tool")]
    by_thread: dict[str, list[str]] = {}
    for run in runs:
        thread = told(run)["apr_thread"]
        by_thread.setdefault(thread, []).append(run.run_type)
        assert f"thread:{thread}" in (run.tags or [])
        assert "mine" in (run.tags or [])
        assert told(run)["user"] == "me"
    assert by_thread == {
        "0": ["llm", "llm"],
        "0.1": ["llm"],
        "0.2": ["llm", "llm"],
        "0.2.1": ["llm", "tool", "llm"],
        "0.2.2": ["llm"],
    }


async def test_threads_that_share_a_node_are_runs_within_each_other(chat: Any) -> None:
    runs = await traced(create_parallel_agent(chat(says), [look_up]))
    threads = {run.name: (run, above) for run, above in runs if run.name.startswith("thread ")}
    assert {name: above[0].name for name, (_, above) in threads.items()} == {
        "thread 0.1": "threads",
        "thread 0.2": "threads",
        "thread 0.2.1": "thread 0.2",
        "thread 0.2.2": "thread 0.2",
    }
    for name, (run, _) in threads.items():
        thread = name.partition(" ")[2]
        assert told(run)["apr_thread"] == thread
        assert f"thread:{thread}" in (run.tags or [])
        assert run.run_type == "chain"
        assert (run.outputs or {})["status"] == "done"
        assert run.end_time is not None
    for run, above in runs:
        if run.run_type in ("llm", "tool") and told(run)["apr_thread"] != "0":
            assert above[0].name == f"thread {told(run)['apr_thread']}"
    assert threads["thread 0.2.1"][0].inputs == {"outline": "c"}
    assert (threads["thread 0.2.1"][0].outputs or {})["conclusion"] == "found x!"


async def test_threads_that_are_graphs_are_grouped_by_them(chat: Any) -> None:
    agent = create_parallel_agent(chat(says), [look_up], checkpointer=InMemorySaver())
    calls_within: dict[str, set[str]] = {}
    for run, above in await traced(agent):
        if run.run_type == "llm":
            graphs = [each for each in above if each.name in ("thread", "parallel_agent")]
            calls_within.setdefault(str(graphs[0].id), set()).add(told(run)["apr_thread"])
    assert sorted(map(sorted, calls_within.values())) == [
        ["0"], ["0.1"], ["0.2"], ["0.2.1"], ["0.2.2"]
    ]  # fmt: skip


@pytest.fixture
def text_agent(scripted: Any, outlines: Any) -> Any:
    replies = {
        "0/0": "Split." + outlines("a", "b"),
        "0.1/0": " 1</Thread>",
        "0.2/0": Reply(" half", fails=OSError("boom")),
        "0/2": "\n</Parallel></think>3",
    }
    return create_parallel_agent(scripted(replies))


async def test_a_model_that_continues_text_is_an_llm_run(text_agent: Any) -> None:
    runs = [(run, above[0].name) for run, above in await traced(text_agent) if
            run.run_type == "llm"]  # fmt: skip
    seen = [(told(run)["apr_thread"], parent) for run, parent in runs]
    assert seen == [
        ("0", "reason"), ("0.1", "thread 0.1"), ("0.2", "thread 0.2"), ("0", "reason")
    ]  # fmt: skip
    first, _, failed, last = (run for run, _ in runs)
    assert {run.name for run, _ in runs} == {"scripted"}
    assert told(first)["ls_model_name"] == "scripted"
    assert first.inputs["prompts"][0].startswith("Q\nThreads: 8\n")
    assert (first.outputs or {})["generations"][0][0]["text"].startswith("Split.")
    usage = (last.outputs or {})["llm_output"]["token_usage"]
    assert usage["completion_tokens"] > 0
    assert usage["prompt_tokens"] > usage["completion_tokens"]
    assert "boom" in (failed.error or "")
    assert all(run.end_time for run, _ in runs)


async def test_tokens_of_a_text_are_streamed_to_callbacks(text_agent: Any) -> None:
    class Listener(AsyncCallbackHandler):
        text = ""

        async def on_llm_new_token(self, token: str, **_: Any) -> None:
            self.text += token

    listener = Listener()
    await text_agent.ainvoke(INPUT, {"callbacks": [listener]})
    assert listener.text.startswith("Split.")
    assert listener.text.endswith("3")


async def test_messages_are_streamed_as_they_were(text_agent: Any) -> None:
    stream = text_agent.astream(INPUT, stream_mode="messages", subgraphs=True)
    messages = [message async for _, (message, _) in stream]
    assert not [each for each in messages if isinstance(each, AIMessageChunk)]
    assert [message.text for message in messages] == ["3"]


async def test_a_cancelled_run_leaves_no_run_open(scripted: Any, outlines: Any) -> None:
    class Counter(AsyncCallbackHandler):
        open, failed = 0, 0
        thinking = asyncio.Semaphore(0)

        async def on_llm_start(self, *_: Any, **__: Any) -> None:
            self.open += 1

        async def on_chain_start(self, *_: Any, name: str = "", **__: Any) -> None:
            self.open += name.startswith("thread ")

        async def on_llm_new_token(self, token: str, **_: Any) -> None:
            if token == "1":
                self.thinking.release()

        async def on_llm_end(self, *_: Any, **__: Any) -> None:
            self.open -= 1

        async def on_llm_error(self, *_: Any, **__: Any) -> None:
            self.open, self.failed = self.open - 1, self.failed + 1

        async def on_chain_error(self, error: BaseException, *, tags: Any = (), **_: Any) -> None:
            self.open -= any(tag.startswith("thread:") for tag in tags or ())

    replies = {"0/0": outlines("a", "b"), "0.*/0": Reply(" 1", hangs=True)}
    counter = Counter()
    agent = create_parallel_agent(scripted(replies))
    task = asyncio.ensure_future(agent.ainvoke(INPUT, {"callbacks": [counter]}))
    for _ in range(2):
        await counter.thinking.acquire()
    assert counter.open == 4
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (counter.open, counter.failed) == (0, 2)


@saved_or_not
async def test_a_listener_changes_nothing(chat: Any, saved: bool) -> None:
    async def run(**config: Any) -> Any:
        saver = InMemorySaver() if saved else None
        agent = create_parallel_agent(chat(says), [look_up], checkpointer=saver)
        return said(await agent.ainvoke(INPUT, {"configurable": {"thread_id": "talk"}, **config}))

    assert await run(callbacks=[RunCollectorCallbackHandler()]) == await run()


def said(output: Any) -> dict[str, tuple[Any, ...]]:
    """What every thread wrote and came to."""
    threads = Trajectory.model_validate(output["trajectory"]).threads()
    return {
        name: (each.status, each.conclusion, each.tokens, each.transcript)
        for name, each in threads.items()
    }


class Breaking(BaseCallbackHandler):
    """A callback that raises whatever it is told."""

    def _raise(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("a callback broke")

    on_chain_start = on_chain_end = on_chain_error = _raise
    on_llm_start = on_chat_model_start = on_llm_new_token = on_llm_end = on_llm_error = _raise
    on_tool_start = on_tool_end = on_tool_error = _raise


async def test_a_callback_that_raises_costs_a_run_nothing(chat: Any, text_agent: Any) -> None:
    for agent in (create_parallel_agent(chat(says), [look_up]), text_agent):
        plain = await agent.ainvoke(INPUT)
        broken = await agent.ainvoke(INPUT, {"callbacks": [Breaking()]})
        assert said(broken) == said(plain)
