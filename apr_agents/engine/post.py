"""From the engine's thread to an event loop: what one step has to tell, in one go.

Knows queues and event loops; never what is told.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Post(Generic[T]):
    """Puts letters into queues of one event loop, from any other thread.

    To wake an event loop costs more than to hand over a token. So only the first of several
    letters does it, and all of a step are delivered together.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._letters: deque[tuple[asyncio.Queue[T], T]] = deque()

    def send(self, to: asyncio.Queue[T], letter: T) -> bool:
        """Post a letter; false when the event loop is gone."""
        self._letters.append((to, letter))
        if len(self._letters) > 1:  # whoever posted the first has called
            return not self._loop.is_closed()
        try:
            self._loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:
            return False
        return True

    def _deliver(self) -> None:
        while self._letters:
            # Out of the box only when it is delivered: an empty box is one that nobody empties.
            to, letter = self._letters[0]
            to.put_nowait(letter)
            self._letters.popleft()
