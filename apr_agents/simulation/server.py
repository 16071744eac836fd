"""A model server that takes virtual time: lanes, a queue before them, prefill and decode rates.

Knows prompts, replies and tokens; never what they mean. Tokens are those of the scripted backend.
"""

from __future__ import annotations

import asyncio
import heapq
from bisect import bisect, insort
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from itertools import accumulate, count

from langchain_core.messages import AnyMessage

from apr_agents.backends.base import Backend, Delta, Request
from apr_agents.backends.scripted import tokens as tokens_of
from apr_agents.simulation.scenario import Hardware

PIECES = 8
"""A reply comes in so many pieces; a call that is cancelled has generated whole ones."""


class SimulatedServer(Backend):
    """Replies when its hardware is that far.

    Args:
        reply: from a request and the tokens of its prompt to all that is written.

    Attributes:
        queued: seconds that each call has waited for a lane.
        busy: seconds that lanes were taken, all together.
        prompt_tokens: of all calls.
        prefilled: how many of these were computed.
    """

    name = "simulated"

    def __init__(self, hardware: Hardware, reply: Callable[[Request, int], str]) -> None:
        self.hardware, self.reply = hardware, reply
        self.queued: list[float] = []
        self.busy = 0.0
        self.prompt_tokens = self.prefilled = 0
        self._free, self._calls = asyncio.Semaphore(hardware.lanes), 0
        self._batch = _Batch(hardware)
        self._known = _Prefixes()

    def count(self, text: str) -> int:
        return len(tokens_of(text))

    def tail(self, text: str, tokens: int) -> str:
        return "".join(tokens_of(text)[-tokens:]) if tokens > 0 else ""

    def render(self, messages: Sequence[AnyMessage]) -> str:
        return "\n".join(message.text for message in messages)

    async def free_lanes(self) -> int:
        return max(0, self.hardware.lanes - self._calls)

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        loop = asyncio.get_running_loop()
        came = loop.time()
        self._calls += 1
        try:
            async with self._free:
                began = loop.time()
                self.queued.append(began - came)
                try:
                    async with aclosing(self._compute(request)) as deltas:
                        async for delta in deltas:
                            yield delta
                finally:
                    self.busy += loop.time() - began
        finally:
            self._calls -= 1

    async def _compute(self, request: Request) -> AsyncGenerator[Delta, None]:
        prompt_tokens, cached = self._lookup(request.prompt)
        self.prompt_tokens += prompt_tokens
        self.prefilled += prompt_tokens - cached
        await asyncio.sleep((prompt_tokens - cached) / self.hardware.prefill)
        self._known.add(request.prompt)
        whole = tokens_of(self.reply(request, prompt_tokens))
        written = whole[: request.max_tokens]
        size = max(1, -(-len(written) // PIECES))
        done = 0
        try:
            while done < len(written):
                piece = written[done : done + size]
                await self._batch.generate(len(piece))
                done += len(piece)
                yield Delta("".join(piece), len(piece), prompt_tokens, done == len(whole), cached)
                prompt_tokens = cached = 0
        finally:  # a caller closes the stream as soon as it has read enough
            self._known.add(request.prompt + "".join(written[:done]))

    def _lookup(self, prompt: str) -> tuple[int, int]:
        """Tokens of a prompt, and how many of them lie in a prefix that is known."""
        ends = list(accumulate(map(len, tokens_of(prompt))))
        return len(ends), bisect(ends, self._known.longest(prompt))


class _Batch:
    """Lanes that generate at the same time.

    All of them are equally fast. So the tokens that a lane has generated which was never idle
    tell how far every lane is, and the next to be done is the one that started with least to do.
    """

    def __init__(self, hardware: Hardware) -> None:
        self.hardware = hardware
        self._generated = 0.0
        self._at = 0.0
        self._order = count()
        self._lanes: list[tuple[float, int, asyncio.Future[None]]] = []
        self._timer: asyncio.TimerHandle | None = None

    async def generate(self, tokens: int) -> None:
        """Return when a lane that starts now has generated so many."""
        self._advance()
        done = asyncio.get_running_loop().create_future()
        lane = (self._generated + tokens, next(self._order), done)
        heapq.heappush(self._lanes, lane)
        self._plan()
        try:
            await done
        except asyncio.CancelledError:
            if lane in self._lanes:
                self._advance()
                self._lanes.remove(lane)
                heapq.heapify(self._lanes)
                self._plan()
            raise

    @property
    def _rate(self) -> float:
        others = len(self._lanes) - 1
        return self.hardware.decode / (1 + self.hardware.slowdown * others)

    def _advance(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._lanes:
            self._generated += (now - self._at) * self._rate
        self._at = now

    def _plan(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._lanes:
            left = max(0.0, self._lanes[0][0] - self._generated)
            self._timer = asyncio.get_running_loop().call_later(left / self._rate, self._finish)

    def _finish(self) -> None:
        self._advance()
        self._generated = self._lanes[0][0]  # and not one rounding beside it
        while self._lanes and self._lanes[0][0] <= self._generated:
            _, _, done = heapq.heappop(self._lanes)
            if not done.done():
                done.set_result(None)
        self._plan()


class _Prefixes:
    """The contexts computed so far; none is ever evicted."""

    def __init__(self) -> None:
        self._contexts: list[str] = []

    def add(self, context: str) -> None:
        insort(self._contexts, context)

    def longest(self, prompt: str) -> int:
        """Length of the longest prefix of ``prompt`` that one of them has, too."""
        place = bisect(self._contexts, prompt)
        # In sorted order, those that share most are next to it.
        return max(
            (_shared(prompt, known) for known in self._contexts[max(0, place - 1) : place + 1]),
            default=0,
        )


def _shared(one: str, other: str) -> int:
    """Characters that two texts have in common at their beginning."""
    least, most = 0, min(len(one), len(other))
    while least < most:
        middle = (least + most + 1) // 2
        if one[least:middle] == other[least:middle]:
            least = middle
        else:
            most = middle - 1
    return least
