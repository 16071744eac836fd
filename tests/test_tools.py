"""`spawn_tool` and `recall_tool` in whatever calls tools."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, tool
from langchain_tests.integration_tests import ToolsIntegrationTests
from langchain_tests.unit_tests import ToolsUnitTests
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from pydantic import BaseModel

from apr_agents import (
    Full,
    Limits,
    ThreadWeaver,
    ToolCalls,
    create_parallel_agent,
    recall_tool,
    spawn_tool,
)
from apr_agents.backends.scripted import Reply, ScriptedBackend
from apr_agents.errors import InvalidOption
from apr_agents.types import ThreadResult

CORRECTION = 'It takes {"outlines": ["first subtask", "second subtask"]}.'


def spawn(*outlines: Any, **args: Any) -> dict[str, Any]:
    """A call of ``spawn_threads``."""
    return {"name": "spawn_threads", "args": {"outlines": list(outlines), **args}}


def calls(*calls: dict[str, Any], turn: int = 0) -> AIMessage:
    """A message with these calls."""
    return AIMessage("", tool_calls=[{**c, "id": f"{turn}/{i}"} for i, c in enumerate(calls)])


def echo(messages: list[AnyMessage]) -> str:
    return f"did {messages[-1].text}"


def node(*tools: BaseTool) -> Any:
    """A graph of nothing but a tool node: messages in, messages out."""
    graph = StateGraph(MessagesState)
    graph.add_node("tools", ToolNode(list(tools)))
    graph.add_edge(START, "tools")
    return graph.compile()


def call(graph: Any, messages: list[AnyMessage], *asked: dict[str, Any]) -> list[ToolMessage]:
    """The answers to calls that follow on ``messages``; both are appended to them."""
    messages.append(calls(*asked, turn=len(messages)))
    answers = graph.invoke({"messages": messages})["messages"][len(messages) :]
    messages += answers
    return answers


def threads(message: ToolMessage) -> list[ThreadResult]:
    return [ThreadResult.model_validate(each) for each in message.artifact["threads"]]


# --- the standard tests of LangChain ----------------------------------------------------


class Spawning:
    @property
    def tool_constructor(self) -> BaseTool:
        return spawn_tool(ScriptedBackend(lambda request: "</think>7"))

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"outlines": ["3+4", {"text": "4+3", "tools": ["add"]}], "join": "k_of_n", "k": 2}


class Recalling:
    @property
    def tool_constructor(self) -> BaseTool:
        return recall_tool()

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"thread_id": "0.1", "start": 10}


class TestSpawnUnit(Spawning, ToolsUnitTests):
    pass


class TestSpawnIntegration(Spawning, ToolsIntegrationTests):
    pass


class TestRecallUnit(Recalling, ToolsUnitTests):
    pass


class TestRecallIntegration(Recalling, ToolsIntegrationTests):
    pass


def test_a_model_is_offered_what_it_may_pass_and_nothing_else(ruled):
    limits = Limits(max_threads=3)
    spawning = spawn_tool(ruled(echo), limits=limits)
    assert spawning.tool_call_schema.model_json_schema()["properties"].keys() == {
        "outlines",
        "join",
        "k",
    }
    assert "At most 3 threads in one call" in spawning.description
    text = spawn_tool(ScriptedBackend(lambda request: ""), limits=limits)
    assert text.description == spawning.description
    assert recall_tool().tool_call_schema.model_json_schema()["properties"].keys() == {
        "thread_id",
        "start",
    }


# --- where it works ----------------------------------------------------------------------


async def test_it_works_outside_an_agent(ruled):
    spawning, asked = spawn_tool(ruled(echo)), {"outlines": ["a", "b"]}
    assert spawning.invoke(asked) == "[0.1] did a\n[0.2] did b"
    assert await spawning.ainvoke(asked) == "[0.1] did a\n[0.2] did b"


def test_in_a_tool_node_the_results_in_full_are_the_artifact(ruled):
    (answer,) = call(node(spawn_tool(ruled(echo))), [HumanMessage("q")], spawn("a", "b"))
    assert answer.text == "[0.1] did a\n[0.2] did b"
    assert [(t.id, t.status, t.transcript) for t in threads(answer)] == [
        ("0.1", "done", "did a"),
        ("0.2", "done", "did b"),
    ]


def test_the_state_may_be_a_list_or_an_object(ruled):
    class State(BaseModel):
        messages: list[Any]

    spawning = spawn_tool(ruled(echo), limits=Limits(max_total_threads=3))
    before = [HumanMessage("q"), *call(node(spawning), [HumanMessage("q")], spawn("a", "b"))]
    asked = [*before, calls(spawn("c", "d"), turn=9)]
    expected = "[0.3] did c\n[2] (not started: no more than 1 threads were allowed; 1 left out)"

    alone = StateGraph(list)
    alone.add_node("tools", ToolNode([spawning]))
    alone.add_edge(START, "tools")
    assert alone.compile().invoke(asked)[-1].text == expected
    typed = StateGraph(State)
    typed.add_node("tools", ToolNode([spawning]))
    typed.add_edge(START, "tools")
    assert typed.compile().invoke({"messages": asked})["messages"][-1].text == expected


@pytest.fixture
def splitting(ruled) -> Callable[..., Any]:
    """An agent that makes these messages' calls, one message after the other, then answers."""

    def make(*asked: AIMessage, tools: list[BaseTool], **options: Any) -> Any:
        def rule(messages: list[AnyMessage]) -> AIMessage | str:
            turn = sum(isinstance(message, AIMessage) for message in messages)
            return asked[turn] if turn < len(asked) else f"so: {messages[-1].text}"

        return create_agent(ruled(rule), tools, **options)

    return make


