"""What happens in a run while it happens: the graph's ``custom`` stream.

Every event is a plain dict.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Required, TypedDict

from apr_agents.types import ThreadStatus

EventType = Literal[
    "started",
    "admitted",
    "token",
    "tool",
    "returned",
    "spawned",
    "malformed",
    "declined",
    "undecided",
    "finished",
    "merged",
    "backtracked",
]


class Told(TypedDict, total=False):
    """What an event may tell beside its type.

    Attributes:
        text: ``started``: the thread's outline (the root's is empty); ``token``: what was
            generated; ``tool``: the call; ``returned``: what the tool returned;
            ``malformed``, ``declined`` and ``undecided``: why; ``finished``: the conclusion;
            ``merged``: what the parent sees of its threads; ``backtracked``: what was tried.
        tokens: ``token``: how many; ``finished``: of the thread and everything below it.
        threads: ``spawned``: the ids of the new threads, in outline order.
        call: ``tool`` and ``returned``: the model's name for the call.
        status: ``finished``: how the thread ended; ``returned``: ``done`` or ``failed``.
        reason: ``finished``: why, when the status is not ``done``.
    """

    text: str
    tokens: int
    threads: list[str]
    call: str
    status: ThreadStatus
    reason: str | None


class Event(Told):
    """One event.

    A model call is ``admitted`` once the gate lets it through; the next ``token`` of the thread
    is its first. A thread that failed or was cancelled is ``finished`` with that status.

    Attributes:
        type: what happened.
        id: the thread in which it did.
        at: when, in seconds since the run's start. Times of one thread never go back.
    """

    type: Required[EventType]
    id: Required[str]
    at: Required[float]


Emit = Callable[[Event], None]
