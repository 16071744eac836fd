"""A run's threads in a terminal: live while they run, or the finished record.

Knows events and trajectories; never who sends them. What a model wrote is shown as data:
it can neither style nor move anything on the screen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from apr_agents.trace.events import Event
from apr_agents.trace.replay import replay
from apr_agents.trace.trajectory import Trajectory
from apr_agents.types import NoteEvent, ThreadStatus

MOST_ROWS = 40
"""Threads that a tree shows; the rest is counted."""

TAIL = 240
"""Characters of a running thread's text that are kept to show its end."""

Stage = Literal["queued", "thinking", "waiting"] | ThreadStatus


class _Look(NamedTuple):
    mark: str
    style: str
    urgency: int
    """Where not all threads fit, those with the lowest number are shown."""


_LOOKS: dict[Stage, _Look] = {
    "thinking": _Look("●", "cyan", 0),
    "failed": _Look("✗", "red", 1),
    "timed_out": _Look("✗", "yellow", 1),
    "over_budget": _Look("✗", "yellow", 1),
    "cancelled": _Look("✗", "yellow", 1),
    "waiting": _Look("○", "blue", 2),
    "done": _Look("✓", "green", 3),
    "queued": _Look("·", "dim", 4),
}

_NOTES: dict[NoteEvent, str] = {
    "malformed": "unreadable split",
    "declined": "no split",
    "undecided": "no decision",
}


def printable(text: str, *, lines: bool = False) -> str:
    """``text`` without control, formatting and other invisible characters, white space as spaces.

    Args:
        lines: keep line ends and tabs.
    """
    kept = "\n\t" if lines else ""
    return "".join(
        char if char.isprintable() or char in kept else " " if char.isspace() else ""
        for char in text
    )


def shortened(text: str, width: int, *, keep: Literal["start", "end"] = "start") -> str:
    """One line of ``text`` in at most ``width`` terminal cells, an ellipsis for what was cut."""
    # A thread may have written megabytes of which a line shows nothing.
    most = 4 * width + 8
    text = text[:most] if keep == "start" else text[-most:]
    text = " ".join(printable(text).split())
    if cell_len(text) <= width:
        return text
    if width < 1:
        return ""
    if keep == "start":
        return chop_cells(text, width - 1)[0].rstrip() + "…" if width > 1 else "…"
    cut = text[1 - width :] if width > 1 else ""
    while cell_len(cut) > width - 1:
        cut = cut[1:]
    return "…" + cut.lstrip()


@dataclass
class _Thread:
    """What is known about one thread."""

    id: str
    outline: str = ""
    stage: Stage = "queued"
    tail: str = ""
    conclusion: str = ""
    reason: str = ""
    note: str = ""
    tool: str = ""
    own_tokens: int = 0
    all_tokens: int | None = None
    children: list[_Thread] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        if self.all_tokens is not None:
            return self.all_tokens
        return self.own_tokens + sum(child.tokens for child in self.children)

    @property
    def running(self) -> bool:
        return self.stage in ("queued", "thinking", "waiting")

    def walk(self, parent: _Thread | None = None) -> Iterator[tuple[_Thread, _Thread | None]]:
        """This thread and everything below it, each with its parent, parents first."""
        yield self, parent
        for child in self.children:
            yield from child.walk(self)


class ThreadTree:
    """The threads of one run, one row each; a rich renderable.

    A row has a mark for the thread's status, its id and outline, the end of what it is
    writing or what it came to, and the tokens it and everything below it generated.
    """

    def __init__(self) -> None:
        self._root = _Thread("0")
        self._threads = {"0": self._root}

    @classmethod
    def of(cls, trajectory: Trajectory) -> ThreadTree:
        """The tree of a finished run."""
        tree = cls()
        for event in replay(trajectory):
            tree.feed(event)
        return tree

    def feed(self, event: Event) -> None:
        """Take the next event of the run; one of a type or thread not known here is ignored."""
        thread = self._threads.get(event["id"])
        if thread is None:
            return
        text = event.get("text", "")
        match event["type"]:
            case "started":
                thread.outline = text
            case "admitted":
                thread.stage = "thinking"
            case "token":
                thread.stage = "thinking"
                thread.tail = (thread.tail + text)[-TAIL:]
                thread.own_tokens += event.get("tokens", 0)
            case "tool":
                thread.stage, thread.tool = "waiting", text
            case "returned":
                thread.tool = ""
            case "spawned":
                thread.stage = "waiting"
                children = {name: _Thread(name) for name in event.get("threads", [])}
                thread.children += children.values()
                self._threads |= children
            case "malformed" | "declined" | "undecided" as kind:
                thread.note = _note(kind, text)
            case "merged":
                thread.stage = "queued"
            case "finished":
                thread.stage, thread.conclusion = event.get("status", "done"), text
                thread.reason = event.get("reason") or ""
                thread.all_tokens = event.get("tokens")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fits = options.height or options.max_height
        # A running tree is drawn over itself again and again, which works on one screen only.
        rows = min(MOST_ROWS, max(3, fits - 2)) if self._root.running else MOST_ROWS
        shown, hidden = self._choose(rows)
        drawn = list(_indented(self._root, shown))
        width = options.max_width
        counts = [f"{thread.tokens} tokens" for _, thread in drawn]
        widest_count = max(map(len, counts))
        labels = [_label(indent, thread) for indent, thread in drawn]
        widest_label = min(max(label.cell_len for label in labels), int(width * 0.4))
        middle = max(0, width - widest_label - widest_count - 4)
        for (_, thread), label, count in zip(drawn, labels, counts, strict=True):
            label.truncate(widest_label, overflow="ellipsis", pad=True)
            story = _story(thread, middle)
            story.truncate(middle, overflow="ellipsis", pad=True)
            row = Text("  ", no_wrap=True).join(
                (label, story, Text(count.rjust(widest_count), "dim"))
            )
            row.truncate(width, overflow="ellipsis")
            yield row
        if hidden:
            kinds = ", ".join(f"{n} {stage.replace('_', ' ')}" for stage, n in hidden.items())
            line = f"… and {hidden.total()} more: {kinds}"
            yield Text(shortened(line, width), "dim")

    def _choose(self, rows: int) -> tuple[set[str], Counter[Stage]]:
        """Ids of the threads to show, with all their ancestors, and the stages of the others."""
        threads = [(thread, parent) for thread, parent in self._root.walk()]
        if len(threads) <= rows:
            return {thread.id for thread, _ in threads}, Counter()
        parents = {thread.id: parent for thread, parent in threads}
        shown: set[str] = set()
        for thread, _ in sorted(threads, key=lambda each: _LOOKS[each[0].stage].urgency):
            wanted: list[str] = []
            above: _Thread | None = thread
            while above is not None and above.id not in shown:
                wanted.append(above.id)
                above = parents[above.id]
            if len(shown) + len(wanted) < rows:  # the last row counts the hidden ones
                shown.update(wanted)
        return shown, Counter(thread.stage for thread, _ in threads if thread.id not in shown)


