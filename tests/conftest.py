"""What the tests of the runtime share: short ways to write outlines, scripts and questions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import pytest
from hypothesis import settings
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import Field

from apr_agents.backends.base import Request
from apr_agents.backends.scripted import Reply, ScriptedBackend
from apr_agents.protocols.threadweaver import ThreadWeaver
from apr_agents.trace.trajectory import MEASURED, Trajectory
from apr_agents.types import Outline

# A busy machine is no failure.
settings.register_profile("apr", deadline=None, max_examples=100)
settings.load_profile("apr")

Outlines = Callable[..., str]
Scripted = Callable[..., ScriptedBackend]
Ask = Callable[..., Awaitable[Trajectory]]
Rule = Callable[[list[AnyMessage]], AIMessage | str]


@pytest.fixture(scope="session")
def outlines() -> Outlines:
    """The text of a block with these outlines, numbered from 1."""

    def write(*texts: str) -> str:
        numbered = [Outline(str(i), text) for i, text in enumerate(texts, 1)]
        return ThreadWeaver().block(numbered)

    return write


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """A backend that replies by the key of the request, such as ``0.2/0``.

    A key ``0.*/0`` stands for every thread that has no reply of its own. A request without
    a reply fails the test: a thread would only end as ``failed``.
    """
    unexpected: list[str] = []

    def make(replies: Mapping[str, Reply | str], **options: Any) -> ScriptedBackend:
        def script(request: Request) -> Reply | str:
            thread, _, number = request.key.partition("/")
            any_sibling = f"{thread.rpartition('.')[0]}.*/{number}"
            for key in (request.key, any_sibling):
                if key in replies:
                    return replies[key]
            unexpected.append(request.key)
            raise KeyError(request.key)

        return ScriptedBackend(script, **options)

    yield make
    assert not unexpected


class RuledModel(BaseChatModel):
    """A chat model that calls tools and answers as a rule says.

    Attributes:
        rule: from the messages to the model's next one.
        heard: the messages of each call so far.
        offered: the tools of each binding so far.
    """

    rule: Rule
    heard: list[list[AnyMessage]] = Field(default_factory=list)
    offered: list[list[Any]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "ruled"

    def bind_tools(self, tools: Any, **options: Any) -> Any:
        self.offered.append(list(tools))
        return self

    def _generate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **options: Any
    ) -> ChatResult:
        self.heard.append(messages)
        said = self.rule(messages)
        message = AIMessage(said) if isinstance(said, str) else said
        return ChatResult(generations=[ChatGeneration(message=message)])


@pytest.fixture(scope="session")
def ruled() -> Callable[[Rule], RuledModel]:
    """A chat model that answers as a rule says."""
    return lambda rule: RuledModel(rule=rule)


@pytest.fixture(scope="session")
def ask() -> Ask:
    """Ask an agent one question and read the record of the run."""

    async def ask(agent: Any, question: str = "Q", **options: Any) -> Trajectory:
        output = await agent.ainvoke({"messages": [("user", question)]}, **options)
        return Trajectory.model_validate(output["trajectory"])

    return ask


@pytest.fixture(scope="session")
def timeless() -> Callable[[Any], Any]:
    """Data without what depends on the machine: all that must repeat from run to run."""

    def strip(data: Any) -> Any:
        if isinstance(data, dict):
            return {key: strip(value) for key, value in data.items() if key not in MEASURED}
        return [strip(value) for value in data] if isinstance(data, list) else data

    return strip
