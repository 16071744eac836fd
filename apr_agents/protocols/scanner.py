"""Finding events in text that arrives in pieces, wherever it is cut, in linear time."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator

from apr_agents.protocols.base import Decision, Parser


class Scanner(Parser):
    """A parser that looks for events, such as tags, and decides at some of them."""

    longest: int
    """Characters of the longest event. It may depend on the one before it."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._length = 0
        self._rest = ""  # the end of the text: it may be the first part of an event
        self._past = 0  # characters of it that are done with

    @property
    @abstractmethod
    def event(self) -> re.Pattern[str]:
        """What to look for next."""

    @abstractmethod
    def decide(self, event: str, start: int, end: int) -> tuple[Decision, int] | None:
        """The decision at an event that stands there, and how much text is kept with it."""

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def feed(self, text: str) -> Decision | None:
        for decision, end in self.decisions(text):
            self._pieces = [self.text[:end]]
            return decision
        return None

    def decisions(self, text: str) -> Iterator[tuple[Decision, int]]:
        """Every decision in the next piece, as if nothing were dropped behind one."""
        window = self._rest + text
        offset = self._length - len(self._rest)
        self._pieces.append(text)
        self._length += len(text)
        position = self._past
        while event := self.event.search(window, position):
            position = event.end()
            decided = self.decide(event[0], offset + event.start(), offset + position)
            if decided is not None:
                yield decided
        position = max(position, len(window) - self.longest + 1)
        start = max(0, position - 1)
        self._rest, self._past = window[start:], position - start
