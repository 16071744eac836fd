"""The life of a thread without LangGraph around it."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import permutations

import pytest
from langchain_core.messages import HumanMessage

from apr_agents.backends.gate import Gate
from apr_agents.backends.scripted import Reply, ScriptedBackend
from apr_agents.graph.join import All
from apr_agents.graph.merge import Conclusions
from apr_agents.graph.runner import Runner, Scene
from apr_agents.graph.state import Thread
from apr_agents.graph.text import TextMind
from apr_agents.limits import Limits
from apr_agents.protocols.threadweaver import ThreadWeaver
from apr_agents.trace.events import Event
from apr_agents.types import ThreadResult


def ignore(event: Event) -> None:
    pass


SCENE = Scene(ignore)


@pytest.fixture
def runner(scripted: Callable[..., ScriptedBackend], outlines: Callable[..., str]) -> Runner:
    replies: dict[str, Reply | str] = {
        "0/0": outlines("a", "b", "c"),
        "0.1/0": " 1</Thread>",
        "0.2/0": " 2</Thread>",
        "0.3/0": " 3</Thread>",
        "0/2": "</think>4",
    }
    limits = Limits()
    mind = TextMind(scripted(replies), ThreadWeaver(), None)
    return Runner(mind, Conclusions(), All(), limits, Gate(8))


async def waiting(runner: Runner) -> tuple[Thread, list[ThreadResult]]:
    """A root that waits for its threads, and their results."""
    thread = runner.start([HumanMessage("Q")])
    await runner.reason(thread, SCENE)
    children = list(runner.children(thread))
    for child in children:
        await runner.reason(child, SCENE)
    return thread, [runner.result(child, ignore) for child in children]


async def test_results_join_in_outline_order_in_whatever_order_they_arrive(
    runner: Runner,
) -> None:
    parents = []
    for order in permutations(range(3)):
        thread, results = await waiting(runner)
        await runner.join(thread, [results[i] for i in order], [], SCENE)
        parents.append(thread.text)
    assert len(set(parents)) == 1
    assert parents[0].endswith(
        "\n<Thread>\n1: 1</Thread><Thread>\n2: 2</Thread><Thread>\n3: 3</Thread>"
    )


async def test_a_thread_in_flight_is_the_same_after_json(runner: Runner) -> None:
    thread, results = await waiting(runner)
    again = Thread.of(json.loads(json.dumps(thread.to_data())))
    assert again == thread
    for each in (thread, again):
        await runner.join(each, results, [], SCENE)
        await runner.reason(each, SCENE)
    assert runner.trajectory(again, ignore).answer == "4"
    assert again.text == thread.text


async def test_a_parent_pays_for_its_threads(runner: Runner) -> None:
    thread, results = await waiting(runner)
    before = thread.allowance
    await runner.join(thread, results, [], SCENE)
    assert before.tokens - thread.allowance.tokens == sum(result.tokens for result in results)
    assert before.threads - thread.allowance.threads == 3
    assert thread.allowance.own_tokens == before.own_tokens
    assert before.seconds - thread.allowance.seconds == pytest.approx(
        max(result.seconds for result in results)
    )
