"""What LangGraph carries between nodes: plain data only, so it survives any serializer."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

from langchain_core.messages import AnyMessage
from langgraph.graph.message import add_messages
from pydantic import BaseModel

from apr_agents.limits import Allowance
from apr_agents.types import Outline, Step, ThreadStatus


class Thread(BaseModel):
    """A thread at work.

    Attributes:
        id: its path from the root.
        outline: its subtask; ``None`` for the root.
        base: the context it started from.
        steps: how its context grew since.
        allowance: what it may still spend.
        children: threads it has spawned so far.
        seconds: time it has taken so far.
        outlines: the block it asked for and waits for; empty while it thinks.
        left_out: outlines of that block that got no thread.
        status: how it ended; ``None`` while it has not.
        reason: why, when that is not ``done``.
    """

    id: str = "0"
    outline: Outline | None = None
    base: str
    steps: list[Step] = []
    allowance: Allowance
    children: int = 0
    seconds: float = 0.0
    outlines: list[Outline] = []
    left_out: list[Outline] = []
    status: ThreadStatus | None = None
    reason: str | None = None

    @property
    def is_root(self) -> bool:
        return self.outline is None

    @property
    def text(self) -> str:
        """What was added to its context since it started."""
        return "".join(step.context for step in self.steps)

    @property
    def context(self) -> str:
        return self.base + self.text

    @property
    def child_ids(self) -> list[str]:
        """Ids of the threads of the block it waits for."""
        first = self.children + 1
        return [f"{self.id}.{first + i}" for i in range(len(self.outlines))]


class AgentState(TypedDict, total=False):
    """State of the whole graph. ``messages`` go in and out, ``trajectory`` comes out."""

    messages: Annotated[list[AnyMessage], add_messages]
    trajectory: dict[str, Any]
    thread: dict[str, Any]
    results: Annotated[list[dict[str, Any]], operator.add]


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


class ThreadOutput(TypedDict):
    """What a thread gives back to its parent: one `ThreadResult`, as plain data."""

    results: Annotated[list[dict[str, Any]], operator.add]
