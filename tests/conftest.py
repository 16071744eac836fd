"""What the tests of the runtime share: short ways to write outlines, scripts and questions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import pytest
from hypothesis import settings

from apr_agents.backends.base import Request
from apr_agents.backends.scripted import Reply, ScriptedBackend
from apr_agents.protocols.threadweaver import ThreadWeaver
from apr_agents.trace.trajectory import Trajectory
from apr_agents.types import Outline

# A busy machine is no failure.
settings.register_profile("apr", deadline=None, max_examples=100)
settings.load_profile("apr")

Outlines = Callable[..., str]
Scripted = Callable[..., ScriptedBackend]
Ask = Callable[..., Awaitable[Trajectory]]


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


@pytest.fixture(scope="session")
def ask() -> Ask:
    """Ask an agent one question and read the record of the run."""

    async def ask(agent: Any, question: str = "Q", **options: Any) -> Trajectory:
        output = await agent.ainvoke({"messages": [("user", question)]}, **options)
        return Trajectory.model_validate(output["trajectory"])

    return ask


@pytest.fixture(scope="session")
def timeless() -> Callable[[Any], Any]:
    """Data without the seconds in it: all that must repeat from run to run."""

    def strip(data: Any) -> Any:
        if isinstance(data, dict):
            return {key: strip(value) for key, value in data.items() if key != "seconds"}
        return [strip(value) for value in data] if isinstance(data, list) else data

    return strip
