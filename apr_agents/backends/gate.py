"""The one gate that every model call of an agent passes: concurrency and rates.

It is held during a model call only, never while a thread waits for its children, so
nested waiting parents cannot deadlock it.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import NamedTuple
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary, WeakValueDictionary

from asyncio_throttle import Throttler

from apr_agents.errors import InvalidOption

STARTED_TOGETHER = 32
"""Threads or calls that start in one turn of an event loop, so that hundreds do not block it."""

PORTS = {"http": 80, "https": 443}


class Gate:
    """At most ``concurrency`` calls at once, and rates per second, in each event loop.

    Args:
        concurrency: calls inside at once.
        rate: calls started per second, evenly spaced; ``None`` for no bound.
        tokens_per_second: tokens per second, up to one second's worth at once; ``None``
            for no bound.
    """

    def __init__(
        self, concurrency: int, rate: float | None = None, tokens_per_second: float | None = None
    ) -> None:
        if concurrency < 1:
            raise InvalidOption("concurrency", concurrency, "at least 1")
        rates = {"requests_per_second": rate, "tokens_per_second": tokens_per_second}
        for name, value in rates.items():
            if value is not None and not value > 0:
                raise InvalidOption(name, value, "a positive number, or None for no bound")
        self.concurrency, self.rate, self.tokens_per_second = concurrency, rate, tokens_per_second
        self._doors: WeakKeyDictionary[asyncio.AbstractEventLoop, _Door] = WeakKeyDictionary()

    @classmethod
    def shared(
        cls,
        url: str,
        *,
        concurrency: int,
        requests_per_second: float | None = None,
        tokens_per_second: float | None = None,
    ) -> Gate:
        """The gate of the server at ``url``: the same one for every agent of this process.

        Servers are told apart by scheme, host and port. A gate lasts as long as anybody
        keeps it.

        Raises:
            InvalidOption: the URL names no server, or its gate has other bounds.
        """
        server = _server(url)
        asked = cls(concurrency, requests_per_second, tokens_per_second)
        with _sharing:
            gate = _shared.setdefault(server, asked)
        for name, value in asked.bounds.items():
            if value != gate.bounds[name]:
                first = ", ".join(f"{bound}={value!r}" for bound, value in gate.bounds.items())
                raise InvalidOption(name, value, f"as the gate of {server} has it: {first}")
        return gate

    @property
    def bounds(self) -> dict[str, float | None]:
        """What it bounds, named as in `shared`."""
        return {
            "concurrency": self.concurrency,
            "requests_per_second": self.rate,
            "tokens_per_second": self.tokens_per_second,
        }

    def hold(self, tokens: int = 0) -> Held:
        """A place to wait for, and to keep for as long as an ``async with`` block runs.

        Args:
            tokens: what the call will take, by estimate; correct it with `Held.spent`. One
                that is larger than a second's worth waits for a full second's.
        """
        return Held(self, self._door(), tokens)

    def _door(self) -> _Door:
        loop = asyncio.get_running_loop()
        door = self._doors.get(loop)
        if door is None:
            door = self._doors[loop] = _Door(
                asyncio.Semaphore(self.concurrency),
                # One start per interval paces fractional rates too.
                Throttler(1, period=1 / self.rate) if self.rate else None,
                _Bucket(self.tokens_per_second) if self.tokens_per_second else None,
                _Pace(loop),
            )
        return door


class _Pace:
    """Lets a few calls start in each turn of an event loop, in order of arrival.

    Starting a call takes a while; hundreds in one turn would hold up everything else.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._left = STARTED_TOGETHER
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_due = False

    async def turn(self) -> None:
        """Wait until it is this call's turn."""
        if self._left:
            self._left -= 1
            self._refill_soon()
            return
        turn = self._loop.create_future()
        self._waiting.append(turn)
        await turn

    def _refill_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._refill)

    def _refill(self) -> None:
        self._is_due, self._left = False, STARTED_TOGETHER
        while self._waiting and self._left:
            turn = self._waiting.popleft()
            if not turn.done():  # nobody waits for it any more
                turn.set_result(None)
                self._left -= 1
        if not self._left:
            self._refill_soon()


class Held:
    """A place inside a gate. (A generator as a context manager would take twice the time.)"""

    def __init__(self, gate: Gate, door: _Door, tokens: int) -> None:
        self._gate, self._door, self._counted = gate, door, tokens  # a gate lasts while it is held

    async def __aenter__(self) -> Held:
        semaphore, throttle, bucket, pace = self._door
        await pace.turn()
        await semaphore.acquire()
        try:
            if bucket is not None:
                await bucket.take(self._counted)
            if throttle is not None:
                await self._start(throttle)
        except BaseException:
            semaphore.release()
            raise
        return self

    async def _start(self, throttle: Throttler) -> None:
        """Last, so that calls which waited for tokens do not start all at once."""
        try:
            await throttle.acquire()
        except BaseException:
            self.spent(0)
            raise

    async def __aexit__(self, *failure: object) -> None:
        self._door.semaphore.release()

    def spent(self, tokens: int) -> None:
        """What the call took, in place of its estimate. May be said again as it grows."""
        if self._door.bucket is not None:
            self._door.bucket.give_back(self._counted - tokens)
        self._counted = tokens


class _Bucket:
    """Fills with ``rate`` tokens per second, holds one second's worth, may go below zero."""

    def __init__(self, rate: float) -> None:
        self.rate = self._level = rate
        self._filled = asyncio.get_running_loop().time()
        self._turn = asyncio.Lock()  # in order of arrival: a large call is not passed for ever
        self._given_back = asyncio.Event()

    async def take(self, tokens: int) -> None:
        """Wait until they fit. More than fit at all are owed, and later calls wait for them."""
        async with self._turn:
            wanted = min(tokens, self.rate)
            while (missing := wanted - self._fill()) > 0:
                self._given_back.clear()
                try:
                    async with asyncio.timeout(missing / self.rate):
                        await self._given_back.wait()
                except TimeoutError:
                    pass
            self._level -= tokens

    def give_back(self, tokens: int) -> None:
        """Tokens that were taken and not needed; fewer than none takes more."""
        self._level = min(self._fill() + tokens, self.rate)
        self._given_back.set()

    def _fill(self) -> float:
        now = asyncio.get_running_loop().time()
        self._level = min(self._level + (now - self._filled) * self.rate, self.rate)
        self._filled = now
        return self._level


class _Door(NamedTuple):
    semaphore: asyncio.Semaphore
    throttle: Throttler | None
    bucket: _Bucket | None
    pace: _Pace


_sharing = threading.Lock()
_shared: WeakValueDictionary[str, Gate] = WeakValueDictionary()


def _server(url: str) -> str:
    """Scheme, host and port of a URL, written in one way."""
    unusable = InvalidOption("url", url, "a URL such as 'http://localhost:8000/v1'")
    try:
        parts = urlsplit(url)
        port = parts.port or PORTS[parts.scheme]
    except (ValueError, KeyError) as error:
        raise unusable from error
    if not parts.hostname:
        raise unusable
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port}"
