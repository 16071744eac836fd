"""What holds for every strategy: what its threads see, what limits and failures do to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool

from apr_agents import (
    Ask,
    BestOfN,
    Limits,
    SelfConsistency,
    Strategy,
    ThoughtPrompts,
    TreeOfThoughts,
    create_parallel_agent,
)
from apr_agents.backends.scripted import Reply, ScriptedBackend
from apr_agents.errors import InvalidOption
from apr_agents.protocols import PROTOCOLS
from apr_agents.protocols.base import Ended, Spawn
from apr_agents.strategies import STRATEGIES, resolve_strategy
from apr_agents.strategies.scores import rating
from apr_agents.strategies.skeleton_of_thought import points_of
from apr_agents.types import Block, Note
from tests.graph.chat_script import ToolChat, call, calls
from tests.strategies.conftest import WIDE, Rule, Solve, chats, texts


class Planned(Strategy):
    """Goes by a plan that a test writes."""

    name = "planned"

    def __init__(self, plan: Callable[..., Any]) -> None:
        self._plan = plan

    def plan(self, question: str, attempt: Any) -> Any:
        return (yield from self._plan(question, attempt))


def in_two_rounds(question: str, attempt: Any) -> Any:
    first = yield Ask([f"{question}{i}" for i in range(5)], "nothing yet")
    texts = [thread.conclusion if thread else "-" for thread in first]
    second = yield Ask(texts, " ".join(texts))
    return " ".join(thread.conclusion if thread else "-" for thread in second)


def echo(prompt: str) -> str:
    return f"{prompt}!"


# --- what threads see ------------------------------------------------------------------

TALK = [
    SystemMessage("Be brief."),
    HumanMessage("What is 2+2?"),
    AIMessage("4"),
    HumanMessage("And plus 1?"),
]


def test_threads_are_asked_in_the_place_of_the_question_and_see_what_was_said_before() -> None:
    model = texts(lambda prompt: "5")
    agent = create_parallel_agent(model, strategy=Planned(in_two_rounds), system_prompt="Count.")
    agent.invoke({"messages": TALK})
    before = "Count.\nBe brief.\nWhat is 2+2?\n4\n"
    assert model.requests[0].prompt == f"{before}And plus 1?0\nThreads: 0\n<think>\n"
    assert model.requests[5].prompt == f"{before}5\nThreads: 0\n<think>\n"


async def test_so_it_is_with_a_chat_model() -> None:
    model = chats(lambda prompt: "5")
    agent = create_parallel_agent(model, strategy=Planned(in_two_rounds), system_prompt="Count.")
    await agent.ainvoke({"messages": TALK})
    first = model.asked[0].messages
    assert [m.text for m in first] == [
        "Count.", "Be brief.", "What is 2+2?", "4", "And plus 1?0",
    ]  # fmt: skip


async def test_pictures_in_the_question_stay() -> None:
    model = chats(lambda prompt: "a cat")
    picture = {"type": "image", "url": "https://example.org/cat.png"}
    question = HumanMessage([{"type": "text", "text": "What is this?"}, picture])
    agent = create_parallel_agent(model, strategy=Planned(in_two_rounds))
    output = await agent.ainvoke({"messages": [question]})
    shown = model.asked[0].messages[-1]
    assert [block["type"] for block in shown.content_blocks] == ["image", "text"]
    assert shown.text == "What is this?0"
    assert output["messages"][-1].text == " ".join(["a cat"] * 5)


async def test_threads_of_a_text_model_may_not_split(
    ask: Any, outlines: Callable[..., str]
) -> None:
    model = texts(lambda prompt: outlines("a", "b") if prompt == "Q" else "</think>alone")
    agent = create_parallel_agent(model, strategy=SelfConsistency(n=1))
    trajectory = await ask(agent)
    assert trajectory.answer == "alone"
    (thread,) = trajectory.root.blocks[0].threads
    assert [step.kind for step in thread.steps] == ["call", "note", "call"]
    assert thread.blocks == []


async def test_threads_of_a_chat_model_use_its_tools_and_are_not_offered_to_split() -> None:
    @tool
    def look_up(what: str) -> str:
        """Look something up."""
        return f"{what} is 7"

    def script(asked: Any) -> Any:
        if asked.number:
            return f"So {asked.last}."
        return calls(call("look_up", what="x"))

    model = ToolChat(script=script)
    agent = create_parallel_agent(model, [look_up], strategy=SelfConsistency(n=3), limits=WIDE)
    output = await agent.ainvoke({"messages": [("user", "What is x?")]})
    assert output["messages"][-1].text == "So x is 7."
    assert {name for asked in model.asked for name in asked.tools} == {"look_up"}
    assert model.complaints == []


@pytest.mark.parametrize("protocol", sorted({*PROTOCOLS} - {"tool_calls"}))
async def test_threads_are_asked_like_a_root_whatever_the_protocol(ask: Any, protocol: str) -> None:
    model = ScriptedBackend(lambda request: "67")
    agent = create_parallel_agent(model, protocol=protocol, strategy=SelfConsistency(n=2))
    alone = create_parallel_agent(model, protocol=protocol, strategy="sequential")
    assert (await ask(agent)).answer == (await ask(alone)).answer == "67"
    assert len({request.prompt for request in model.requests}) == 1


# --- limits ----------------------------------------------------------------------------


async def test_the_rest_of_a_block_that_a_limit_cut_is_asked_for_in_the_next(solve: Solve) -> None:
    limits = Limits(max_threads=2)
    run = await solve(Planned(in_two_rounds), echo, limits=limits)
    assert run.asked == [
        ["Q0", "Q1"], ["Q2", "Q3"], ["Q4"], ["Q0!", "Q1!"], ["Q2!", "Q3!"], ["Q4!"],
    ]  # fmt: skip
    assert run.answer == "Q0!! Q1!! Q2!! Q3!! Q4!!"


@pytest.mark.parametrize(
    ("threads", "answer"),
    [
        (4, "Q0! Q1! Q2! Q3! -"),  # of the first round; the second is not begun
        (5, "Q0! Q1! Q2! Q3! Q4!"),
        (7, "Q0!! Q1!! - - -"),
    ],
)
async def test_threads_that_no_limit_allows_are_missing(
    solve: Solve, threads: int, answer: str
) -> None:
    limits = Limits(max_total_threads=threads)
    run = await solve(Planned(in_two_rounds), echo, limits=limits)
    assert run.answer == answer
    assert run.trajectory.root.status == "done"
    assert run.calls == threads


@pytest.mark.parametrize(
    "limits",
    [Limits(max_depth=0), Limits(max_threads=0), Limits(max_total_threads=0)],
    ids=["max_depth", "max_threads", "max_total_threads"],
)
async def test_a_strategy_that_may_start_nothing_has_its_answer_so_far_or_ends_over_budget(
    solve: Solve, limits: Limits
) -> None:
    assert (await solve(Planned(in_two_rounds), echo, limits=limits)).answer == "nothing yet"
    root = (await solve(SelfConsistency(n=3), echo, limits=limits)).trajectory.root
    assert (root.status, root.reason) == ("over_budget", "no more threads may start")


async def test_tokens_that_run_out_end_it_too(solve: Solve) -> None:
    limits = Limits(max_threads=5, max_total_tokens=8)
    run = await solve(Planned(in_two_rounds), lambda prompt: "one two three", limits=limits)
    assert run.statuses == ["over_budget"] * 5
    assert run.notes == ["5 threads asked for, none allowed"]


# --- failures --------------------------------------------------------------------------


def failing(prompt: str) -> Reply:
    return Reply("half an ans", fails=RuntimeError("the model is gone"))


async def test_threads_that_fail_are_missing(solve: Solve) -> None:
    def rule(prompt: str) -> Reply | str:
        return failing(prompt) if prompt in ("Q1", "Q2", "Q4!") else echo(prompt)

    run = await solve(Planned(in_two_rounds), rule)
    assert run.answer == "Q0!! -! -! Q3!! -"
    assert run.statuses[:5] == ["done", "failed", "failed", "done", "done"]


@pytest.mark.parametrize("name", STRATEGIES)
async def test_where_all_fail_the_run_ends_with_a_status_and_a_reason(
    solve: Solve, name: str
) -> None:
    run = await solve(name, failing)
    root = run.trajectory.root
    assert run.answer is None
    assert root.status == "failed"
    assert root.reason is not None
    assert "RuntimeError: the model is gone" in root.reason


@pytest.mark.parametrize("name", STRATEGIES)
async def test_so_it_does_where_time_runs_out(solve: Solve, name: str) -> None:
    limits = Limits(timeout=0.05)
    run = await solve(name, lambda prompt: Reply("", hangs=True), limits=limits)
    assert run.answer is None
    assert run.trajectory.root.status == "timed_out"


@pytest.mark.parametrize("name", STRATEGIES)
async def test_a_model_that_says_nothing_gives_no_answer(solve: Solve, name: str) -> None:
    run = await solve(name, lambda prompt: " ")
    root = run.trajectory.root
    assert run.answer is None
    assert (root.status, root.reason) == ("failed", "none of its threads came to an answer")


async def test_a_plan_that_raises_ends_with_the_best_it_had_and_says_so(solve: Solve) -> None:
    def plan(question: str, attempt: Any) -> Any:
        yield Ask(["a"], "early")
        yield Ask(["b"], "late")
        raise ZeroDivisionError("a bug")

    run = await solve(Planned(plan), echo)
    assert run.answer == "late"
    assert run.notes == ["planned raised ZeroDivisionError: a bug"]


async def test_a_plan_that_asks_for_no_threads_at_all_is_none(solve: Solve) -> None:
    def plan(question: str, attempt: Any) -> Any:
        yield Ask(["a"], "early")
        yield ["b"]

    run = await solve(Planned(plan), echo)
    assert run.answer == "early"
    assert run.notes[0].startswith("planned raised ValueError: not enough values to unpack")


async def test_a_settling_that_raises_settles_nothing(solve: Solve) -> None:
    class Unsettled(Planned):
        def settled(self, finished: Any, threads: int) -> bool:
            raise ZeroDivisionError("a bug")

    run = await solve(Unsettled(in_two_rounds), echo, limits=Limits(max_threads=3))
    assert run.answer == "Q0!! Q1!! Q2!! Q3!! Q4!!"
    assert "ZeroDivisionError: a bug" in run.notes[-1]


async def test_a_function_that_raises_is_told_of_once_with_how_often(solve: Solve) -> None:
    def plan(question: str, attempt: Any) -> Any:
        found = yield Ask(["1", "x", "y", "z"])
        numbers = [attempt(int, thread.conclusion.strip("!")) for thread in found]
        yield Ask(["another round"])
        return str(numbers)

    run = await solve(Planned(plan), echo)
    assert run.answer == "[1, None, None, None]"
    assert run.notes == [
        f"int raised ValueError: invalid literal for int() with base 10: '{letter}'"
        for letter in "xyz"
    ]


@given(st.text(alphabet=st.sampled_from("12 .:)-*#>\n\tab/"), max_size=80) | st.text())
def test_every_reply_can_be_read(text: str) -> None:
    prompts = ThoughtPrompts()
    assert all(thought.strip() for thought in prompts.proposals(text))
    assert prompts.choice(text) is None or isinstance(prompts.choice(text), int)
    assert rating(text) is None or 0 <= (rating(text) or 0) <= 1
    assert all(points_of(text))


# --- a pure function of the record -----------------------------------------------------


def knows_it_all(prompt: str) -> str:
    """Fits every prompt: a proposal, a rating, a choice, a skeleton, an answer."""
    return "LIST\n1. one 3\n2. two 4"


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("most", [3, 1000])
async def test_each_decision_follows_from_the_question_and_the_steps_before(
    solve: Solve, name: str, most: int
) -> None:
    limits = Limits(max_threads=most, max_total_threads=1000)
    root = (await solve(name, knows_it_all, limits=limits)).trajectory.root
    assert root.status == "done"
    strategy = STRATEGIES[name]()
    for number, step in enumerate(root.steps):
        assert isinstance(step, Block)
        (decision,) = strategy.decide("Q", root.steps[:number])
        assert isinstance(decision, Spawn)
        threads = [thread.outline for thread in step.threads]
        assert decision.outlines == [*threads, *step.left_out]
    assert strategy.decide("Q", root.steps) == [Ended(root.conclusion)]


def test_a_note_on_the_way_changes_nothing_unless_it_says_that_no_thread_may_start() -> None:
    strategy = SelfConsistency(n=1)
    undecided, declined = (Note(event=event, why="") for event in ("undecided", "declined"))
    assert isinstance(strategy.decide("Q", [undecided])[0], Spawn)
    assert strategy.decide("Q", [declined]) == [
        Ended(None, "over_budget", "no more threads may start")
    ]


# --- options ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adaptive", "sequential"])
def test_where_the_model_decides_there_is_no_strategy(name: str) -> None:
    assert resolve_strategy(name) is None


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidOption, match="adaptive, sequential, self_consistency, best_of_n"):
        create_parallel_agent(texts(echo), strategy="guess")


@pytest.mark.parametrize(
    "option",
    [{"merge": "summary"}, {"join": "vote"}, {"parent_lane": True}, {"result": Any}],
    ids=lambda option: next(iter(option)),
)
@pytest.mark.parametrize("make", [texts, chats])
def test_options_for_blocks_of_the_model_are_refused(
    option: dict[str, Any], make: Callable[[Rule], Any]
) -> None:
    with pytest.raises(InvalidOption, match="left out with the strategy 'best_of_n'"):
        create_parallel_agent(make(echo), strategy="best_of_n", **option)


@pytest.mark.parametrize("strategy", [SelfConsistency, BestOfN])
@pytest.mark.parametrize("n", [0, -1, 2.0, True, None])
def test_a_number_of_samples_must_be_one(strategy: Any, n: Any) -> None:
    with pytest.raises(InvalidOption, match="n is"):
        strategy(n=n)


def test_strategies_with_the_same_options_are_equal() -> None:
    assert SelfConsistency(n=3) == SelfConsistency(n=3)
    assert TreeOfThoughts() == TreeOfThoughts(depth=3)
    assert TreeOfThoughts() != TreeOfThoughts(depth=4)