@dataclass
class Context:
    user: str


async def test_in_create_agent_sync_and_async(ruled, splitting):
    tools = [spawn_tool(ruled(echo))]
    agent = splitting(calls(spawn("a", "b")), tools=tools, context_schema=Context)
    for output in (agent.invoke, agent.ainvoke):
        result = output({"messages": [("user", "q")]}, context=Context("me"))
        messages = (await result if asyncio.iscoroutine(result) else result)["messages"]
        assert messages[-1].text == "so: [0.1] did a\n[0.2] did b"


@pytest.mark.parametrize("in_agent", [True, False])
def test_two_calls_of_one_message_have_threads_of_their_own(ruled, splitting, in_agent):
    spawning = spawn_tool(ruled(echo))
    asked = spawn("a", "b"), spawn("c", "c", " "), spawn("d")
    if in_agent:
        agent = splitting(calls(*asked), tools=[spawning])
        answers = agent.invoke({"messages": [("user", "q")]})["messages"][2:-1]
    else:
        answers = call(node(spawning), [HumanMessage("q")], *asked)
    assert [answer.text for answer in answers] == [
        "[0.1] did a\n[0.2] did b",
        "[0.3] did c",
        "[0.4] did d",
    ]


def test_ids_count_on_over_calls_and_turns(ruled):
    messages: list[AnyMessage] = [HumanMessage("q")]
    graph = node(spawn_tool(ruled(echo)), recall_tool())
    call(graph, messages, spawn("a", "b"))
    call(graph, messages, spawn("c"), spawn("d"))
    messages += [AIMessage("answer"), HumanMessage("and now?")]
    (answer,) = call(graph, messages, spawn("e"))
    assert answer.text == "[0.5] did e"
    (recalled,) = call(graph, messages, {"name": "recall_thread", "args": {"thread_id": "0.2"}})
    assert recalled.text == "[0.2, characters 0-5 of 5.]\ndid b"


def test_threads_see_their_outline_only_or_the_conversation_up_to_the_call(ruled):
    said = [HumanMessage("q"), AIMessage("I think"), HumanMessage("go on")]
    isolated, seeing = ruled(echo), ruled(echo)
    call(node(spawn_tool(isolated, system_prompt="Be brief.")), [*said], spawn("a"))
    assert [[m.text for m in heard] for heard in isolated.heard] == [["Be brief.", "a"]]
    call(node(spawn_tool(seeing, protocol=ToolCalls("prefix"))), [*said], spawn("a"), spawn("b"))
    assert sorted([m.text for m in heard] for heard in seeing.heard) == [
        ["q", "I think", "go on", "a"],
        ["q", "I think", "go on", "b"],
    ]
    assert spawn_tool(seeing, protocol=ToolCalls("prefix")).invoke(spawn("c")["args"])
    assert [(m.type, m.text) for m in seeing.heard[-1]] == [
        ("human", "(no conversation)"),
        ("human", "c"),
    ]


