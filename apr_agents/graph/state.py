"""What LangGraph carries between nodes: plain data only, so it survives any serializer."""

from __future__ import annotations

import asyncio
import operator
import time
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple, TypedDict

from langchain_core.messages import AnyMessage
from langgraph.graph.message import add_messages
from pydantic import TypeAdapter

from apr_agents.limits import Allowance
from apr_agents.types import (
    Block,
    Call,
    Outline,
    Step,
    ThreadStatus,
    Timed,
    ToolCall,
    context_text,
    in_context,
)

_CLOCK_ZERO = time.time() - time.monotonic()
"""Read once: wall-clock time may be set back while a run goes on, this clock may not."""


def now() -> float:
    """Seconds since 1970, on a clock that never goes back within this process.

    It is the event loop's, so that times and timeouts agree; a loop may have a time of its own.
    """
    try:
        return _CLOCK_ZERO + asyncio.get_running_loop().time()
    except RuntimeError:  # outside of any loop
        return _CLOCK_ZERO + time.monotonic()


class Race(NamedTuple):
    """The block that a thread belongs to: its join policy, and how many threads it has."""

    policy: str
    threads: int


@dataclass(kw_only=True, slots=True)
class Thread:
    """A thread at work.

    Attributes:
        run: names the run among all that one process has.
        id: its path from the root.
        outline: its subtask; ``None`` for the root.
        race: the block it belongs to; ``None`` for the root.
        base: the context it started from: a text or messages, as its mind has it.
        steps: how its context grew since.
        allowance: what it may still spend.
        children: threads it has spawned so far.
        began: when the run began, in seconds since 1970.
        started: when the thread did, in seconds since the run's start; until then, when it was
            spawned.
        seconds: time it has taken so far.
        outlines: the block it asked for and waits for; empty while it thinks.
        left_out: outlines of that block that got no thread.
        lanes: lanes of the model that were free for that block.
        policy: name of that block's join policy.
        answers: id of the tool call that asked for the block.
        uses: the tool calls it waits for.
        concluded: the result it stated apart from its text.
        status: how it ended; ``None`` while it has not.
        reason: why, when that is not ``done``.
        said: id of the message with its last word, if it was one.
    """

    base: str | list[AnyMessage]
    allowance: Allowance
    run: str = ""
    id: str = "0"
    outline: Outline | None = None
    race: Race | None = None
    steps: list[Step] = field(default_factory=list)
    children: int = 0
    began: float = 0.0
    started: float = 0.0
    seconds: float = 0.0
    outlines: list[Outline] = field(default_factory=list)
    left_out: list[Outline] = field(default_factory=list)
    lanes: int | None = None
    policy: str = "all"
    answers: str | None = None
    uses: list[ToolCall] = field(default_factory=list)
    concluded: str | None = None
    status: ThreadStatus | None = None
    reason: str | None = None
    said: str | None = None

    @classmethod
    def of(cls, data: Thread | dict[str, Any]) -> Thread:
        """A thread from its plain data; a thread is returned as it is."""
        return data if isinstance(data, Thread) else _THREADS.validate_python(data)

    def to_data(self) -> dict[str, Any]:
        """The thread as plain data."""
        data: dict[str, Any] = _THREADS.dump_python(self)
        return data

    def clock(self) -> float:
        """Seconds since the run began; never less than is recorded, in whichever process."""
        elapsed, reached = now() - self.began, self.reached if self.steps else self.started
        return elapsed if elapsed > reached else reached

    @property
    def reached(self) -> float:
        """When its last step was over, or it started."""
        for step in reversed(self.steps):
            if isinstance(step, Timed):
                return step.ended
        return self.started

    @property
    def is_root(self) -> bool:
        return self.outline is None

    @property
    def waits(self) -> bool:
        """Whether it waits for threads or tools."""
        return bool(self.outlines or self.uses)

    @property
    def text(self) -> str:
        """What was added to its context since it started."""
        return context_text(self.steps)

    @property
    def written(self) -> str:
        """What the model itself wrote in its context: neither joins nor notes."""
        return "".join(step.text for step in in_context(self.steps) if isinstance(step, Call))

    @property
    def latest_block(self) -> int | None:
        """Index of the model call that asked for the latest block in its context."""
        if not self.steps:
            return None
        kept = in_context(self.steps)
        blocks = [i for i, step in enumerate(kept) if isinstance(step, Block)]
        if not blocks:
            return None
        call = next(step for step in reversed(kept[: blocks[-1]]) if isinstance(step, Call))
        return next(i for i, step in enumerate(self.steps) if step is call)

    @property
    def child_ids(self) -> list[str]:
        """Ids of the threads of the block it waits for."""
        first = self.children + 1
        return [f"{self.id}.{first + i}" for i in range(len(self.outlines))]


_THREADS = TypeAdapter(Thread)


class AgentState(TypedDict, total=False):
    """State of the whole graph. ``messages`` go in and out, ``trajectory`` comes out."""

    messages: Annotated[list[AnyMessage], add_messages]
    trajectory: dict[str, Any]
    thread: dict[str, Any]
    results: Annotated[list[dict[str, Any]], operator.add]
    uses: Annotated[list[dict[str, Any]], operator.add]
    spawn: dict[str, Any]


class AgentInput(TypedDict):
    """A conversation whose last human message is the question."""

    messages: Annotated[list[AnyMessage], add_messages]


class AgentOutput(TypedDict):
    """The conversation with the answer, and the record of the run."""

    messages: Annotated[list[AnyMessage], add_messages]
    trajectory: dict[str, Any]


class ThreadInput(TypedDict):
    """What a ``Send`` brings to a thread."""

    thread: dict[str, Any]


class BlockInput(ThreadInput):
    """A thread, and the block it asks for."""

    spawn: dict[str, Any]


class ThreadOutput(TypedDict):
    """What a thread gives back to its parent: one `ThreadResult`, as plain data."""

    results: Annotated[list[dict[str, Any]], operator.add]
