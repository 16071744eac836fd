"""A run as Chrome trace events, for ui.perfetto.dev and chrome://tracing.

Each thread is a track. Its life is a slice, and what it did are slices within that; its tools
are asynchronous slices, since they may overlap. Arrows lead from a spawn to its threads and
from their ends to the join. The format: the "Trace Event Format" of the Chromium project.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from apr_agents.trace.timeline import Bar, Unit, timeline
from apr_agents.trace.trajectory import Trajectory
from apr_agents.types import Block, Generated, ToolUse

LONGEST_NAME, LONGEST_TEXT = 60, 240
"""Characters of an outline in the name of a track, of a text among a slice's arguments."""

TraceEvent = dict[str, Any]


def perfetto(trajectory: Trajectory, unit: Unit) -> str:
    """The run as one JSON document. In tokens, a token is shown as a millisecond."""
    second = 1_000_000_000 if unit == "seconds" else 1_000_000
    bars = [
        bar._replace(start=round(bar.start * second), end=round(bar.end * second))
        for bar in timeline(trajectory.root, unit)
    ]
    lives = {bar.thread.id: bar for bar in bars if bar.step is None}
    tracks = {thread: number for number, thread in enumerate(lives, 1)}
    events = [_named("process", 0, trajectory.model)]
    for bar in bars:
        draw = _life if bar.step is None else _slice
        events += draw(bar, tracks[bar.thread.id])
    # Behind all slices: an arrow is bound to the slice that is open at its time.
    for bar in bars:
        if bar.activity == "waiting":
            events += _arrows(bar, tracks, lives)
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})


def _event(kind: str, name: str, track: int, ns: float, **more: Any) -> TraceEvent:
    # Microseconds, with nanoseconds behind the point: slices that meet must not overlap.
    return {"ph": kind, "name": name, "pid": 1, "tid": track, "ts": ns / 1000, **more}


def _named(what: str, track: int, name: str) -> TraceEvent:
    return _event("M", f"{what}_name", track, 0, args={"name": _cut(name, LONGEST_NAME)})


def _complete(bar: Bar, track: int, name: str, args: dict[str, Any]) -> TraceEvent:
    dur = (bar.end - bar.start) / 1000
    return _event("X", name, track, bar.start, dur=dur, cat=bar.activity, args=_short(args))


def _life(bar: Bar, track: int) -> Iterator[TraceEvent]:
    thread = bar.thread
    outline = thread.outline.text if thread.outline else ""
    yield _named("thread", track, f"{thread.id} {outline}".rstrip())
    yield _event("M", "thread_sort_index", track, 0, args={"sort_index": track})
    args = thread.model_dump(include={"status", "reason", "conclusion", "tokens"})
    args |= {"outline": outline, "on_critical_path": bar.critical}
    yield _complete(bar, track, f"thread {thread.id}", args)


def _slice(bar: Bar, track: int) -> Iterator[TraceEvent]:
    assert bar.step is not None
    match bar.thread.steps[bar.step]:
        case ToolUse(call=call) as use:
            args = {"call": call.shown, "text": use.text, "failed": use.failed}
            paired = {"cat": "tool", "id": f"{bar.thread.id}/{bar.step}"}
            yield _event("b", call.name, track, bar.start, **paired, args=_short(args))
            yield _event("e", call.name, track, bar.end, **paired)
        case Generated() as call:
            args = call.model_dump(include={"text", "tokens", "prompt_tokens", "cached_tokens"})
            yield _complete(bar, track, bar.activity, args)
        case Block() as block:
            args = {"joined": block.joined, "policy": block.policy}
            yield _complete(bar, track, bar.activity, args)


def _arrows(waiting: Bar, tracks: dict[str, int], lives: dict[str, Bar]) -> Iterator[TraceEvent]:
    """From a spawn to its threads, and from their last moments to the last before the join."""
    assert waiting.step is not None
    block = waiting.thread.steps[waiting.step]
    assert isinstance(block, Block)
    parent = tracks[waiting.thread.id]
    for child in block.threads:
        own, life = tracks[child.id], lives[child.id]
        last = max(life.start, life.end - 1)
        for name, sender, left, receiver, came in (
            ("spawn", parent, waiting.start, own, life.start),
            ("join", own, last, parent, waiting.end - 1),
        ):
            bound = {"cat": name, "id": f"{name} {child.id}", "bp": "e"}
            yield _event("s", name, sender, left, **bound)
            yield _event("f", name, receiver, max(left, came), **bound)


def _short(args: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _cut(value, LONGEST_TEXT) if isinstance(value, str) else value
        for name, value in args.items()
    }


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length] + "…"
