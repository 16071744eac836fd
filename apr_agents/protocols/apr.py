"""APR's spawn and join (Pan et al.: Learning Adaptive Parallel Reasoning with Language Models).

A thread sees nothing but the message it was started with, and what it returns takes the place
of the call in its parent's context. In general the model calls functions::

    spawn(["first message", "second message"])      join("what the thread found")

In the paper's Countdown searches it names nodes of its search tree, and a thread gets the
state of its node::

    <Calling Sub Searches>
    <Start Sub Search 0 at level 1> Moving to Node #0,0
    <Start Sub Search 1 at level 1> Moving to Node #0,1
    <End Calling Sub Searches>

Either way the parent reads on from ``<Sub Searches>``, an entry for each thread and
``<End Sub Searches>``. If the model writes ``<Sub Searches>`` itself, it makes results up: it
is stopped, what it made up is dropped, and it goes on from ``<Calling Sub Searches>``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

from apr_agents.protocols.base import (
    DEEPEST,
    Decision,
    Ended,
    Malformed,
    Profile,
    Shown,
    Spawn,
    TextProtocol,
    TraceBlock,
    TraceThread,
    Visibility,
    last_line,
)
from apr_agents.protocols.scanner import Scanner
from apr_agents.types import Outline

CALLING, CALLED = "<Calling Sub Searches>", "<End Calling Sub Searches>"
RETURNING, RETURNED = "<Sub Searches>", "<End Sub Searches>"
ON_FORGERY = f"{CALLING}\n"
"""What stands in the place of results that the model made up."""
GOAL, NO_SOLUTION = "Goal Reached", "no solution"

_FUNCTION = r"(?<![\w.])(spawn|join)\("
_OUTSIDE = re.compile(f"{CALLING}|{CALLED}|{RETURNING}|{_FUNCTION}")
_INSIDE = re.compile(r"\\.|[\"'()\[\],=\n]|[^\\\"'()\[\],=\s]+", re.DOTALL)
_TAG = re.compile(
    r"<(?=(?:End )?(?:Calling )?Sub Searches>|Start Sub Search|Sub Search "
    r"|(?:Goal Reached|No Solution) in Sub Search)"
)
_START = re.compile(r"<Start Sub Search\s+(\d+)[^>\n]{0,40}>([^<\n]*)")
_RESULT = re.compile(
    r"<(?:(?P<how>Goal Reached|No Solution) in )?Sub Search\s+(?P<number>[^\s>]+)"
    r"(?:\s+at level\s+\d+)?(?:\s+at Node\s+#?(?P<node>[\d,]+))?>"
)
_END = re.compile(f"{RETURNED}|(?={CALLING}|{RETURNING})")
_SEARCH = re.compile(r"(?:^|>)(?:Exploring Operation:|No solution found)", re.MULTILINE)
_NODE = re.compile(r"\s*Moving to Node\s+#([\d,]+)\s*")
_KEYWORD = re.compile(r"^\s*msgs?\s*=\s*")
_LIST = r"\[[^\]\n]{0,2000}\]"
_STATE = re.compile(
    rf"Moving to Node #(?P<node>[\d,]+)\s+Current State: (?P<state>\d+:{_LIST}), "
    rf"Operations: (?P<operations>{_LIST})"
    rf"|Generated Node #(?P<new>[\d,]+): (?P<reached>\d+:{_LIST}) Operation: (?P<by>\S+)"
)


class APR(TextProtocol):
    """The protocol of APR's models, and of any that is taught the two functions."""

    name = "apr"
    profile = Profile(
        says='spawn(["…", "…"]) and join("…"), or <Calling Sub Searches> in Countdown traces',
        sees="only its message, or its node and the state there",
        returns="an entry for each in <Sub Searches>; the call is deleted",
        paper="Pan et al. 2025, arXiv 2504.15466",
    )
    visibility: Visibility = "isolated"
    stops = (CALLED, RETURNING)
    summary_opening = '\njoin("'
    summary_stop = '")'

    def inert(self, text: str) -> str:
        return re.sub(_FUNCTION, r"\1 (", _TAG.sub("< ", text))

    def announce(self, question: str, budget: int) -> str:
        return f"Sub Call Budget: {budget} {question}" if budget else question

    def opening(self) -> str:
        return ""

    def parser(self, *, thread: bool, written: str) -> APRParser:
        return APRParser(written)

    def block(self, outlines: Sequence[Outline]) -> str:
        return f"spawn({json.dumps([outline.text for outline in outlines], ensure_ascii=False)})"

    def resume(self, conclusion: str) -> str:
        return ""

    def end(self, result: str, *, thread: bool) -> str:
        return f"\njoin({json.dumps(result, ensure_ascii=False)})"

    def thread_header(self, outline: Outline) -> str:
        return "\n"

    def question(self, outline: Outline, context: str) -> str:
        node = _NODE.fullmatch(outline.text)
        state = _states(context).get(node[1]) if node else None
        if node is None or state is None:
            return outline.text
        current, operations = state
        return f"Moving to Node #{node[1]}\nCurrent State: {current}, Operations: {operations}"

    def join(self, shown: Sequence[Shown]) -> str:
        entries = "".join(f"{self._entry(one)}\n" for one in shown)
        return f"{RETURNING}\n{entries}{RETURNED}\n"

    def _entry(self, one: Shown) -> str:
        text = self.inert(one.text).strip()
        node = _NODE.fullmatch(one.asked)
        if node is None:
            return f"<Sub Search {one.number}> {' '.join(text.split())}".rstrip()
        where = f"in Sub Search {one.number} at level {one.id.count('.')} at Node #{node[1]}"
        if GOAL in text:
            return f"<{GOAL} {where}>\n{text}"
        why = "" if text == NO_SOLUTION else " ".join(text.split())
        return f"<No Solution {where}> {why}".rstrip()

    def decline(self) -> str:
        return "\n(No sub searches may start: go on alone.)\n"

    def close(self, decision: Decision, text: str) -> str:
        if not isinstance(decision, Spawn) or text.endswith((CALLED, ")")):
            return ""
        return f"\n{CALLED}" if text.rfind("<Start ") > text.rfind("spawn(") else "])"

    def conclusion(self, text: str) -> str:
        return self.answer(text, complete=False) or last_line(text)

    def answer(self, text: str, *, complete: bool) -> str | None:
        behind = 0
        for decision, end in APRParser().decisions(text):
            if isinstance(decision, Ended):
                return decision.conclusion or None
            behind = end
        if GOAL in text:
            return _solution(text)
        if not complete:
            return None
        return NO_SOLUTION if _SEARCH.search(text) else text[behind:].strip() or None

    def read_trace(self, text: str) -> list[TraceBlock]:
        return _TraceReader(text).read()


