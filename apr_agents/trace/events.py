"""What happens in a run while it happens: the graph's ``custom`` stream.

Every event is a plain dict with ``type`` and ``id`` (the thread it happened in).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NotRequired, TypedDict

from apr_agents.types import ThreadStatus

EventType = Literal[
    "started",
    "token",
    "tool",
    "spawned",
    "malformed",
    "declined",
    "finished",
    "merged",
    "backtracked",
]


class Event(TypedDict):
    """One event.

    Keys beside ``type`` and ``id``:
        text: ``started``: the thread's outline (the root's is empty); ``token``: what was
            generated; ``tool``: the call; ``malformed`` and ``declined``: why; ``finished``:
            the conclusion; ``merged``: what the parent sees of its threads;
            ``backtracked``: what was tried.
        tokens: ``token``: how many; ``finished``: of the thread and everything below it.
        threads: ``spawned``: the ids of the new threads, in outline order.
        status: ``finished``: how the thread ended.
    """

    type: EventType
    id: str
    text: NotRequired[str]
    tokens: NotRequired[int]
    threads: NotRequired[list[str]]
    status: NotRequired[ThreadStatus]


Emit = Callable[[Event], None]
