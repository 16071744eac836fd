"""What a thread tells of itself while it works: events, and notes of what is not carried out."""

from __future__ import annotations

from typing import Unpack

from apr_agents.graph.merge import LONGEST_REASON
from apr_agents.graph.state import Thread
from apr_agents.trace.events import Emit, EventType, Told
from apr_agents.types import Note, NoteEvent


def tell(
    emit: Emit, thread: Thread, type: EventType, at: float | None = None, **more: Unpack[Told]
) -> None:
    """Emit an event of ``thread``. No stream that breaks stops a run.

    Args:
        at: when it happened, if that is not where the thread's record stands.
    """
    try:  # noqa: SIM105  suppress() costs as much as all the rest
        emit({"type": type, "id": thread.id, "at": thread.reached if at is None else at, **more})
    except Exception:
        pass


def note(
    emit: Emit,
    thread: Thread,
    event: NoteEvent,
    why: str,
    told: str = "",
    answers: str | None = None,
) -> None:
    """Record that a decision is not carried out, and tell."""
    thread.steps.append(Note(event=event, why=why, told=told, answers=answers))
    tell(emit, thread, event, text=why)


def undecided(emit: Emit, thread: Thread, why: str) -> None:
    """Record that something decided nothing, in one line, and tell."""
    note(emit, thread, "undecided", " ".join(why.split())[:LONGEST_REASON])
