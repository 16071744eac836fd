"""What the tests of strategies share: agents on a model that answers prompts by a rule."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from langchain_core.messages import AIMessage

from apr_agents import Limits, ThoughtPrompts, Trajectory, create_parallel_agent
from apr_agents.backends.base import Request
from apr_agents.backends.scripted import Reply, ScriptedBackend
from apr_agents.strategies.base import Strategy
from apr_agents.strategies.thoughts import State
from apr_agents.types import ThreadResult
from tests.graph.chat_script import Asked, Says, ToolChat

WIDE = Limits(max_threads=1000, max_total_threads=10_000, max_concurrency=1000)

Rule = Callable[[str], Reply | str]


@dataclass
class Run:
    """A finished run.

    Attributes:
        calls: model calls.
    """

    trajectory: Trajectory
    calls: int

    @property
    def answer(self) -> str | None:
        return self.trajectory.answer

    @property
    def asked(self) -> list[list[str]]:
        """What the threads of each block were asked."""
        return [
            [thread.outline.text for thread in block.threads if thread.outline]
            for block in self.trajectory.root.blocks
        ]

    @property
    def statuses(self) -> list[str]:
        """Of all threads, in their order."""
        return [each.status for block in self.trajectory.root.blocks for each in block.threads]

    @property
    def notes(self) -> list[str]:
        """Why things were not done as they should."""
        return [step.why for step in self.trajectory.root.steps if step.kind == "note"]


Solve = Callable[..., Awaitable[Run]]


def texts(rule: Rule) -> ScriptedBackend:
    """A model that continues text, and answers what it is asked by a rule."""

    def script(request: Request) -> Reply | str:
        return rule(request.prompt.removesuffix("\nThreads: 0\n<think>\n"))

    return ScriptedBackend(script, chunk=100)


def chats(rule: Rule) -> ToolChat:
    """A chat model that does so."""

    def script(asked: Asked) -> Says | AIMessage | str:
        said = rule(asked.last)
        if isinstance(said, str):
            return said
        return Says(said.text, hangs=said.hangs, fails=said.fails)

    return ToolChat(script=script)


@pytest.fixture(params=["text", "chat"])
def solve(request: pytest.FixtureRequest) -> Iterator[Solve]:
    """Ask an agent with a strategy one question. Every test runs on both kinds of model."""
    chatty: list[ToolChat] = []

    async def solve(
        strategy: str | Strategy, rule: Rule, question: str = "Q", **options: Any
    ) -> Run:
        model: Any = texts(rule) if request.param == "text" else chats(rule)
        agent = create_parallel_agent(model, strategy=strategy, **{"limits": WIDE, **options})
        output = await agent.ainvoke({"messages": [("user", question)]})
        if isinstance(model, ToolChat):
            chatty.append(model)
        calls = len(model.asked if isinstance(model, ToolChat) else model.requests)
        return Run(Trajectory.model_validate(output["trajectory"]), calls)

    yield solve
    assert [complaint for model in chatty for complaint in model.complaints] == []


class Terse(ThoughtPrompts):
    """Prompts that say no more than is needed: what is asked, and the state."""

    def propose(self, question: str, thoughts: State, count: int) -> str:
        return f"propose {'>'.join(thoughts)}"

    def sample(self, question: str, thoughts: State) -> str:
        return f"sample {'>'.join(thoughts)}"

    def value(self, question: str, thoughts: State) -> str:
        return f"value {'>'.join(thoughts)}"

    def worth(self, text: str) -> float | None:
        return float(text)

    def vote(self, question: str, states: Any) -> str:
        return f"vote {' '.join('>'.join(state) for state in states)}"

    def answer(self, question: str, thoughts: State) -> str:
        return f"answer {'>'.join(thoughts)}"


def space(tree: dict[str, str], values: dict[str, float | str]) -> Rule:
    """A search space: what is proposed in each state, and what each state is worth (else 1)."""

    def rule(prompt: str) -> str:
        asked, _, state = prompt.partition(" ")
        if asked == "propose":
            return "\n".join(tree.get(state, "").split())
        if asked == "value":
            return str(values.get(state, 1))
        return f"answer of {state}"

    return rule


def drive(
    strategy: Strategy, rule: Rule, question: str = "Q"
) -> tuple[list[list[str]], str | None]:
    """What a strategy asks, block by block, and what it answers, without a graph."""
    plan = strategy.plan(question, lambda function, *args: function(*args))
    asked: list[list[str]] = []
    try:
        ask = next(plan)
        while True:
            if ask.prompts:
                asked.append(list(ask.prompts))
            ask = plan.send([_result(str(rule(prompt))) for prompt in ask.prompts])
    except StopIteration as end:
        return asked, end.value


def _result(text: str) -> ThreadResult:
    return ThreadResult(id="0.1", status="done", conclusion=text, tokens=1, seconds=0, steps=[])
