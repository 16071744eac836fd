"""A run's tree as a Mermaid flowchart, for Markdown pages."""

from __future__ import annotations

import re
from collections import deque

from apr_agents.trace.terminal import shortened
from apr_agents.trace.trajectory import Trajectory
from apr_agents.types import ThreadResult

MOST_THREADS = 120
"""Threads that a chart shows, those near the root first; the rest is counted."""

LONGEST_LABEL = 40
"""Characters of an outline and of a conclusion."""

_SPECIAL = re.compile(r"[^A-Za-z0-9 ]")

_STYLES = """\
    classDef done fill:#e6f4ea,stroke:#34a853,color:#111
    classDef failed fill:#fce8e6,stroke:#d93025,color:#111
    classDef stopped fill:#fef7e0,stroke:#f9ab00,color:#111"""


def mermaid(trajectory: Trajectory) -> str:
    """The chart's text. Nothing in it that a model wrote is more than a label."""
    lines, links = ["flowchart TD"], []
    waiting, nodes = deque([(trajectory.root, "t0")]), 1
    while waiting:
        thread, node = waiting.popleft()
        lines.append(f'    {node}["{_label(thread)}"]:::{_style(thread)}')
        threads = [each for block in thread.blocks for each in block.threads]
        shown = threads[: MOST_THREADS - nodes]
        for each in shown:
            waiting.append((each, f"t{nodes}"))
            links.append(f"    {node} --> t{nodes}")
            nodes += 1
        if hidden := len(threads) - len(shown):
            lines.append(f'    {node}more["{hidden} more"]')
            links.append(f"    {node} -.-> {node}more")
    return "\n".join([*lines, *links, _STYLES])


def _style(thread: ThreadResult) -> str:
    return thread.status if thread.status in ("done", "failed") else "stopped"


def _label(thread: ThreadResult) -> str:
    outline = thread.outline.text if thread.outline else ""
    came_to = thread.conclusion if thread.status == "done" else thread.status.replace("_", " ")
    told = [f"{thread.id} · {thread.tokens} tokens", outline, came_to]
    return "<br>".join(_escaped(shortened(text, LONGEST_LABEL)) for text in told if text)


def _escaped(text: str) -> str:
    """``text`` with all but plain letters, digits and spaces as Mermaid's character codes."""
    return _SPECIAL.sub(lambda found: f"#{ord(found[0])};", text)
