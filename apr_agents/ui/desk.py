"""One question at a time is asked of an agent, and every page hears how it goes.

Knows agents and messages; never HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator

from apr_agents.errors import AprError, EmptyQuestion
from apr_agents.graph.watch import watch
from apr_agents.trace.html import record
from apr_agents.trace.terminal import shortened

if TYPE_CHECKING:
    from langgraph.graph.state import CompiledStateGraph

    from apr_agents.trace.trajectory import Trajectory

    Agent = CompiledStateGraph[Any, Any, Any, Any]

Message = Mapping[str, Any]
"""What a page hears: ``asked``, the run's events, and its ``record``, or that it ``failed``."""

MOST_AT_ONCE = 1000
"""Messages that a page is sent together."""

LONGEST_FAILURE = 600


class Busy(AprError):
    """A question is asked while another one is being answered."""

    def __init__(self) -> None:
        super().__init__("A question is being answered. Wait for it, or stop it.")


class Question(BaseModel):
    """What is asked, and how.

    Attributes:
        question: the question.
        threads: that the run may use; ``None`` for the agent's own limit.
        strategy: who decides when to split.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str
    threads: Literal["auto"] | int | None = None
    strategy: str = "adaptive"

    @field_validator("threads", mode="before")
    @classmethod
    def _read(cls, given: Any) -> Any:
        """What was typed into a box."""
        text = str(given).strip()
        if given is None or text in ("", "auto"):
            return text if text == "auto" else None
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise ValueError(f"{text[:20]!r} is neither 'auto' nor a whole number from 0 up")
        return int(text)


class Desk:
    """Where questions are asked. Belongs to one event loop.

    A page reads the log of the current run from its start, at its own pace: nothing is kept for
    a page that is slow, and it is in no run's way.

    Args:
        agent: makes the agent for a question.
    """

    def __init__(self, agent: Callable[[Question], Agent]) -> None:
        self._agent = agent
        self._log: list[Message] = []
        self._changed = asyncio.Event()
        self._run: asyncio.Task[Trajectory] | None = None
        self._is_closed = False

    def ask(self, question: Question) -> asyncio.Task[Trajectory]:
        """Begin a run, in place of the one before.

        Raises:
            Busy: that one has not ended.
            AprError: the question cannot be asked so.
        """
        if self._run is not None and not self._run.done():
            raise Busy
        if not question.question.strip():
            raise EmptyQuestion
        agent = self._agent(question)
        self._log = []
        tell = partial(self._tell, self._log)
        tell({"type": "asked", "question": question.question})
        self._run = asyncio.create_task(_answer(agent, question.question, tell))
        self._run.add_done_callback(partial(_tell_failure, tell))
        return self._run

    async def stop(self) -> None:
        """End the run, if there is one, and wait until it has."""
        if self._run is not None:
            self._run.cancel()
            await asyncio.wait([self._run])

    def close(self) -> None:
        """End the run and every stream of messages, for good."""
        self._is_closed = True
        if self._run is not None:
            self._run.cancel()
        self._changed.set()

    async def messages(self) -> AsyncIterator[list[Message]]:
        """The current run from its start, then what comes. Another one begins with ``asked``."""
        log, heard = self._log, 0
        while not self._is_closed:
            if log is not self._log:
                log, heard = self._log, 0
            if news := log[heard : heard + MOST_AT_ONCE]:
                heard += len(news)
                yield news
            else:
                await self._changed.wait()

    def _tell(self, log: list[Message], message: Message) -> None:
        log.append(message)
        if not self._is_closed:
            self._changed.set()
            self._changed = asyncio.Event()


async def _answer(agent: Agent, question: str, tell: Callable[[Message], None]) -> Trajectory:
    trajectory = await watch(agent, question, tell)
    tell(await asyncio.to_thread(record, trajectory))
    return trajectory


def _tell_failure(tell: Callable[[Message], None], run: asyncio.Task[Trajectory]) -> None:
    if run.cancelled():
        tell({"type": "failed", "why": "stopped"})
    elif (error := run.exception()) is not None:  # whatever the package of a provider raises
        why = str(error) if isinstance(error, AprError) else f"{type(error).__name__}: {error}"
        tell({"type": "failed", "why": shortened(why, LONGEST_FAILURE)})
