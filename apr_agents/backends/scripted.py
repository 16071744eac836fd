"""A backend that says what it is told to, on a clock that counts tokens.

For exact scheduling and fault cases: time is virtual, every lane generates one token per
tick, and the clock moves only when nothing else in the event loop can.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

from langchain_core.messages import AnyMessage

from apr_agents.backends.base import Backend, Delta, Request

_TOKENS = re.compile(r"</?\w+>|\s+|\w+|[^\w\s]")


@dataclass(frozen=True)
class Reply:
    """What the scripted model does with one request.

    Attributes:
        text: what it writes.
        fails: raised once the text is written.
        hangs: never ends once the text is written.
        logprob: log-probability of all of it, for who asks.
    """

    text: str
    fails: BaseException | None = None
    hangs: bool = False
    logprob: float | None = None


def tokens(text: str) -> list[str]:
    """The scripted model's tokens: tags, words, runs of white space, single other characters."""
    return _TOKENS.findall(text)


class TokenClock:
    """Virtual time in ticks, for one event loop."""

    def __init__(self) -> None:
        self.now = 0
        self._order = itertools.count()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._driver: asyncio.Task[None] | None = None

    async def sleep(self, ticks: int) -> None:
        """Return when ``ticks`` ticks have passed."""
        done = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (self.now + ticks, next(self._order), done))
        if self._driver is None or self._driver.done():
            self._driver = asyncio.ensure_future(self._drive())
        await done

    async def _drive(self) -> None:
        ready = asyncio.get_running_loop()._ready  # type: ignore[attr-defined]
        while self._waiting:
            await asyncio.sleep(0)
            if ready:  # somebody can still act at this instant
                continue
            self.now = self._waiting[0][0]
            while self._waiting and self._waiting[0][0] == self.now:
                _, _, done = heapq.heappop(self._waiting)
                if not done.done():
                    done.set_result(None)


class ScriptedBackend(Backend):
    """Replies as ``script`` says.

    Args:
        script: from a request to what the model does with it.
        clock: virtual time; without one, replies take no time.
        lanes: how many requests generate at once; ``None`` for any number.
        chunk: tokens in one delta.
    """

    name = "scripted"
    tells_logprobs = True

    def __init__(
        self,
        script: Callable[[Request], Reply | str],
        *,
        clock: TokenClock | None = None,
        lanes: int | None = None,
        chunk: int = 1,
    ) -> None:
        self.script, self.clock, self.chunk = script, clock, chunk
        self.lanes = asyncio.Semaphore(lanes) if lanes else None
        self.requests: list[Request] = []
        self.in_flight = self.peak_in_flight = 0

    def render(self, messages: Sequence[AnyMessage]) -> str:
        return "\n".join(message.text for message in messages)

    def count(self, text: str) -> int:
        return len(tokens(text))

    def tail(self, text: str, tokens: int) -> str:
        return "".join(_TOKENS.findall(text)[-tokens:]) if tokens > 0 else ""

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        self.requests.append(request)
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            if self.lanes is not None:
                await self.lanes.acquire()
            try:
                async for delta in self._reply(request):
                    yield delta
            finally:
                if self.lanes is not None:
                    self.lanes.release()
        finally:
            self.in_flight -= 1

    async def _reply(self, request: Request) -> AsyncGenerator[Delta, None]:
        reply = self.script(request)
        reply = Reply(reply) if isinstance(reply, str) else reply
        written = tokens(reply.text)
        prompt_tokens = len(tokens(request.prompt))
        cut = written[: request.max_tokens]
        for start in range(0, len(cut), self.chunk):
            piece = cut[start : start + self.chunk]
            await self._take(len(piece))
            logprob = reply.logprob if request.logprobs and not start else None
            yield Delta("".join(piece), len(piece), prompt_tokens, logprob=logprob)
            prompt_tokens = 0
            if any("".join(cut[: start + len(piece)]).endswith(stop) for stop in request.stops):
                return
        if reply.fails is not None:
            raise reply.fails
        if reply.hangs:
            await asyncio.Event().wait()
        if len(cut) == len(written):
            yield Delta("", 0, prompt_tokens, ended=True)

    async def _take(self, ticks: int) -> None:
        if self.clock is not None:
            await self.clock.sleep(ticks)
        else:
            await asyncio.sleep(0)