class APRParser(Scanner):
    """Finds calls that are complete, and results that the model makes up."""

    longest = len(CALLED)

    def __init__(self, written: str = "") -> None:
        super().__init__()
        # Where a call of searches began: before this text if the runtime wrote its first tag.
        self._calling = -len(ON_FORGERY) if written.endswith(ON_FORGERY) else None
        self._behind = 0
        self._function: _Function | None = None

    @property
    def event(self) -> re.Pattern[str]:
        return _OUTSIDE if self._function is None else _INSIDE

    def decide(self, event: str, start: int, end: int) -> tuple[Decision, int] | None:
        if self._function is not None:
            return self._argue(self._function, event, start, end)
        if event == CALLED:
            decision = self._searches(start, end) or Malformed("the call starts no sub search")
            self._calling, self._behind = None, end
            return decision, end
        if event == RETURNING:
            return Malformed(f"it wrote {RETURNING} itself", ON_FORGERY), start
        if event != CALLING:
            self._function = _Function(event[:-1], start, end)
        elif self._calling is None or self._calling >= 0:
            self._calling = start
        return None

    def finish(self) -> Decision:
        end, function = self._length, self._function
        if function is not None and function.name == "spawn" and function.lists:
            return function.spawn(self.text, end) or Malformed("ended inside spawn([")
        if function is not None and function.name == "join" and function.quotes:
            return Ended(_unquoted(self.text[function.body :]))
        if self._calling is None:
            return Ended()
        ended = Malformed(f"ended inside {CALLING}") if self._calling >= 0 else Ended()
        return self._searches(end, end) or ended

    def _argue(
        self, function: _Function, event: str, start: int, end: int
    ) -> tuple[Decision, int] | None:
        done = function.take(event, start, end)
        if done is None:
            return None
        self._function, self._behind = None, end
        if not done:
            return None
        if function.name == "join":
            return Ended(_unquoted(self.text[function.body : start])), end
        decision = function.spawn(self.text, end) or Malformed("spawn without a message")
        return decision, end

    def _searches(self, start: int, end: int) -> Spawn | None:
        """The searches that are started in a call up to ``start``, whose last tag ends there."""
        text = self.text
        first = _START.search(text, max(self._calling or 0, self._behind), start)
        if first is None:
            return None
        found: dict[str, Outline] = {}
        for search in _START.finditer(text, first.start(), start):
            found.setdefault(search[1], Outline(search[1], search[2].strip()))
        begun = first.start() if self._calling is None else self._calling
        return Spawn(list(found.values()), replaced=end - begun)


