"""`ParallelReasoningMiddleware` in agents that exist already."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from deepagents import create_deep_agent
from langchain.agents import create_agent
from langchain.agents.middleware import TodoListMiddleware
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt

from apr_agents import Limits, ParallelReasoningMiddleware
from apr_agents.backends.scripted import ScriptedBackend

AGENTS = pytest.mark.parametrize("create", [create_agent, create_deep_agent])
CONFIG: Any = {"configurable": {"thread_id": "talk"}}


def spawn(*outlines: str) -> dict[str, Any]:
    return {"name": "spawn_threads", "args": {"outlines": list(outlines)}}


def calls(*calls: dict[str, Any], turn: int = 0) -> AIMessage:
    return AIMessage("", tool_calls=[{**c, "id": f"{turn}/{i}"} for i, c in enumerate(calls)])


@pytest.fixture
def saying(ruled) -> Callable[..., Any]:
    """A model that says these messages, one after the other, then repeats what it last read."""

    def make(*said: AIMessage) -> Any:
        def rule(messages: list[AnyMessage]) -> AIMessage | str:
            own = [message for message in messages if isinstance(message, AIMessage)]
            return said[len(own)] if len(own) < len(said) else f"so: {messages[-1].text}"

        return ruled(rule)

    return make


@pytest.fixture
def echo(ruled) -> Any:
    return ruled(lambda messages: f"did {messages[-1].text}")


def test_it_brings_two_tools(echo):
    middleware = ParallelReasoningMiddleware(echo, limits=Limits(max_threads=5))
    assert [tool.name for tool in middleware.tools] == ["spawn_threads", "recall_thread"]
    assert "At most 5 threads" in middleware.tools[0].description


@AGENTS
async def test_an_agent_spawns_and_recalls_sync_and_async(create, saying, echo):
    recall = {"name": "recall_thread", "args": {"thread_id": "0.2"}}
    model = saying(calls(spawn("a", "b")), calls(recall, turn=1))
    agent = create(model, [], middleware=[ParallelReasoningMiddleware(echo)])
    question: Any = {"messages": [HumanMessage("q")]}
    for output in (agent.invoke(question), await agent.ainvoke(question)):
        texts = [m.text for m in output["messages"] if isinstance(m, ToolMessage)]
        assert texts == ["[0.1] did a\n[0.2] did b", "[0.2, characters 0-5 of 5.]\ndid b"]
        assert output["messages"][-1].text == f"so: {texts[-1]}"


@AGENTS
def test_an_agent_that_does_not_spawn_is_unchanged(create, saying, echo):
    @tool
    def look_up(name: str) -> str:
        """Look a name up."""
        return f"{name} is 7"

    asked = calls({"name": "look_up", "args": {"name": "x"}})
    heard, offered, answers = [], [], []
    for middleware in ([], [ParallelReasoningMiddleware(echo)]):
        model = saying(asked)
        agent = create(model, [look_up], system_prompt="Be brief.", middleware=middleware)
        answers.append(agent.invoke({"messages": [HumanMessage("q")]})["messages"])
        heard.append([[(m.type, m.content) for m in messages] for messages in model.heard])
        offered.append([getattr(each, "name", None) for each in model.offered[0]])
    assert heard[0] == heard[1]
    assert [m.content for m in answers[0]] == [m.content for m in answers[1]]
    assert set(offered[1]) - set(offered[0]) == {"spawn_threads", "recall_thread"}
    assert set(offered[0]) <= set(offered[1])


def test_it_goes_with_other_middleware(saying, echo):
    todo = {"content": "a", "status": "pending"}
    asked = calls(spawn("a"), {"name": "write_todos", "args": {"todos": [todo]}})
    middleware = [TodoListMiddleware(), ParallelReasoningMiddleware(echo)]
    output = create_agent(saying(asked), middleware=middleware).invoke(
        {"messages": [HumanMessage("q")]}
    )
    assert output["todos"] == [todo]
    assert output["messages"][2].text == "[0.1] did a"


@AGENTS
async def test_the_threads_of_a_text_model_work_for_a_chat_agent(create, saying):
    backend = ScriptedBackend(lambda request: f"</think>{len(request.prompt)}")
    agent = create(
        saying(calls(spawn("3+4", "12*7+5"))),
        middleware=[ParallelReasoningMiddleware(backend, merge="sum")],
    )
    output = await agent.ainvoke({"messages": [HumanMessage("q")]})
    prompts = [request.prompt for request in backend.requests]
    assert output["messages"][-1].text == f"so: [1] {sum(map(len, prompts))}"


@AGENTS
async def test_the_events_of_threads_reach_the_agents_stream(create, saying, echo):
    agent = create(saying(calls(spawn("a", "b"))), middleware=[ParallelReasoningMiddleware(echo)])
    stream = agent.astream({"messages": [HumanMessage("q")]}, stream_mode="custom", subgraphs=True)
    events = [event async for _, event in stream]
    finished = {e["id"]: e["text"] for e in events if e["type"] == "finished"}
    assert finished == {"0.1": "did a", "0.2": "did b"}


@pytest.fixture
def asking(ruled) -> Any:
    """Threads whose tool asks a human; what it did with each answer."""
    done: list[str] = []

    @tool
    def delete(file: str) -> str:
        """Delete a file, if a human says so."""
        answer = interrupt(file)
        done.append(file)
        return f"{file}: {answer}"

    def rule(messages: list[AnyMessage]) -> AIMessage | str:
        if isinstance(messages[-1], ToolMessage):
            return messages[-1].text
        return calls({"name": "delete", "args": {"file": messages[-1].text}})

    return ruled(rule), delete, done


@AGENTS
async def test_threads_may_ask_a_human_all_at_once(create, saying, asking, caplog):
    model, delete, done = asking
    agent = create(
        saying(calls(spawn("a", "b", "c"))),
        middleware=[ParallelReasoningMiddleware(model, [delete])],
        checkpointer=InMemorySaver(),
    )
    output = await agent.ainvoke({"messages": [HumanMessage("q")]}, CONFIG)
    asked = {each.value: each.id for each in output["__interrupt__"]}
    assert asked.keys() == {"a", "b", "c"}
    assert done == []

    first = Command(resume={asked["b"]: "no", asked["c"]: "yes"})
    output = await agent.ainvoke(first, CONFIG)
    assert [each.value for each in output["__interrupt__"]] == ["a"]
    output = await agent.ainvoke(Command(resume="yes"), CONFIG)
    assert output["messages"][-1].text == "so: [0.1] a: yes\n[0.2] b: no\n[0.3] c: yes"
    assert sorted(done) == ["a", "b", "c"]
    assert "unregistered type" not in caplog.text  # what is saved is plain data


def test_without_a_checkpointer_a_question_to_a_human_fails_the_call_only(saying, asking):
    model, delete, _ = asking
    middleware = [ParallelReasoningMiddleware(model, [delete])]
    agent = create_agent(saying(calls(spawn("a"))), middleware=middleware)
    output = agent.invoke({"messages": [HumanMessage("q")]})
    assert "human" in output["messages"][-1].text


async def test_a_conversation_goes_on_with_new_ids_and_fresh_limits(saying, echo):
    model = saying(calls(spawn("a", "b")), AIMessage("first"), calls(spawn("c", "d"), turn=1))
    middleware = [ParallelReasoningMiddleware(echo, limits=Limits(max_total_threads=2))]
    agent = create_agent(model, middleware=middleware, checkpointer=InMemorySaver())
    for expected in ("first", "so: [0.3] did c\n[0.4] did d"):
        output = await agent.ainvoke({"messages": [HumanMessage("q")]}, CONFIG)
        assert output["messages"][-1].text == expected


def test_a_missing_langchain_is_named():
    code = (
        "import sys; sys.modules['langchain'] = None\n"
        "from apr_agents import create_parallel_agent, recall_tool, spawn_tool\n"
        "try:\n    from apr_agents import ParallelReasoningMiddleware\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == (
        "This needs the package 'langchain'. Install it with: pip install 'apr-agents[chat]'\n"
    ), done.stderr