def test_threads_have_tools_of_their_own_and_may_be_given_fewer(ruled):
    @tool
    def look_up(name: str) -> str:
        """Look a name up."""
        return f"{name} is 7"

    def rule(messages: list[AnyMessage]) -> AIMessage | str:
        if isinstance(messages[-1], ToolMessage):
            return messages[-1].text
        return calls({"name": "look_up", "args": {"name": messages[-1].text}})

    def double(number: int) -> int:
        """Twice a number."""
        return 2 * number

    asked = spawn("x", {"text": "y", "tools": ["double"]})
    (answer,) = call(node(spawn_tool(ruled(rule), [look_up, double])), [HumanMessage("q")], asked)
    assert answer.text.startswith("[0.1] x is 7\n[0.2] ")
    assert answer.text.endswith("here is no tool 'look_up' here, only: double.")


def test_threads_may_split_again_down_to_the_depth_allowed(ruled):
    def rule(messages: list[AnyMessage]) -> AIMessage | str:
        asked = messages[-1].text
        return calls(spawn(asked + "x", asked + "y")) if len(asked) == 1 else f"did {asked}"

    graph = node(spawn_tool(ruled(rule), limits=Limits(max_depth=2)), recall_tool())
    messages: list[AnyMessage] = [HumanMessage("q")]
    (answer,) = call(graph, messages, spawn("a"))
    assert [t.id for t in threads(answer)[0].walk()] == ["0.1", "0.1.1", "0.1.2"]
    (recalled,) = call(graph, messages, {"name": "recall_thread", "args": {"thread_id": "[0.1.2]"}})
    assert recalled.text.endswith("\ndid ay")


# --- limits -------------------------------------------------------------------------------


def test_threads_are_counted_over_the_calls_since_the_last_human_message(ruled):
    graph = node(spawn_tool(ruled(echo), limits=Limits(max_total_threads=3)))
    messages: list[AnyMessage] = [HumanMessage("q")]
    call(graph, messages, spawn("a", "b"))
    (second,) = call(graph, messages, spawn("c", "d"))
    assert second.text == (
        "[0.3] did c\n[2] (not started: no more than 1 threads were allowed; 1 left out)"
    )
    (third,) = call(graph, messages, spawn("e"))
    assert third.text == (
        "No thread was started: the limits of this run allow none. Go on by yourself."
    )
    assert third.artifact == {"threads": []}
    (fourth,) = call(graph, [*messages, HumanMessage("again")], spawn("e", "f", "g"))
    assert fourth.text == "[0.4] did e\n[0.5] did f\n[0.6] did g"


def test_threads_of_the_calls_of_one_message_are_counted_together(ruled):
    limits = Limits(max_total_threads=4, max_threads=3)
    spawning = spawn_tool(ruled(echo), limits=limits)
    asked = spawn("a", "b", "c", "d", "e"), spawn(7), spawn("f"), spawn("g", "h")
    first, wrong, second, third = call(node(spawning), [HumanMessage("q")], *asked)
    started = [[t.id for t in threads(answer)] for answer in (first, second, third)]
    assert started == [["0.1", "0.2"], [], ["0.5", "0.6"]]
    assert wrong.status == "error"


def test_tokens_are_counted_over_the_calls_since_the_last_human_message(ruled):
    limits = Limits(max_total_tokens=100)
    graph = node(spawn_tool(ruled(lambda messages: "x" * 4 * 60), limits=limits))
    messages: list[AnyMessage] = [HumanMessage("q")]
    (first,) = call(graph, messages, spawn("a"))
    assert first.text == "[0.1] " + "x" * 240
    (second,) = call(graph, messages, spawn("b"))
    assert second.text == "[0.2] (over_budget: its 30 tokens ran out)"
    (again,) = call(graph, [*messages, HumanMessage("again")], spawn("c"))
    assert again.text == "[0.3] " + "x" * 240
    at_once = call(graph, [HumanMessage("q")], spawn("a"), spawn("b"))
    assert [answer.text for answer in at_once] == [
        "[0.1] (over_budget: its 37 tokens ran out)",
        "[0.2] (over_budget: its 37 tokens ran out)",
    ]


async def test_time_is_counted_over_the_calls_since_the_last_human_message(ruled):
    class Slow(type(ruled(echo))):
        async def _agenerate(self, messages, stop=None, run_manager=None, **options):
            await asyncio.sleep(0.8 if messages[-1].text == "short" else 30)
            return self._generate(messages)

    spawning = spawn_tool(Slow(rule=echo), limits=Limits(timeout=2))  # 1.5 for threads
    graph = node(spawning)
    messages: list[AnyMessage] = [HumanMessage("q")]
    (first,) = call(graph, messages, spawn("short"))
    assert first.text == "[0.1] did short"
    (second,) = call(graph, messages, spawn("short"))
    assert "timed_out" in second.text or second.text == "[0.2] did short"
    (third,) = call(graph, messages, spawn("long"))
    assert threads(third)[0].seconds < 0.7
    assert threads(third)[0].status == "timed_out"
    both = call(graph, [HumanMessage("q")], spawn("short"), spawn("short"))
    assert [answer.text for answer in both] == ["[0.1] did short", "[0.2] did short"]


