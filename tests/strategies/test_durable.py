"""A search that is broken off goes on where it was, and streams its threads all along."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from apr_agents import (
    Limits,
    MonteCarloTreeSearch,
    SelfConsistency,
    Trajectory,
    TreeOfThoughts,
    create_parallel_agent,
)
from apr_agents.backends.scripted import Reply
from tests.graph.test_saved_state import PlainSerializer
from tests.strategies.conftest import WIDE, Rule, Terse, chats, space, texts

INPUT = {"messages": [("user", "Q")]}
CONFIG: Any = {"configurable": {"thread_id": "talk"}}
TREE = TreeOfThoughts(prompts=Terse(), depth=2, width=2)
SPACE = space({"": "a b c", "a": "d e", "b": "f g"}, {"b": 7, "b>g": 9})

WHOLE = [
    ["propose "],
    ["value a", "value b", "value c"],
    ["propose b", "propose a"],
    ["value b>f", "value b>g", "value a>d", "value a>e"],
    ["answer b>g"],
]


class Model:
    """Answers by a rule, keeps what it was asked, and hangs where it is told to."""

    def __init__(self, make: Any, rule: Rule, hangs: str = "") -> None:
        self.asked: list[str] = []
        self.hung = asyncio.Event()

        def keeping(prompt: str) -> Reply | str:
            self.asked.append(prompt)
            if prompt == hangs:
                self.hung.set()
                return Reply("", hangs=True)
            return rule(prompt)

        self.model = make(keeping)


def asked(output: dict[str, Any]) -> list[list[str]]:
    root = Trajectory.model_validate(output["trajectory"]).root
    return [[t.outline.text for t in block.threads if t.outline] for block in root.blocks]


@pytest.mark.parametrize("make", [texts, chats])
@pytest.mark.parametrize("hangs", [prompt for block in WHOLE for prompt in block])
async def test_a_tree_search_that_is_broken_off_runs_only_unfinished_threads_again(
    make: Any, hangs: str, tmp_path: Path
) -> None:
    """Wherever that is: one thread hangs, its siblings finish, the run is cancelled."""
    first, second = Model(make, SPACE, hangs), Model(make, SPACE)
    (at,) = [number for number, block in enumerate(WHOLE) if hangs in block]
    finished: asyncio.Queue[str] = asyncio.Queue()

    def agent(model: Model, saver: AsyncSqliteSaver) -> Any:
        return create_parallel_agent(model.model, strategy=TREE, limits=WIDE, checkpointer=saver)

    async def run(saver: AsyncSqliteSaver) -> None:
        events = agent(first, saver).astream(INPUT, CONFIG, stream_mode="custom")
        async for event in events:
            if event["type"] == "finished":
                finished.put_nowait(event["id"])

    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "db")) as saver:
        running = asyncio.create_task(run(saver))
        await first.hung.wait()
        for _ in range(sum(map(len, WHOLE[: at + 1])) - 1):
            await finished.get()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        # A note of LangGraph's on the cancelled task comes later; it would lock the database.
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)

    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "db")) as saver:
        output = await agent(second, saver).ainvoke(None, CONFIG)
    assert second.asked == [hangs, *(prompt for block in WHOLE[at + 1 :] for prompt in block)]
    assert asked(output) == WHOLE
    assert output["messages"][-1].text == "answer of b>g"


async def test_a_search_is_the_same_whether_it_is_saved_or_not() -> None:
    strategy = MonteCarloTreeSearch(prompts=Terse(), simulations=6, reward=lambda q, a: len(a) / 99)
    plain = create_parallel_agent(texts(SPACE), strategy=strategy)
    saved = create_parallel_agent(texts(SPACE), strategy=strategy, checkpointer=InMemorySaver())
    assert asked(await plain.ainvoke(INPUT)) == asked(await saved.ainvoke(INPUT, CONFIG))
    other: Any = {"configurable": {"thread_id": "another talk"}}
    assert asked(plain.invoke(INPUT)) == asked(saved.invoke(INPUT, other))


async def test_a_second_question_in_the_same_conversation_is_a_new_run() -> None:
    model = Model(chats, lambda prompt: f"{prompt}!")
    agent = create_parallel_agent(
        model.model, strategy=SelfConsistency(n=2), checkpointer=InMemorySaver()
    )
    await agent.ainvoke(INPUT, CONFIG)
    output = await agent.ainvoke({"messages": [("user", "And now?")]}, CONFIG)
    assert [message.text for message in output["messages"]] == ["Q", "Q!", "And now?", "And now?!"]
    assert asked(output) == [["And now?"] * 2]


# --- streams ---------------------------------------------------------------------------


@pytest.mark.parametrize("saved", [False, True], ids=["", "saved"])
async def test_every_thread_of_a_search_is_told_of_as_it_goes(saved: bool) -> None:
    saver = InMemorySaver(serde=PlainSerializer()) if saved else None
    agent = create_parallel_agent(texts(SPACE), strategy=TREE, limits=WIDE, checkpointer=saver)
    events = [
        event
        async for _, event in agent.astream(INPUT, CONFIG, stream_mode="custom", subgraphs=True)
    ]
    started = [e["text"] for e in events if e["type"] == "started" and e["id"] != "0"]
    assert started == [prompt for block in WHOLE for prompt in block]
    spawned = [e["threads"] for e in events if e["type"] == "spawned"]
    assert [len(threads) for threads in spawned] == [len(block) for block in WHOLE]
    assert [e["id"] for e in events if e["type"] == "merged"] == ["0"] * len(WHOLE)
    ended = [e for e in events if e["type"] == "finished"]
    assert len(ended) == len(started) + 1
    assert (ended[-1]["id"], ended[-1]["text"]) == ("0", "answer of b>g")


async def test_the_trace_measures_a_search_as_any_run() -> None:
    agent = create_parallel_agent(texts(SPACE), strategy=TREE, limits=WIDE)
    output = await agent.ainvoke(INPUT)
    metrics = Trajectory.model_validate(output["trajectory"]).metrics()
    assert metrics.threads == sum(map(len, WHOLE))
    assert metrics.parallel_ratio == 1  # the root itself generates nothing
    assert metrics.critical_path < metrics.total_tokens


async def test_one_call_at_a_time_is_one_call_at_a_time() -> None:
    model = texts(SPACE)
    agent = create_parallel_agent(
        model, strategy=TREE, limits=Limits(max_threads=8, max_concurrency=1)
    )
    await agent.ainvoke(INPUT)
    assert model.peak_in_flight == 1
