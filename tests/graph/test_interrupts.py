"""Tools of threads may ask a human: all at once, each answered by itself, nothing done twice."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.types import Command, interrupt

from apr_agents import Limits, ParallelReasoningMiddleware, create_parallel_agent
from apr_agents.trace.trajectory import Trajectory
from tests.graph.mortal import Log, Script

INPUT = {"messages": [("user", "Q")]}
CONFIG: Any = {"configurable": {"thread_id": "talk"}}
# Threads 0.1 and 0.2 ask, 0.3 does not.
REPLIES = {"0/0": ["a", "b", "c"], "0.1/0": {"ask": ["1"]}, "0.2/0": {"ask": ["2"]}}


@tool
def ask(what: str) -> str:
    """Ask the human."""
    return f"{what}: {interrupt(what)}"


def strict_saver() -> InMemorySaver:
    """A saver that refuses to read anything but plain data and messages."""
    return InMemorySaver(serde=JsonPlusSerializer(allowed_msgpack_modules=None))


class Talk:
    """An agent and one conversation with it.

    Attributes:
        asked: the interrupts that wait for an answer, by what they ask.
    """

    def __init__(self, agent: Any, log: Any, *, sync: bool) -> None:
        self._agent, self._log, self._sync = agent, log, sync
        self.asked: dict[str, str] = {}

    async def say(self, given: Any) -> Any:
        """The agent's output, and the model calls that it took."""
        before = self._log.lines()
        if self._sync:
            output = await asyncio.to_thread(self._agent.invoke, given, CONFIG)
        else:
            output = await self._agent.ainvoke(given, CONFIG)
        self.asked = {one.value: one.id for one in output.get("__interrupt__", ())}
        return output, sorted(line.partition(" ")[2] for line in self._log.lines()[len(before) :])

    async def answer(self, **answers: str) -> Any:
        """Answers by what was asked, with an underscore before it."""
        resume = {self.asked[asked.removeprefix("_")]: said for asked, said in answers.items()}
        return await self.say(Command(resume=resume))