# --- joins --------------------------------------------------------------------------------


@pytest.fixture
def racing(ruled) -> Any:
    """A model that hangs where it is asked to."""

    class Racing(type(ruled(echo))):
        async def _agenerate(self, messages, stop=None, run_manager=None, **options):
            if messages[-1].text.startswith("hang"):
                await asyncio.Event().wait()
            return self._generate(messages)

    return Racing(rule=lambda messages: messages[-1].text.partition(":")[2])


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({"join": "first_success"}, "success of thread 0.2: 7"),
        ({"join": "k_of_n", "k": 2}, "[0.2] 7\n[0.3] 7\n"),
        ({"join": "vote"}, "vote of 2 threads: 2 × 7"),
    ],
)
def test_the_model_says_how_many_to_wait_for(racing, args, told):
    asked = spawn("hang", "one:7", "two:7", **args)
    (answer,) = call(node(spawn_tool(racing)), [HumanMessage("q")], asked)
    assert told.rstrip() in answer.text
    assert threads(answer)[0].status == "cancelled"


def test_where_the_model_does_not_say_the_option_holds(racing):
    spawning = spawn_tool(racing, join="2_of_n")
    (answer,) = call(node(spawning), [HumanMessage("q")], spawn("hang", "one:7", "two:8"))
    assert [t.status for t in threads(answer)] == ["cancelled", "done", "done"]
    (answer,) = call(node(spawning), [HumanMessage("q")], spawn("one:7", "two:8", join="all"))
    assert answer.text == "[0.1] 7\n[0.2] 8"


def test_a_reduction_says_one_thing_for_all(ruled):
    summing = spawn_tool(ruled(lambda messages: messages[-1].text), merge="sum")
    (answer,) = call(node(summing), [HumanMessage("q")], spawn("1", "2", "39"))
    assert answer.text == "[1] 42"
    assert [t.conclusion for t in threads(answer)] == ["1", "2", "39"]


def test_a_thread_that_fails_costs_no_other_its_result(ruled):
    def rule(messages: list[AnyMessage]) -> str:
        if messages[-1].text == "b":
            raise ConnectionError("no route to host")
        return echo(messages)

    (answer,) = call(node(spawn_tool(ruled(rule))), [HumanMessage("q")], spawn("a", "b", "c"))
    assert answer.status == "success"
    assert answer.text == (
        "[0.1] did a\n[0.2] (failed: ConnectionError: no route to host)\n[0.3] did c"
    )


@pytest.mark.parametrize("fails", [True, False])
def test_many_results_are_summed_up_and_where_that_fails_they_are_cut(ruled, fails):
    def rule(messages: list[AnyMessage]) -> str:
        if not messages[-1].text.startswith("Sum up these results"):
            return "word " * 60
        if fails:
            raise ConnectionError("no route to host")
        return "much"

    limits = Limits(max_join_tokens=250)
    graph = node(spawn_tool(ruled(rule), merge="summary", limits=limits))
    asked = spawn(*(f"task {n}" for n in range(8)))
    (answer,) = call(graph, [HumanMessage("q")], asked)
    assert len(threads(answer)) == 8
    assert len(answer.text) <= 4 * 250
    assert ("[1-8] much" in answer.text) is not fails
    assert ("[0.8] …" in answer.text) is fails


