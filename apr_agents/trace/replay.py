"""The events of a finished run, made out of its record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

from apr_agents.trace.events import Event, EventType, Told
from apr_agents.trace.trajectory import Trajectory
from apr_agents.types import (
    Backtrack,
    Block,
    Generated,
    Note,
    ThreadResult,
    ThreadStatus,
    Timed,
    ToolUse,
)


def replay(trajectory: Trajectory) -> list[Event]:
    """The events of a run, in the order of their times.

    They are those that the run sent, but for the pieces of its texts: each model call has one
    ``token`` event, with all that was kept of its text, at the time of its last token. A record
    without times tells thread by thread.
    """
    events = list(_told(trajectory.root))
    return events if trajectory.began is None else sorted(events, key=lambda event: event["at"])


def _told(thread: ThreadResult) -> Iterator[Event]:
    def event(type: EventType, at: float, **more: Unpack[Told]) -> Event:
        return {"type": type, "id": thread.id, "at": at, **more}

    at = thread.started
    yield event("started", at, text=thread.outline.text if thread.outline else "")
    for step in thread.steps:
        match step:
            case Generated():
                if step.waited < step.seconds:
                    yield event("admitted", step.started + step.waited)
                if step.text or step.tokens:
                    yield event("token", step.ended, text=step.text, tokens=step.tokens)
            case ToolUse(call=call):
                status: ThreadStatus = "failed" if step.failed else "done"
                yield event("tool", step.started, call=call.id, text=call.shown)
                yield event("returned", step.ended, call=call.id, text=step.text, status=status)
            case Block():
                yield event("spawned", step.started, threads=[each.id for each in step.threads])
                for child in step.threads:
                    yield from _told(child)
                yield event("merged", step.ended, text=step.joined)
            case Note():
                yield event(step.event, at, text=step.why)
            case Backtrack():
                yield event("backtracked", at, text=step.tried)
        at = max(at, step.ended) if isinstance(step, Timed) else at
    yield event(
        "finished",
        thread.ended,
        status=thread.status,
        reason=thread.reason,
        text=thread.conclusion,
        tokens=thread.tokens,
    )
