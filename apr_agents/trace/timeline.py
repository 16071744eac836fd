"""What ran when: the bars of a run's waterfall. Knows records; never how they are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from apr_agents.trace.metrics import critical_path
from apr_agents.types import Block, Generated, Step, ThreadResult, ToolUse

Unit = Literal["seconds", "tokens"]

Activity = Literal["thread", "gate", "prompt", "writing", "tool", "waiting"]


class Bar(NamedTuple):
    """What one thread did for a while.

    Attributes:
        thread: the thread.
        step: index among the thread's steps; ``None`` for the thread as a whole.
        activity: ``thread``: its whole life; ``gate``: a model call waits there; ``prompt``:
            from the gate to the first token, the model's own queue included; ``writing``:
            from the first to the last token; ``tool``; ``waiting``: for threads, up to
            their join.
        start, end: in the timeline's unit, from the run's start.
        critical: whether the thread is on the critical path.
    """

    thread: ThreadResult
    step: int | None
    activity: Activity
    start: float
    end: float
    critical: bool


def timeline(root: ThreadResult, unit: Unit) -> list[Bar]:
    """The bars of a run: each thread's life, its steps in their order, then the threads below it.

    In seconds they are as recorded. In tokens, every thread writes one token per tick as soon
    as it can and nothing else takes time: then the run ends at its critical path. Steps of
    one thread overlap only where it waits: several tools run at the same time, or tools and
    threads, or threads are summed up. A step without length has no bar.
    """
    return list(_bars(root, 0, True, unit))


def _bars(thread: ThreadResult, at: int, critical: bool, unit: Unit) -> Iterator[Bar]:
    """The bars of a thread before which ``at`` tokens had to be written, and of those below it."""
    life = (thread.started, thread.ended)
    if unit == "tokens":
        life = (at, at + critical_path(thread))
    yield Bar(thread, None, "thread", *life, critical)
    below: list[tuple[ThreadResult, int, bool]] = []
    for index, step in enumerate(thread.steps):
        paths = [critical_path(each) for each in step.threads] if isinstance(step, Block) else []
        tokens = step.tokens if isinstance(step, Generated) else max(paths, default=0)
        done = _in_seconds(step) if unit == "seconds" else _in_tokens(step, at, at + tokens)
        for activity, start, end in done:
            if end > start:
                yield Bar(thread, index, activity, start, end, critical)
        if isinstance(step, Block):
            longest = paths.index(tokens) if paths else None
            below += [
                (each, at, critical and number == longest)
                for number, each in enumerate(step.threads)
            ]
        at += tokens
    for each in below:
        yield from _bars(*each, unit)


def _in_seconds(step: Step) -> Iterator[tuple[Activity, float, float]]:
    match step:
        case Generated(started=started, ended=ended):
            admitted = started + step.waited
            first = ended if step.first_token is None else admitted + step.first_token
            yield "gate", started, admitted
            yield "prompt", admitted, first
            yield "writing", first, ended
        case ToolUse(started=started, ended=ended):
            yield "tool", started, ended
        case Block(started=started, ended=ended):
            yield "waiting", started, ended


def _in_tokens(step: Step, start: int, end: int) -> Iterator[tuple[Activity, float, float]]:
    match step:
        case Generated():
            yield "writing", start, end
        case Block():
            yield "waiting", start, end