# --- what a model gets wrong --------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ({}, "outlines: Field required"),
        ({"outlines": []}, "outlines: List should have at least 1 item"),
        ({"outlines": "[]"}, "outlines: List should have at least 1 item"),
        ({"outlines": None}, "outlines: Input should be a valid list"),
        ({"outlines": {"a": 1}}, "outlines: Input should be a valid list"),
        ({"outlines": [7]}, "outlines.0.str: Input should be a valid string"),
        ({"outlines": [{"what": "a"}]}, "outlines.0."),
        ({"outlines": ["", "\n "]}, "the outlines of spawn_threads are empty"),
        ({"outlines": ["a"], "join": "magic"}, "join: Input should be 'all', 'first_success'"),
        ({"outlines": ["a"], "k": 0}, "k: Input should be greater than or equal to 1"),
    ],
)
@pytest.mark.parametrize("in_agent", [True, False])
def test_arguments_that_cannot_be_read_are_corrected(ruled, splitting, args, why, in_agent):
    spawning = spawn_tool(ruled(echo))
    asked = {"name": "spawn_threads", "args": args}
    if in_agent:
        agent = splitting(calls(asked), calls(spawn("a"), turn=1), tools=[spawning])
        messages = agent.invoke({"messages": [("user", "q")]})["messages"]
        answer = messages[2]
        assert messages[-1].text == "so: [0.1] did a"
    else:
        answer = spawning.invoke({**asked, "id": "1", "type": "tool_call"})
    assert answer.status == "error"
    assert why in answer.text
    assert answer.text.startswith("Not done: the ")
    assert answer.text.endswith(CORRECTION)


@pytest.mark.parametrize(
    ("outlines", "told"),
    [
        ('["a", "b"]', "[0.1] did a\n[0.2] did b"),
        ("just this", "[0.1] did just this"),
        (["a", "a", " a "], "[0.1] did a"),
        ([{"text": "a", "tools": None, "other": 1}], "[0.1] did a"),
    ],
)
def test_what_can_be_understood_is_done(ruled, outlines, told):
    asked = {"name": "spawn_threads", "args": {"outlines": outlines}}
    (answer,) = call(node(spawn_tool(ruled(echo))), [HumanMessage("q")], asked)
    assert answer.text == told


# --- recall -------------------------------------------------------------------------------


def recall(graph: Any, messages: list[AnyMessage], **args: Any) -> ToolMessage:
    return call(graph, [*messages], {"name": "recall_thread", "args": args})[0]


@pytest.fixture
def long_thread(ruled) -> tuple[Any, list[AnyMessage], str]:
    text = "".join(f"{n:>9}\n" for n in range(850))
    graph = node(spawn_tool(ruled(lambda messages: text)), recall_tool())
    messages: list[AnyMessage] = [HumanMessage("q")]
    call(graph, messages, spawn("a"))
    return graph, messages, text


def test_a_transcript_is_read_in_slices(long_thread):
    graph, messages, text = long_thread
    read, start = "", 0
    for _ in range(3):
        shown, _, part = recall(graph, messages, thread_id="0.1", start=start).text.partition("\n")
        read, start = read + part, start + 4000
        more = f" Go on with start={start}." if start < 8500 else ""
        assert shown == f"[0.1, characters {start - 4000}-{min(start, 8500)} of 8500.{more}]"
    assert read == text


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({"thread_id": "0.9"}, "There is no thread 0.9, only: 0.1."),
        ({"thread_id": "0.1", "start": 8500}, "Thread 0.1 has 8500 characters only."),
        ({"thread_id": "0.1", "start": -1}, 'recall_thread takes {"thread_id": "0.2"} and start,'),
        ({"thread_id": 0.1}, 'recall_thread takes {"thread_id": "0.2"} and start, from 0 up.'),
        ({"start": 0}, 'recall_thread takes {"thread_id": "0.2"} and start, from 0 up.'),
    ],
)
def test_what_cannot_be_recalled_is_explained(long_thread, args, told):
    graph, messages, _ = long_thread
    answer = recall(graph, messages, **args)
    assert answer.text.startswith(told)
    assert answer.status == "error"


def test_recall_lists_some_of_many_threads(ruled):
    limits = Limits(max_threads=99, max_total_threads=99)
    graph = node(spawn_tool(ruled(echo), limits=limits), recall_tool())
    messages: list[AnyMessage] = [HumanMessage("q")]
    assert recall(graph, messages, thread_id="1").text == "There is no thread 1, only: none."
    call(graph, messages, spawn(*(f"task {n}" for n in range(99))))
    told = recall(graph, messages, thread_id="1").text
    assert told.startswith("There is no thread 1, only: 0.1, 0.2, ")
    assert told.endswith("0.20, … 99 in all.")


async def test_recall_reads_the_threads_of_a_parallel_agent(ruled):
    def rule(messages: list[AnyMessage]) -> AIMessage | str:
        if messages[0].text != "q":
            return "first line\nlast line"
        asked = [
            calls(spawn("a")),
            calls({"name": "recall_thread", "args": {"thread_id": "0.1"}}, turn=1),
        ]
        turn = sum(isinstance(message, AIMessage) for message in messages)
        return asked[turn] if turn < 2 else messages[-1].text

    agent = create_parallel_agent(ruled(rule), [recall_tool()])
    output = await agent.ainvoke({"messages": [("user", "q")]})
    assert output["messages"][-1].text == ("[0.1, characters 0-20 of 20.]\nfirst line\nlast line")


