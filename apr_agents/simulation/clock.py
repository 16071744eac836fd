"""An event loop whose time is virtual: waiting takes none, and nothing else passes."""

from __future__ import annotations

import asyncio
from selectors import DefaultSelector, SelectorKey


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Its clock starts at 0, stands still while anything can run, and then jumps to the next timer.

    So sleeps, timeouts and gates keep their order and their exact lengths, and an hour of them
    passes as fast as it can be computed. Work in other threads takes no virtual time.
    """

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._jumping.now


class _JumpingSelector(DefaultSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        ready = super().select(timeout if timeout is None else 0)
        if timeout is not None and not ready:
            self.now += timeout
        return ready