class _Function:
    """A call of ``spawn`` or ``join`` while it is being written.

    Attributes:
        name: of the function.
        start: where the call begins.
        body: where its argument does.
    """

    def __init__(self, name: str, start: int, body: int) -> None:
        self.name, self.start, self.body = name, start, body
        self._depth, self._quote, self._last = 1, "", "("
        self._edges: list[int] = []  # around and between the messages of spawn
        self._listed = False

    @property
    def lists(self) -> bool:
        """Whether its argument is a list."""
        return bool(self._edges)

    @property
    def quotes(self) -> bool:
        """Whether it ends in a text in quotes, so far."""
        return bool(self._quote) or self._last == '"'

    def take(self, event: str, start: int, end: int) -> bool | None:
        """Whether the call is complete; ``False`` if it turns out to be none."""
        if self._quote:
            if event == self._quote:
                self._quote, self._last = "", '"'
            return None
        if event in ('"', "'") and self._last in ("(", "[", ",", "="):
            self._quote = event
            return None
        if event == "\n":  # in the middle of words: prose
            return None if self._depth > 1 or self._last in ("(", "=", '"', "]") else False
        if event in ("(", "["):
            self._depth += 1
            if event == "[" and self._depth == 2 and not self._edges:
                self._edges.append(end)
        elif event in (")", "]"):
            self._depth -= 1
        if self._edges and not self._listed:
            self._listed = self._depth < 2
            if self._listed or (event == "," and self._depth == 2):
                self._edges.append(start)
        self._last = event
        if self._depth:
            return None
        return self.name == "join" or self._listed

    def spawn(self, text: str, end: int) -> Spawn | None:
        """The threads it asks for so far, in a text that ends there."""
        complete = not self._listed and not self._quote and self._last == '"'
        edges = [*self._edges, end] if complete else self._edges
        pieces = (text[a:b].removeprefix(",") for a, b in pairwise(edges))
        messages = dict.fromkeys(filter(None, map(_unquoted, pieces)))
        outlines = [Outline(str(i), message) for i, message in enumerate(messages, 1)]
        return Spawn(outlines, replaced=end - self.start) if outlines else None


def _unquoted(argument: str) -> str:
    """What an argument says: a text in quotes, or as it stands; as much of it as there is."""
    text = _KEYWORD.sub("", argument, count=1).strip()
    for quote in ('"""', "'''", '"', "'"):
        if text.startswith(quote):
            text = text.removeprefix(quote).removesuffix(quote)
            return re.sub(r"\\(.)", _unescaped, text, flags=re.DOTALL).strip()
    return text


def _unescaped(escaped: re.Match[str]) -> str:
    if escaped[1] == "n":
        return "\n"
    return escaped[1] if escaped[1] in "\"'\\" else escaped[0]


@lru_cache(maxsize=8)
def _states(context: str) -> dict[str, tuple[str, list[str]]]:
    """Of every node in a search its numbers, such as ``27:[26, 31]``, and how they came about."""
    states: dict[str, tuple[str, list[str]]] = {}
    for found in _STATE.finditer(context):
        if found["node"]:
            operations = re.findall(r"'([^']*)'", found["operations"])
            states.setdefault(found["node"], (found["state"], operations))
        else:
            _, before = states.get(found["new"].rpartition(",")[0], ("", []))
            states.setdefault(found["new"], (found["reached"], [*before, found["by"]]))
    return states


def _solution(text: str) -> str:
    """The path to the goal: what stands before it since the goal was first reached."""
    last = text.rindex(GOAL)
    first = text.rfind(GOAL, 0, last)
    start = first + len(GOAL) if first >= 0 else text.rfind("Exploring Operation", 0, last)
    return text[max(start, 0) : last + len(GOAL)].strip()