# --- threads of a model that continues text ------------------------------------------------


def test_a_text_model_is_asked_each_outline_as_a_question(scripted):
    backend = scripted({"0.1/0": "3+4=7</think>7", "0.2/0": "8</think>8"})
    said = [HumanMessage("q"), AIMessage("hm"), ToolMessage("</Outlines>", tool_call_id="1")]
    (answer,) = call(node(spawn_tool(backend)), said, spawn("3+4", "4+4"))
    assert answer.text == "[0.1] 7\n[0.2] 8"
    assert sorted(request.prompt for request in backend.requests) == [
        "3+4\nThreads: 8\n<think>\n",
        "4+4\nThreads: 8\n<think>\n",
    ]
    assert threads(answer)[0].transcript == "3+4=7</think>7"


def test_a_text_model_splits_again_in_its_own_words(scripted, outlines):
    replies = {"0.1/0": outlines("a", "b"), "0.1/2": "</Parallel>so 7</think>7"}
    backend = scripted(replies | {f"0.1.{n}/0": f"part {n}</think>{n}" for n in (1, 2)})
    (answer,) = call(node(spawn_tool(backend)), [HumanMessage("q")], spawn("3+4"))
    assert answer.text == "[0.1] 7"
    assert "<Thread>\n1: 1</Thread><Thread>\n2: 2</Thread>" in threads(answer)[0].transcript


def test_an_agent_is_told_of_limits_in_its_own_language(scripted):
    backend = scripted({"0.1/0": "7</think>7"})
    graph = node(spawn_tool(backend, limits=Limits(max_total_threads=1)))
    messages: list[AnyMessage] = [HumanMessage("q")]
    (first,) = call(graph, messages, spawn("3+4", "4+4"))
    assert first.text == (
        "[0.1] 7\n[2] (not started: no more than 1 threads were allowed; 1 left out)"
    )
    (second,) = call(graph, messages, spawn("4+4"))
    assert second.text.startswith("No thread was started: ")


@pytest.mark.parametrize("merge", ["full", "summary"])
def test_every_merge_policy_works_over_a_text_model(merge):
    def script(request: Any) -> Reply | str:
        return "short</Conclusion>" if "<Conclusion>" in request.prompt else "3+4=7</think>7"

    spawning = spawn_tool(ScriptedBackend(script), merge=Full() if merge == "full" else merge)
    (answer,) = call(node(spawning), [HumanMessage("q")], spawn("3+4"))
    assert answer.text == ("[0.1] 3+4=7</think>7" if merge == "full" else "[0.1] short")


def test_what_a_text_model_cannot_do_for_an_agent_is_refused(ruled):
    backend = ScriptedBackend(lambda request: "</think>7")
    assert spawn_tool(backend, protocol=None).invoke(spawn("a")["args"]) == "[0.1] 7"
    assert spawn_tool(backend, protocol=ThreadWeaver("isolated")).invoke(spawn("a")["args"])
    for options in (
        {"protocol": ThreadWeaver("prefix")},
        {"protocol": ToolCalls()},
        {"parent_lane": True},
        {"tools": [recall_tool()]},
        {"result": MessagesState},
    ):
        with pytest.raises(InvalidOption):
            spawn_tool(backend, **options)
    with pytest.raises(InvalidOption):
        spawn_tool(ruled(echo), protocol=ThreadWeaver("isolated"))


# --- a lane of the parent's own -------------------------------------------------------------


def test_a_lane_goes_on_from_the_agents_conversation_with_an_id_of_its_own(ruled):
    model = ruled(lambda messages: f"{len(messages)} messages")
    graph = node(spawn_tool(model, parent_lane=True))
    messages: list[AnyMessage] = [HumanMessage("q")]
    first, second = call(graph, messages, spawn("a", "b"), spawn("c"))
    assert [t.id for t in threads(first)] == ["0.1", "0.2", "0.3"]
    assert [t.id for t in threads(second)] == ["0.4", "0.5"]
    assert first.text == "[0.1] 1 messages\n[0.2] 1 messages\n[0.3] 2 messages"
    (third,) = call(graph, messages, spawn("d"))
    assert [t.id for t in threads(third)] == ["0.6", "0.7"]
