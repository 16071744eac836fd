"""The one gate that every model call of an agent passes: concurrency and rate.

It is held during a model call only, never while a thread waits for its children, so
nested waiting parents cannot deadlock it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakKeyDictionary

from asyncio_throttle import Throttler


class Gate:
    """At most ``concurrency`` calls at once and ``rate`` starts per second, in each event loop."""

    def __init__(self, concurrency: int, rate: float | None = None) -> None:
        self.concurrency, self.rate = concurrency, rate
        self._doors: WeakKeyDictionary[
            asyncio.AbstractEventLoop, tuple[asyncio.Semaphore, Throttler | None]
        ] = WeakKeyDictionary()

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Wait for a place, then keep it for as long as the block runs."""
        semaphore, throttle = self._door()
        async with semaphore:
            if throttle is not None:
                await throttle.acquire()
            yield

    def _door(self) -> tuple[asyncio.Semaphore, Throttler | None]:
        loop = asyncio.get_running_loop()
        if loop not in self._doors:
            # One start per interval paces fractional rates too.
            throttle = Throttler(1, period=1 / self.rate) if self.rate else None
            self._doors[loop] = asyncio.Semaphore(self.concurrency), throttle
        return self._doors[loop]