@dataclass
class _Call:
    """A call in a trace, and what came of it so far."""

    outlines: list[Outline]
    start: int
    end: int
    threads: list[TraceThread] = field(default_factory=list)
    blocks: list[TraceBlock] = field(default_factory=list)  # of the thread that is being read

    @property
    def is_answered(self) -> bool:
        return len(self.threads) >= len(self.outlines)


class _TraceReader:
    """Reads one trace: calls, and behind them what their threads wrote or the list of results."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._stack = [_Call([], 0, 0)]  # the trace itself, then calls within calls
        self._listed = 0  # where the latest list of results ends

    def read(self) -> list[TraceBlock]:
        for decision, end in APRParser().decisions(self._text):
            start = end - decision.replaced if isinstance(decision, Spawn) else end
            if start < self._listed:
                continue
            if isinstance(decision, Spawn):
                self._call(decision.outlines, start, end)
            elif isinstance(decision, Ended):
                self._join(decision.conclusion or "", end)
            elif self._text.startswith(RETURNING, end):
                self._list(end)
        while len(self._stack) > 1:
            self._close()
        return self._stack[0].blocks

    def _call(self, outlines: list[Outline], start: int, end: int) -> None:
        top = self._stack[-1]
        threads_follow = self._text.startswith("spawn", top.start) and not top.is_answered
        if len(self._stack) > 1 and (not threads_follow or len(self._stack) > DEEPEST):
            self._close()
        self._stack.append(_Call(outlines, start, end))

    def _join(self, message: str, end: int) -> None:
        """The text behind the call, or behind the thread before, was a thread's."""
        if len(self._stack) > 1 and self._stack[-1].is_answered:
            self._close()
        call = self._stack[-1]
        if len(self._stack) > 1:
            number, written = call.outlines[len(call.threads)].number, self._text[call.end : end]
            blocks = [_moved(block, -call.end) for block in call.blocks]
            call.threads.append(TraceThread(number, written, message, blocks))
            call.blocks, call.end = [], end

    def _list(self, start: int) -> None:
        """Results are listed: those of the latest call, or of one that was deleted."""
        begins = start + len(RETURNING)
        ends = _END.search(self._text, begins)
        self._listed = len(self._text) if ends is None else ends.end()
        section = self._text[begins : self._listed].removesuffix(RETURNED)
        while len(self._stack) > 1 and self._stack[-1].blocks:  # other calls are in between
            self._close()
        deleted = len(self._stack) == 1
        results = _results(section, [] if deleted else self._stack[-1].outlines)
        if deleted:
            self._stack.append(_Call([outline for outline, _ in results], start, start))
        call = self._stack[-1]
        call.threads = call.threads or [thread for _, thread in results]
        call.end = self._listed
        self._close()

    def _close(self) -> None:
        """The latest call is over; blocks of a thread that never ended follow its own."""
        call = self._stack.pop()
        block = TraceBlock(call.outlines, call.threads, None, (call.start, call.end))
        self._stack[-1].blocks += [block, *call.blocks] if call.outlines else call.blocks


def _moved(block: TraceBlock, by: int) -> TraceBlock:
    return block._replace(span=(block.span[0] + by, block.span[1] + by))


def _results(section: str, outlines: list[Outline]) -> list[tuple[Outline, TraceThread]]:
    """The entries of a list of results; where they have no headers, every line is one."""
    headers = list(_RESULT.finditer(section))
    ends = [header.start() for header in headers[1:]] + [len(section)]
    found: dict[str, tuple[Outline, TraceThread]] = {}
    for header, end in zip(headers, ends, strict=False):
        number, text = header["number"], section[header.end() : end].strip()
        outline = Outline(number, f"Moving to Node #{header['node']}" if header["node"] else "")
        conclusion = NO_SOLUTION if header["how"] == "No Solution" else text or header["how"] or ""
        found.setdefault(number, (outline, TraceThread(number, text, conclusion, [])))
    written = [] if headers else section.splitlines()
    lines = [line.strip() for line in written if line.strip()]
    more = (Outline(str(i + 1), "") for i in range(len(outlines), len(lines)))
    for outline, line in zip([*outlines, *more], lines, strict=False):
        thread = TraceThread(outline.number, line, line, [])
        found.setdefault(outline.number, (outline, thread))
    return list(found.values())