@pytest.fixture(params=["async", "sync"])
def talk(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    def begin(
        replies: Any = REPLIES, *, inside: bool = False, saver: Any = None, depth: int = 1
    ) -> Talk:
        log = Log(tmp_path / "log")
        model = Script(replies=replies, log=log)
        limits = Limits(max_depth=depth)
        saver = strict_saver() if saver is None else saver
        if inside:
            threads = ParallelReasoningMiddleware(model, [ask], limits=limits)
            agent = create_agent(model, middleware=[threads], checkpointer=saver or None)
        else:
            agent = create_parallel_agent(model, [ask], limits=limits, checkpointer=saver or None)
        return Talk(agent, log, sync=request.param == "sync")

    return begin


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in create_agent"])
async def test_interrupts_of_several_threads_surface_together(talk: Any, inside: bool) -> None:
    conversation = talk(inside=inside)
    _, called = await conversation.say(INPUT)
    assert sorted(conversation.asked) == ["1", "2"]
    assert called == ["0.1/0", "0.2/0", "0.3/0", "0/0"]

    output, called = await conversation.answer(_1="yes", _2="no")
    assert called == ["0.1/1", "0.2/1", "0/1"]
    assert output["messages"][-1].text == (
        "found [0.1] found 1: yes\n[0.2] found 2: no\n[0.3] found c"
    )


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in create_agent"])
async def test_they_may_be_answered_one_by_one(talk: Any, inside: bool) -> None:
    conversation = talk(inside=inside)
    await conversation.say(INPUT)
    _, called = await conversation.answer(_2="no")
    assert called == ["0.2/1"]
    assert list(conversation.asked) == ["1"]

    output, called = await conversation.answer(_1="yes")
    assert called == ["0.1/1", "0/1"]
    assert output["messages"][-1].text == (
        "found [0.1] found 1: yes\n[0.2] found 2: no\n[0.3] found c"
    )


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in create_agent"])
async def test_threads_two_levels_down_may_ask(talk: Any, inside: bool) -> None:
    replies = {
        "0/0": ["a", "b"],
        "0.1/0": ["c", "d"],
        "0.1.1/0": {"ask": ["1"]},
        "0.1.2/0": {"ask": ["2"]},
        "0.2/0": {"ask": ["3"]},
    }
    conversation = talk(replies, inside=inside, depth=2)
    await conversation.say(INPUT)
    assert sorted(conversation.asked) == ["1", "2", "3"]
    _, called = await conversation.answer(_1="x", _3="z")
    assert called == ["0.1.1/1", "0.2/1"]
    output, called = await conversation.answer(_2="y")
    assert called == ["0.1.2/1", "0.1/1", "0/1"]
    assert output["messages"][-1].text == (
        "found [0.1] found [0.1.1] found 1: x\n[0.1.2] found 2: y\n[0.2] found 3: z"
    )


async def test_a_thread_may_ask_several_things_at_once_and_again(talk: Any) -> None:
    replies = {
        "0/0": ["a", "b"],
        "0.1/0": {"ask": ["1", "2"]},
        "0.1/1": {"ask": ["3"]},
    }
    conversation = talk(replies)
    await conversation.say(INPUT)
    assert sorted(conversation.asked) == ["1", "2"]
    _, called = await conversation.answer(_1="x", _2="y")
    assert called == ["0.1/1"]
    assert list(conversation.asked) == ["3"]
    output, called = await conversation.answer(_3="z")
    assert called == ["0.1/2", "0/1"]
    assert output["messages"][-1].text == "found [0.1] found 3: z\n[0.2] found b"


async def test_the_root_may_ask_as_its_threads_do(talk: Any) -> None:
    conversation = talk({"0/0": {"ask": ["1"]}, "0/1": ["a"], "0.1/0": {"ask": ["2"]}})
    await conversation.say(INPUT)
    assert list(conversation.asked) == ["1"]
    await conversation.answer(_1="x")
    assert list(conversation.asked) == ["2"]
    output, called = await conversation.answer(_2="y")
    assert called == ["0.1/1", "0/2"]
    run = Trajectory.model_validate(output["trajectory"])
    assert [step.kind for step in run.root.steps] == ["call", "tool", "call", "block", "call"]


async def test_a_tool_that_asks_twice_begins_anew_for_each_answer(tmp_path: Path) -> None:
    """As every LangGraph node does: what it did before it asked is done again."""
    did = []

    @tool
    def ask(what: str) -> str:
        """Ask the human twice."""
        did.append(what)
        return f"{interrupt('first')} {interrupt('second')}"

    model = Script(replies=REPLIES, log=Log(tmp_path / "log"))
    agent = create_parallel_agent(model, [ask], checkpointer=strict_saver())
    output = await agent.ainvoke(INPUT, CONFIG)
    for said in ("x", "y"):
        answers = {one.id: said for one in output["__interrupt__"]}
        output = await agent.ainvoke(Command(resume=answers), CONFIG)
    assert did == ["1", "2"] * 3
    assert "[0.1] found x y\n[0.2] found x y" in output["messages"][-1].text


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in create_agent"])
async def test_where_nothing_is_saved_the_call_fails_and_nothing_else(
    talk: Any, inside: bool
) -> None:
    conversation = talk(inside=inside, saver=False)
    output, _ = await conversation.say(INPUT)
    assert conversation.asked == {}
    refused = "It asked for a human, but nothing is saved here to wait with."
    assert output["messages"][-1].text == (
        f"found [0.1] found {refused}\n[0.2] found {refused}\n[0.3] found c"
    )
    if inside:
        joins = [m.artifact for m in output["messages"] if isinstance(m, ToolMessage)]
        threads = joins[0]["threads"]
    else:
        threads = output["trajectory"]["root"]["steps"][1]["threads"]
    uses = [thread["steps"][1] for thread in threads[:2]]
    assert [(use["kind"], use["failed"], use["text"]) for use in uses] == [
        ("tool", True, refused)
    ] * 2
