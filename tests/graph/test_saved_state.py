"""What a checkpointer gets is plain data and messages, at every step and in every graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import BaseMessage, message_to_dict
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.types import Command, Interrupt, Overwrite, Send, interrupt
from pydantic import BaseModel

from apr_agents import Limits, ParallelReasoningMiddleware, create_parallel_agent
from apr_agents.graph.state import Thread
from apr_agents.trace.trajectory import Trajectory
from tests.graph.mortal import Log, Script

INPUT = {"messages": [("user", "Q")]}
CONFIG: Any = {"configurable": {"thread_id": "talk"}}
# 0.1 spawns and uses a tool at once, 0.2 asks a human, 0.3 only thinks.
REPLIES = {
    "0/0": ["a", "b", "c"],
    "0.1/0": ["d"],
    "0.1.1/0": {"look_up": ["x", "y"]},
    "0.2/0": {"ask": ["z"]},
}


@tool
def look_up(what: str) -> str:
    """Look something up."""
    return f"{what}!"


@tool
def ask(what: str) -> str:
    """Ask the human."""
    return f"{what}: {interrupt(what)}"


class PlainSerializer(JsonPlusSerializer):
    """Takes nothing but plain data, messages, and what is LangGraph's own."""

    def __init__(self) -> None:
        super().__init__(allowed_msgpack_modules=None)

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        self._check(obj)
        return super().dumps_typed(obj)

    def _check(self, obj: Any) -> None:
        if isinstance(obj, BaseMessage):
            return
        if type(obj) is Send:
            self._check(obj.arg)
        elif type(obj) in (Overwrite, Interrupt):
            self._check(obj.value)
        elif type(obj) is dict:
            assert all(type(key) is str for key in obj), obj
            self._check(list(obj.values()))
        elif type(obj) in (list, tuple):
            for item in obj:
                self._check(item)
        else:
            assert obj is None or type(obj) in (str, bool, int, float), repr(obj)


def as_json(data: Any) -> Any:
    return json.loads(json.dumps(data, default=message_to_dict))


class Found(BaseModel):
    """What a thread must return."""

    number: int


@pytest.fixture
def model(tmp_path: Path) -> Script:
    return Script(replies=REPLIES, log=Log(tmp_path / "log"))


@pytest.fixture(params=["alone", "in create_agent"])
def agent(request: pytest.FixtureRequest, model: Script) -> Any:
    tools, saver = [look_up, ask], InMemorySaver(serde=PlainSerializer())
    limits = Limits(max_depth=2)
    if request.param == "alone":
        return create_parallel_agent(model, tools, limits=limits, checkpointer=saver)
    middleware = [ParallelReasoningMiddleware(model, tools, limits=limits)]
    return create_agent(model, middleware=middleware, checkpointer=saver)


async def test_every_checkpoint_and_write_is_plain(agent: Any) -> None:
    waiting = await agent.ainvoke(INPUT, CONFIG)
    assert [one.value for one in waiting["__interrupt__"]] == ["z"]
    output = await agent.ainvoke(Command(resume="yes"), CONFIG)
    assert output["messages"][-1].text == (
        "found [0.1] found [0.1.1] found y!\n[0.2] found z: yes\n[0.3] found c"
    )


def test_so_it_is_in_sync_code(agent: Any) -> None:
    agent.invoke(INPUT, CONFIG)
    assert agent.invoke(Command(resume="yes"), CONFIG)["messages"][-1].text.endswith("found c")


async def test_what_is_saved_can_be_read_while_a_run_waits_and_when_it_is_over(
    agent: Any,
) -> None:
    await agent.ainvoke(INPUT, CONFIG)
    waiting = await agent.aget_state(CONFIG, subgraphs=True)
    assert [one.value for one in waiting.interrupts] == ["z"]
    as_json(waiting.values)
    await agent.ainvoke(Command(resume="yes"), CONFIG)
    history = [state async for state in agent.aget_state_history(CONFIG)]
    assert not history[0].next
    for state in history:
        again = as_json(state.values)
        if "thread" in again:
            assert (
                Thread.of(again["thread"]).to_data() == Thread.of(state.values["thread"]).to_data()
            )
        if "trajectory" in again:
            run = Trajectory.model_validate(again["trajectory"])
            assert list(run.threads()) == ["0", "0.1", "0.1.1", "0.2", "0.3"]


async def test_results_with_a_schema_are_plain_too(model: Script, tmp_path: Path) -> None:
    script = Script(
        replies={"0/0": ["a", "b"], "0.1/0": '{"number": 1}', "0.2/0": '{"number": 2}'},
        log=Log(tmp_path / "log"),
    )
    saver = InMemorySaver(serde=PlainSerializer())
    agent = create_parallel_agent(script, result=Found, checkpointer=saver)
    output = await agent.ainvoke(INPUT, CONFIG)
    assert output["messages"][-1].text == 'found [0.1] {"number":1}\n[0.2] {"number":2}'


async def test_where_nothing_is_saved_the_output_is_plain_all_the_same(model: Script) -> None:
    output = await create_parallel_agent(model, [look_up, ask]).ainvoke(INPUT)
    assert set(output) == {"messages", "trajectory"}
    assert json.loads(json.dumps(output["trajectory"])) == output["trajectory"]
