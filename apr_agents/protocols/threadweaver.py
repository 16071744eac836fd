"""ThreadWeaver's text tags (ThreadWeaver: adaptive threading for efficient parallel reasoning).

The model thinks, and where it wants threads it writes::

    <Parallel>
    <Outlines>
    <Outline>1: …</Outline>
    <Outline>2: …</Outline>
    </Outlines>

Each thread continues the same context behind ``<Thread>\\n1:`` up to ``</Thread>`` and sees
no sibling. Its results come back as ``<Thread>`` elements in outline order; the model
itself goes on with ``</Parallel>``. Beyond the paper, a line of the prompt tells the model
how many threads it may use, and with ``<Backtrack>what was tried</Backtrack>`` it gives its
latest block up: the context goes back to before the block, plus one line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from langchain_core.messages import AnyMessage, HumanMessage

from apr_agents.errors import InvalidOption
from apr_agents.protocols.base import (
    Decision,
    Discard,
    Ended,
    Malformed,
    Parser,
    Shown,
    Spawn,
    TextProtocol,
    Visibility,
)
from apr_agents.types import LANE, Outline

TAGS = ("think", "Parallel", "Outlines", "Outline", "Thread", "Conclusion", "Backtrack")

_TAG = re.compile(rf"<(?=/?(?:{'|'.join(TAGS)})>)")
_EVENT = re.compile(r"</think>|</Outlines>|</?Thread>|</Backtrack>")
_LONGEST_EVENT = len("</Backtrack>")
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]+)*)\s*:")


def inert(text: str) -> str:
    """``text`` with the protocol's tags broken by a space, so that they mean nothing."""
    return _TAG.sub("< ", text)


def parse_outlines(text: str) -> list[Outline]:
    """The outlines in ``text``: numbered ones, first of each number, in order.

    An outline without a closing tag ends where the next one begins.
    """
    found: dict[str, Outline] = {}
    for piece in text.split("<Outline>")[1:]:
        numbered = _NUMBER.match(piece)
        if numbered:
            body = piece[numbered.end() :].split("</Outline>", 1)[0].strip()
            found.setdefault(numbered[1], Outline(numbered[1], body))
    return list(found.values())


class ThreadWeaverParser(Parser):
    """Finds ``</Outlines>`` while thinking, and in a thread its closing ``</Thread>``."""

    def __init__(self, *, thread: bool, written: str = "") -> None:
        self._thread = thread
        self._text = ""
        self._scanned = 0
        self._answering = not thread and "</think>" in written
        # A model may write a whole thread inline; its end is not this thread's end.
        self._inline = max(0, written.count("<Thread>") - written.count("</Thread>"))

    @property
    def text(self) -> str:
        return self._text

    def feed(self, text: str) -> Decision | None:
        self._text += text
        for event in _EVENT.finditer(self._text, self._scanned):
            self._scanned = event.end()
            decision = self._decide(event)
            if decision is not None:
                end = event.start() if isinstance(decision, Ended) else event.end()
                self._text = self._text[:end]
                return decision
        # The end may be the first half of a tag.
        self._scanned = max(self._scanned, len(self._text) - _LONGEST_EVENT + 1)
        return None

    def _decide(self, event: re.Match[str]) -> Decision | None:
        tag = event[0]
        if self._answering:
            return None
        if tag == "</Outlines>":
            return self._block(self._text[: event.start()])
        if tag == "</Backtrack>":
            return self._given_up(self._text[: event.start()])
        if tag == "</think>":
            self._answering = not self._thread
        elif tag == "<Thread>":
            self._inline += 1
        elif self._inline:
            self._inline -= 1
        elif self._thread:
            return Ended()
        return None

    def _given_up(self, text: str) -> Discard | Malformed:
        _, opened, tried = text.rpartition("<Backtrack>")
        if not opened:
            return Malformed("</Backtrack> without <Backtrack>")
        return Discard(" ".join(tried.split()))

    def _block(self, text: str) -> Spawn | Malformed:
        _, opened, body = text.rpartition("<Outlines>")
        if not opened:
            return Malformed("</Outlines> without <Outlines>")
        outlines = parse_outlines(body)
        return Spawn(outlines) if outlines else Malformed("no numbered outline in the block")

    def finish(self) -> Decision:
        opened = self._text.rfind("<Outlines>")
        if self._answering or opened <= self._text.rfind("</Outlines>"):
            return Ended()
        complete, closed, _ = self._text[opened:].rpartition("</Outline>")
        outlines = parse_outlines(complete + closed)
        return Spawn(outlines) if outlines else Malformed("ended inside <Outlines>")


class ThreadWeaver(TextProtocol):
    """The protocol of ThreadWeaver's models and of the bundled one.

    Args:
        visibility: ``"prefix"``: a thread sees its parent's whole context, as in the paper;
            ``"isolated"``: it is asked its outline as if that were the question.
    """

    name = "threadweaver"
    stops = ("</Outlines>", "</Thread>", "</Backtrack>")
    summary_opening = "\n<Conclusion>"
    summary_stop = "</Conclusion>"

    def __init__(self, visibility: Visibility = "prefix") -> None:
        if visibility not in ("prefix", "isolated"):
            raise InvalidOption("visibility", visibility, "'prefix' or 'isolated'")
        self.visibility = visibility

    def prepare(self, messages: Sequence[AnyMessage], budget: int) -> list[AnyMessage]:
        prepared = [
            message.model_copy(update={"content": inert(message.text)}) for message in messages
        ]
        asked = max(
            (i for i, message in enumerate(prepared) if isinstance(message, HumanMessage)),
            default=len(prepared) - 1,
        )
        announced = f"{prepared[asked].content}\n{self.budget_line(budget)}"
        prepared[asked] = prepared[asked].model_copy(update={"content": announced})
        return prepared

    def budget_line(self, budget: int) -> str:
        """The line of the prompt that says how many threads may be used."""
        return f"Threads: {budget}"

    def opening(self) -> str:
        return "\n<think>\n"

    def parser(self, *, thread: bool, written: str) -> ThreadWeaverParser:
        return ThreadWeaverParser(thread=thread, written=written)

    def block(self, outlines: Sequence[Outline]) -> str:
        """How a model writes these outlines: what demonstrations show it."""
        lines = "\n".join(f"<Outline>{o.number}: {o.text}</Outline>" for o in outlines)
        return f"<Parallel>\n<Outlines>\n{lines}\n</Outlines>"

    def lane(self) -> Outline:
        return Outline(LANE, "the parent's own lane")

    def thread_header(self, outline: Outline) -> str:
        return f"\n<Thread>\n{outline.number}:"

    def join(self, shown: Sequence[Shown]) -> str:
        return "\n" + "".join(
            f"<Thread>\n{one.number}:{one.text if one.verbatim else ' ' + inert(one.text)}</Thread>"
            for one in shown
        )

    def decline(self) -> str:
        return "\n</Parallel>\n"

    def backtrack(self, tried: str) -> str:
        return f"\n(given up: {inert(tried) or 'a block of threads'})\n"

    def close(self, decision: Decision, text: str) -> str:
        if isinstance(decision, Spawn) and not text.endswith("</Outlines>"):
            return "\n</Outlines>"
        return ""

    def conclusion(self, text: str) -> str:
        stated = re.findall(r"<Conclusion>(.*?)</Conclusion>", text, re.DOTALL)
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return stated[-1].strip() if stated else (lines[-1] if lines else "")

    def answer(self, text: str, *, complete: bool) -> str | None:
        _, thought, answer = text.rpartition("</think>")
        return (answer.strip() or None) if thought or complete else None