class LiveThreads:
    """Shows a run on ``console`` while it happens: a live tree, or plain lines without a terminal.

    A context manager. Feed it the graph's custom stream, then give it the trajectory.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tree = ThreadTree()
        self._live: Live | None = None
        self._exit = ExitStack()

    def __enter__(self) -> LiveThreads:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            live = Live(self._tree, console=self._console, refresh_per_second=8)
            self._live = self._exit.enter_context(live)
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def feed(self, event: Event) -> None:
        """Take the next event of the run."""
        self._tree.feed(event)
        line = _line(event) if self._live is None else None
        if line is not None:
            self._console.print(Text(line), soft_wrap=True)

    def finish(self, trajectory: Trajectory) -> None:
        """Replace what the events told by the full record."""
        if self._live is not None:
            self._live.update(ThreadTree.of(trajectory))


def _note(kind: NoteEvent, why: str) -> str:
    return f"{_NOTES[kind]}: {why}"


def _indented(root: _Thread, shown: set[str]) -> Iterator[tuple[str, _Thread]]:
    """The shown threads in tree order, each behind its guide lines."""

    def below(thread: _Thread, guides: str) -> Iterator[tuple[str, _Thread]]:
        children = [child for child in thread.children if child.id in shown]
        for child in children:
            last = child is children[-1]
            yield guides + ("└─ " if last else "├─ "), child
            yield from below(child, guides + ("   " if last else "│  "))

    yield "", root
    yield from below(root, "")


def _label(indent: str, thread: _Thread) -> Text:
    look = _LOOKS[thread.stage]
    # The id says where a deep thread belongs; its guides must not push it off the screen.
    label = Text(indent[-18:], "dim", no_wrap=True)
    label.append(look.mark, look.style)
    outline = shortened(thread.outline, 60)
    label.append(f" {thread.id}", "bold" if thread.running else "")
    return label.append(f"  {outline}" if outline else "")


def _story(thread: _Thread, width: int) -> Text:
    """What a thread is writing, or what it came to."""
    if thread.stage == "done":
        text = f"{thread.conclusion}  ({thread.note})" if thread.note else thread.conclusion
        return Text(shortened(text, width))
    if not thread.running:
        status = thread.stage.replace("_", " ")
        about = thread.reason or thread.conclusion
        text = f"{status}: {about}" if about else status
        return Text(shortened(text, width), _LOOKS[thread.stage].style)
    if thread.stage == "waiting":
        back = sum(not child.running for child in thread.children)
        text = f"{back} of {len(thread.children)} threads are back" if thread.children else ""
        return Text(shortened(thread.tool or text, width), "dim")
    return Text(shortened(thread.tail, width, keep="end"), "dim")


def _line(event: Event) -> str | None:
    """One event in one plain line; ``None`` for what is too small to tell."""
    thread, text = event["id"], shortened(event.get("text", ""), 120)
    match event["type"]:
        case "started":
            return f"{thread} started" + (f": {text}" if text else "")
        case "spawned":
            ids = event.get("threads", [])
            return f"{thread} split into {len(ids)} threads"
        case "malformed" | "declined" | "undecided" as kind:
            return f"{thread} {_note(kind, text)}"
        case "merged":
            return f"{thread} joined its threads"
        case "finished":
            status = event.get("status", "done").replace("_", " ")
            told = f"{thread} {status}, {event.get('tokens', 0)} tokens"
            about = shortened(event.get("reason") or "", 120) or text
            return told + (f": {about}" if about else "")
        case _:
            return None
