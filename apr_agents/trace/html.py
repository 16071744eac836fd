"""A run as one HTML page that needs no network.

The page is in ``page/``: a few plain scripts, on Preact. What a model wrote reaches it as data,
and is set as text; its content security policy lets no script run but those.
"""

from __future__ import annotations

import json
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from string import Template
from typing import Any

from apr_agents.trace.tables import shown
from apr_agents.trace.timeline import Bar, Unit, timeline
from apr_agents.trace.trajectory import Trajectory
from apr_agents.types import Backtrack, Block, Call, Generated, Note, Step, ThreadResult, ToolUse

_PAGE = files("apr_agents.trace") / "page"
_SCRIPTS = ("run.js", "view.js", "page.js")


def report(trajectory: Trajectory) -> str:
    """The page of a finished run."""
    return page({"record": record(trajectory)}, title=trajectory.question)


def page(data: dict[str, Any], *, title: str) -> str:
    """The page with its ``data``: the ``record`` of a run, or what a ``live`` page begins with."""
    style = _read("page.css")
    library = _read("vendor", "htm-preact.js")
    script = "\n".join(map(_read, _SCRIPTS))
    policy = {
        "default-src": "'none'",
        "script-src": f"{_hash(library)} {_hash(script)}",
        "style-src": _hash(style),
        "connect-src": "'self'" if "live" in data else "'none'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return Template(_read("index.html")).substitute(
        policy="; ".join(f"{name} {allowed}" for name, allowed in policy.items()),
        title=_in_markup(" ".join(title.split())[:80]),
        style=style,
        data=_in_script(data),
        library=library,
        script=script,
    )


def record(trajectory: Trajectory) -> dict[str, Any]:
    """A finished run as a message to the page: its threads in tree order, with all there is to
    draw. Bars, decisions and blocks name a thread by its place in that order."""
    threads = list(trajectory.root.walk())
    places = {thread.id: place for place, thread in enumerate(threads)}
    units: list[Unit] = ["seconds", "tokens"] if trajectory.unit == "seconds" else ["tokens"]
    timelines = {unit: timeline(trajectory.root, unit) for unit in units}
    critical = {bar.thread.id for bar in timelines["tokens"] if bar.critical}
    parents = {
        child.id: thread.id
        for thread in threads
        for block in thread.blocks
        for child in block.threads
    }
    metrics = trajectory.metrics()
    return {
        "type": "record",
        "question": trajectory.question,
        "answer": trajectory.answer,
        "model": trajectory.model,
        "protocol": trajectory.protocol,
        "merge": trajectory.merge,
        "budget": trajectory.budget,
        "began": trajectory.began and f"{trajectory.began:%Y-%m-%d %H:%M} UTC",
        "units": units,
        "metrics": shown(metrics),
        "peak_context": metrics.peak_context,
        "decisions": [decision._asdict() for decision in trajectory.decisions()],
        "threads": [
            _thread(thread, places)
            | {"parent": parents.get(thread.id), "critical": thread.id in critical}
            for thread in threads
        ],
        "timelines": {
            unit: [_bar(bar, places) for bar in bars] for unit, bars in timelines.items()
        },
    }


def _bar(bar: Bar, places: dict[str, int]) -> list[Any]:
    place = places[bar.thread.id]
    return [place, bar.step, bar.activity, round(bar.start, 6), round(bar.end, 6)]


def _thread(thread: ThreadResult, places: dict[str, int]) -> dict[str, Any]:
    return {
        "id": thread.id,
        "outline": thread.outline.text if thread.outline else "",
        "status": thread.status,
        "reason": thread.reason,
        "conclusion": thread.conclusion,
        "tokens": thread.tokens,
        "started": thread.started,
        "ended": thread.ended,
        "steps": [_step(step, places) for step in thread.steps],
    }


def _step(step: Step, places: dict[str, int]) -> dict[str, Any]:
    """A step with its text: of a summary what it says, of all others what the context grew by."""
    match step:
        case Generated():
            return {
                "kind": step.kind,
                "text": step.context if isinstance(step, Call) else step.text,
                "tokens": step.tokens,
                "prompt": step.prompt_tokens,
                "cached": step.cached_tokens,
                "waited": step.waited,
                "first_token": step.first_token,
            }
        case ToolUse():
            more: dict[str, Any] = {"call": step.call.shown, "failed": step.failed}
        case Block():
            left_out = [outline.text for outline in step.left_out]
            threads = [places[thread.id] for thread in step.threads]
            more = {"threads": threads, "left_out": left_out, "policy": step.policy}
        case Note():
            return {"kind": step.event, "text": step.context, "why": step.why}
        case Backtrack():
            more = {"tried": step.tried}
    return {"kind": step.kind, "text": step.context, **more}


def _in_script(data: Any) -> str:
    """JSON that cannot end the script element that it is in, nor begin a comment there."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _in_markup(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def _read(*path: str) -> str:
    return _PAGE.joinpath(*path).read_text(encoding="utf-8")
