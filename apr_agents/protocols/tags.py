"""What the protocols with tags share: outlines in a list, threads in elements.

A variant names its `Tags` and differs in little else. Beyond the papers, a line of the
prompt tells the model how many threads it may use, and with
``<Backtrack>what was tried</Backtrack>`` it gives its latest block up: the context goes
back to before the block, plus one line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from apr_agents.errors import InvalidOption
from apr_agents.protocols.base import (
    DEEPEST,
    Decision,
    Discard,
    Ended,
    Malformed,
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

BACKTRACK = "Backtrack"

FAR = 64
"""Characters behind a block at which a conclusion does not belong to it any more."""

# 1: or 1.2: as most write it; "1." and "Path 1:" as in figures and drafts of the papers.
_NUMBER = re.compile(
    r"\s*(?:(?:outline|plan|path|thread|step)\s+)?([0-9]+(?:\.[0-9]+)*)\s*(?::|[.)](?![0-9]))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Tags:
    """The names of a format's tags.

    Attributes:
        thread: around what one thread writes.
        conclusion: around what is concluded from threads.
        block: around a whole block; empty if nothing is.
        outlines: around the outlines: threads start where it closes. Empty if there are none:
            they start where the block opens.
        outline: around one outline.
        think: around the thought that the answer follows; the first is what runs use.
    """

    thread: str
    conclusion: str
    block: str = ""
    outlines: str = ""
    outline: str = ""
    think: tuple[str, ...] = ()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        own = (self.block, self.outlines, self.outline, self.thread, self.conclusion)
        return tuple(filter(None, (*self.think, *own, BACKTRACK)))

    @property
    def spawn(self) -> str:
        """The tag at which threads start."""
        return f"</{self.outlines}>" if self.outlines else f"<{self.block}>"

    @property
    def thought(self) -> tuple[str, ...]:
        """The tags behind which the answer begins."""
        return tuple(f"</{name}>" for name in self.think)

    @cached_property
    def tag(self) -> re.Pattern[str]:
        """Any tag."""
        return re.compile(rf"<(?=/?(?:{'|'.join(self.names)})>)")

    @cached_property
    def decisive(self) -> re.Pattern[str]:
        """The tags that can decide something while a model writes."""
        last = (self.spawn, f"<{self.thread}>", f"</{self.thread}>", f"</{BACKTRACK}>")
        return re.compile("|".join((*self.thought, *last)))

    @cached_property
    def structure(self) -> re.Pattern[str]:
        """The tags that give a written trace its structure."""
        framing = filter(None, (self.block, self.outlines, self.thread, self.conclusion))
        return re.compile("|".join((*self.thought, rf"</?(?:{'|'.join(framing)})>")))

    def inert(self, text: str) -> str:
        """``text`` with all tags broken by a space, so that they mean nothing."""
        return self.tag.sub("< ", text)

    def read_outlines(self, text: str) -> list[Outline]:
        """The outlines in ``text``: numbered ones, first of each number, in order.

        An outline without a closing tag ends where the next one begins.
        """
        found: dict[str, Outline] = {}
        for piece in text.split(f"<{self.outline}>")[1:] if self.outline else ():
            numbered = _NUMBER.match(piece)
            if numbered:
                body = piece[numbered.end() :].split(f"</{self.outline}>", 1)[0].strip()
                found.setdefault(numbered[1], Outline(numbered[1], body))
        return list(found.values())


class TagProtocol(TextProtocol):
    """A protocol with tags.

    Args:
        visibility: ``"prefix"``: a thread sees its parent's whole context, as in the papers;
            ``"isolated"``: it is asked its outline as if that were the question.
    """

    tags: Tags
    separator = "\n"
    """What stands between two threads of a join."""

    def __init__(self, visibility: Visibility = "prefix") -> None:
        if visibility not in ("prefix", "isolated"):
            raise InvalidOption("visibility", visibility, "'prefix' or 'isolated'")
        self.visibility = visibility

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.tags.spawn, f"</{self.tags.thread}>", f"</{BACKTRACK}>")

    @property
    def summary_opening(self) -> str:
        return f"\n<{self.tags.conclusion}>"

    @property
    def summary_stop(self) -> str:
        return f"</{self.tags.conclusion}>"

    def inert(self, text: str) -> str:
        return self.tags.inert(text)

    def opening(self) -> str:
        return f"\n<{self.tags.think[0]}>\n" if self.tags.think else "\n"

    def parser(self, *, thread: bool, written: str) -> TagParser:
        return TagParser(self, thread=thread, written=written)

    def spawn(self, text: str) -> Spawn | Malformed:
        """What the model asks for where ``text`` ends with its outlines."""
        _, opened, body = text.rpartition(f"<{self.tags.outlines}>")
        if not opened:
            return Malformed(f"{self.tags.spawn} without <{self.tags.outlines}>")
        outlines = self.tags.read_outlines(body)
        return Spawn(outlines) if outlines else Malformed("no numbered outline in the block")

    def block(self, outlines: Sequence[Outline]) -> str:
        tags = self.tags
        lines = [f"<{tags.outline}>{o.number}: {o.text}</{tags.outline}>" for o in outlines]
        opened = [f"<{tags.block}>"] if tags.block else []
        return "\n".join([*opened, f"<{tags.outlines}>", *lines, tags.spawn])

    def resume(self, conclusion: str) -> str:
        tags = self.tags
        closing = f"</{tags.block}>\n" if tags.block else ""
        return f"\n<{tags.conclusion}>\n{conclusion}\n</{tags.conclusion}>\n{closing}"

    def end(self, result: str, *, thread: bool) -> str:
        if thread:
            return f"</{self.tags.thread}>"
        return f"\n{self.tags.thought[0]}\n{result}" if self.tags.think else f"\nAnswer: {result}"

    def thread_header(self, outline: Outline) -> str:
        return f"\n<{self.tags.thread}>\n{outline.number}:"

    def join(self, shown: Sequence[Shown]) -> str:
        tag = self.tags.thread
        return "\n" + self.separator.join(
            f"<{tag}>\n{one.number}:{one.text if one.verbatim else ' ' + self.inert(one.text)}"
            f"</{tag}>"
            for one in shown
        )

    def decline(self) -> str:
        return f"\n</{self.tags.block}>\n" if self.tags.block else "\n"

    def close(self, decision: Decision, text: str) -> str:
        if isinstance(decision, Spawn) and not text.endswith(self.tags.spawn):
            return f"\n{self.tags.spawn}"
        return ""

    def stated(self, text: str) -> str | None:
        """The last conclusion that is written out in ``text``."""
        opening = f"<{self.tags.conclusion}>"
        for piece in reversed(text.split(f"</{self.tags.conclusion}>")[:-1]):
            if opening in piece:
                return piece.partition(opening)[2].strip()
        return None

    def conclusion(self, text: str) -> str:
        return last_line(self._behind(text)) or self.stated(text) or ""

    def answer(self, text: str, *, complete: bool) -> str | None:
        begins = max((text.rfind(tag) + len(tag) for tag in self.tags.thought if tag in text),
                     default=0)  # fmt: skip
        if begins or self.tags.think:
            return (text[begins:].strip() or None) if begins or complete else None
        return (self._behind(text).strip() or self.stated(text) or None) if complete else None

    def _behind(self, text: str) -> str:
        """What follows the last block, or the start of one that came to nothing."""
        tags = self.tags
        behind = text.rpartition(f"</{tags.conclusion}>")[2].rpartition(tags.spawn)[2]
        return behind.replace(f"</{tags.block}>", "") if tags.block else behind

    def read_trace(self, text: str) -> list[TraceBlock]:
        return _TraceReader(self, text).read()


class TagParser(Scanner):
    """Finds the tag that starts threads and, in a thread, the one that closes it."""

    def __init__(self, protocol: TagProtocol, *, thread: bool, written: str = "") -> None:
        super().__init__()
        self._protocol, self._thread = protocol, thread
        tags = protocol.tags
        self._open, self._close = f"<{tags.thread}>", f"</{tags.thread}>"
        self._answering = not thread and any(tag in written for tag in tags.thought)
        # A model may write a whole thread inline; its end is not this thread's end.
        self._inline = max(0, written.count(self._open) - written.count(self._close))
        self.longest = max(map(len, tags.names)) + len("</>")

    @property
    def event(self) -> re.Pattern[str]:
        return self._protocol.tags.decisive

    def decide(self, event: str, start: int, end: int) -> tuple[Decision, int] | None:
        if self._answering:
            return None
        if event == self._protocol.tags.spawn:
            return self._protocol.spawn(self.text[:start]), end
        if event == f"</{BACKTRACK}>":
            return self._given_up(self.text[:start]), end
        if event in self._protocol.tags.thought:
            self._answering = not self._thread
        elif event == self._open:
            self._inline += 1
        elif self._inline:
            self._inline -= 1
        elif self._thread:
            return Ended(), start
        return None

    def _given_up(self, text: str) -> Discard | Malformed:
        _, opened, tried = text.rpartition(f"<{BACKTRACK}>")
        if not opened:
            return Malformed(f"</{BACKTRACK}> without <{BACKTRACK}>")
        return Discard(" ".join(tried.split()))

    def finish(self) -> Decision:
        text, tags = self.text, self._protocol.tags
        opened = text.rfind(f"<{tags.outlines}>") if tags.outlines else -1
        if self._answering or opened <= text.rfind(f"</{tags.outlines}>"):
            return Ended()
        complete, closed, _ = text[opened:].rpartition(f"</{tags.outline}>")
        outlines = tags.read_outlines(complete + closed)
        return Spawn(outlines) if outlines else Malformed(f"ended inside <{tags.outlines}>")


class _Stated(NamedTuple):
    """A conclusion in a trace: where its opening tag begins, what it says, where it ends."""

    start: int
    text: str
    end: int


@dataclass
class _Passage:
    """What is being read: the trace as a whole, or a thread of a block."""

    start: int
    number: str = ""
    blocks: list[TraceBlock] = field(default_factory=list)
    concluding: tuple[int, int] | None = None
    stated: _Stated | None = None


@dataclass
class _Block:
    """A block that is being read."""

    start: int
    listed: bool = False
    outlines: list[Outline] | None = None
    threads: dict[str, TraceThread] = field(default_factory=dict)
    concluding: tuple[int, int] | None = None
    stated: _Stated | None = None


class _TraceReader:
    """Reads one trace. On its stack, passages and blocks take turns."""

    def __init__(self, protocol: TagProtocol, text: str) -> None:
        self._protocol, self._tags, self._text = protocol, protocol.tags, text
        self._stack: list[_Passage | _Block] = [_Passage(0)]

    def read(self) -> list[TraceBlock]:
        tags, end = self._tags, len(self._text)
        acts = {
            f"<{tags.block}>": self._open_block,
            f"</{tags.block}>": self._close_block,
            f"<{tags.outlines}>": self._open_outlines,
            f"</{tags.outlines}>": self._close_outlines,
            f"<{tags.thread}>": self._open_thread,
            f"</{tags.thread}>": self._close_thread,
            f"<{tags.conclusion}>": self._open_conclusion,
            f"</{tags.conclusion}>": self._close_conclusion,
        }
        for tag in tags.structure.finditer(self._text):
            if tag[0] not in tags.thought:
                acts[tag[0]](tag.start(), tag.end())
            elif len(self._stack) == 1:  # the answer begins
                break
        self._settle(end)
        while len(self._stack) > 1:
            self._pop(end, end)
        root = self._stack[0]
        assert isinstance(root, _Passage)
        return root.blocks

    def _open_block(self, start: int, end: int) -> None:
        if not self._tags.block:
            self._settle(start)
        if isinstance(self._stack[-1], _Block):  # which nobody closed
            self._pop(start, start)
        self._stack[-1].concluding = self._stack[-1].stated = None
        if len(self._stack) < 2 * DEEPEST:
            self._stack.append(_Block(start))

    def _close_block(self, start: int, end: int) -> None:
        self._settle(start)
        if isinstance(self._stack[-1], _Passage) and len(self._stack) > 1:
            self._pop(start, start)
        if isinstance(self._stack[-1], _Block):
            self._pop(start, end)

    def _open_outlines(self, start: int, end: int) -> None:
        block = self._stack[-1]
        if isinstance(block, _Passage) or block.listed or block.outlines is not None:
            self._open_block(start, end)
        if isinstance(block := self._stack[-1], _Block):
            block.listed = True

    def _close_outlines(self, start: int, end: int) -> None:
        if isinstance(block := self._stack[-1], _Block):
            self._list(block, start)

    def _open_thread(self, start: int, end: int) -> None:
        if isinstance(self._stack[-1], _Passage) and len(self._stack) > 1:
            self._pop(start, start)
        if isinstance(block := self._stack[-1], _Block):
            outlines = self._list(block, start)
            position = len(block.threads)
            numbered = _NUMBER.match(self._text, end) if self._tags.outline else None
            if numbered:
                self._stack.append(_Passage(numbered.end(), numbered[1]))
            elif position < len(outlines):
                self._stack.append(_Passage(end, outlines[position].number))
            else:
                self._stack.append(_Passage(end, str(position + 1)))

    def _close_thread(self, start: int, end: int) -> None:
        if len(self._stack) > 3 and isinstance(self._stack[-1], _Block):
            self._pop(start, start)
        if len(self._stack) > 2:
            self._pop(start, end)

    def _open_conclusion(self, start: int, end: int) -> None:
        if isinstance(block := self._stack[-1], _Block):
            self._list(block, start)
        self._stack[-1].concluding = (start, end)

    def _close_conclusion(self, start: int, end: int) -> None:
        top = self._stack[-1]
        if top.concluding is None:
            return
        opened, begins = top.concluding
        top.stated = _Stated(opened, self._text[begins:start].strip(), end)
        top.concluding = None
        if isinstance(top, _Passage):
            self._attach(top)
        elif not self._tags.block:
            self._pop(start, end)

    def _attach(self, passage: _Passage) -> None:
        """A conclusion right behind a block belongs to it."""
        block = passage.blocks[-1] if passage.blocks else None
        if passage.stated is None or block is None or block.conclusion is not None:
            return
        opened, conclusion, end = passage.stated
        behind = passage.start + block.span[1]
        if opened - behind < FAR and not self._text[behind:opened].strip():
            span = (block.span[0], end - passage.start)
            passage.blocks[-1] = block._replace(conclusion=conclusion, span=span)
            passage.stated = None

    def _settle(self, end: int) -> None:
        """A block is over: a conclusion at the end of a thread that nobody closed is its own."""
        top = self._stack[-1]
        if top.concluding is not None:
            opened, begins = top.concluding
            top.stated = _Stated(opened, self._text[begins:end].strip(), end)
            top.concluding = None
        if isinstance(top, _Passage):
            self._attach(top)
            if top.stated is not None and len(self._stack) > 1:
                self._pop(top.stated.start, top.stated.start)
                self._stack[-1].stated = top.stated
                if not self._tags.block:
                    self._pop(end, top.stated.end)

    def _list(self, block: _Block, end: int) -> list[Outline]:
        """The outlines of ``block``, which it has all once something else is at ``end``."""
        if block.outlines is None:
            block.outlines = self._tags.read_outlines(self._text[block.start : end])
        return block.outlines

    def _pop(self, start: int, end: int) -> None:
        """What was opened last is over: its text at ``start``, its closing tag at ``end``."""
        top = self._stack.pop()
        below = self._stack[-1]
        if isinstance(top, _Passage):
            assert isinstance(below, _Block)
            text = self._text[top.start : start]
            conclusion = self._protocol.conclusion(text)
            thread = TraceThread(top.number, text, conclusion, top.blocks)
            below.threads.setdefault(top.number, thread)
            return
        assert isinstance(below, _Passage)
        outlines = self._list(top, start)
        if not self._tags.outline:
            outlines = [Outline(number, "") for number in top.threads]
        if outlines or top.threads:
            threads = list(top.threads.values())
            stated = top.stated.text if top.stated is not None else None
            span = (top.start - below.start, end - below.start)
            below.blocks.append(TraceBlock(outlines, threads, stated, span))
