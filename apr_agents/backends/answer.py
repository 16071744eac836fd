"""The answer of a completions server as it arrives: events in, pieces of text out.

Knows events and texts; never what was asked for, beyond its stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any, NamedTuple

import httpx
from httpx_sse import EventSource

from apr_agents.backends.base import Delta, Request
from apr_agents.errors import AprError

LINGER = 2.0
"""Seconds that a complete answer may take to tell its tokens and to end."""


async def data_of(response: httpx.Response) -> AsyncGenerator[str, None]:
    """The data of each event in a stream of them, up to the one that says it is over."""
    async with aclosing(EventSource(response).aiter_sse()) as events:
        async for event in events:
            if event.data == "[DONE]":
                # Read to the very end, or the connection could not be used again.
                with suppress(TimeoutError, httpx.RequestError):
                    async with asyncio.timeout(LINGER):
                        await anext(events, None)
                return
            if event.data:
                yield event.data


class Chunk(NamedTuple):
    """One event of a stream.

    Attributes:
        text: the next piece, possibly empty.
        reason: the finish reason, with the last piece.
        stop: the stop that ended it, where the server says.
        says_stop: whether the server says such things.
        tokens: of the output so far, where the server says.
        prompt_tokens: of the prompt, where the server says.
        cached_tokens: of these, those that it had computed before, where the server says.
        logprob: of the tokens of this piece together, where the server says.
    """

    text: str
    reason: str | None = None
    stop: str | None = None
    says_stop: bool = False
    tokens: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    logprob: float | None = None

    @classmethod
    def of(cls, event: Any) -> Chunk:
        """Read an event; any of several errors when it is not one of a completion."""
        usage = event.get("usage") or {}
        counts = [usage.get(name) for name in ("completion_tokens", "prompt_tokens")]
        counts.append((usage.get("prompt_tokens_details") or {}).get("cached_tokens"))
        told = [count if type(count) is int else None for count in counts]
        choices = event["choices"]
        if not choices:
            return cls("", None, None, False, *told)
        choice = choices[0]
        text, reason = choice["text"] or "", choice.get("finish_reason")
        if not isinstance(text, str) or not isinstance(reason, str | None):
            raise TypeError("not a text")
        # vLLM and SGLang: the stop as a string; an end token by its number, or nothing.
        said = [choice[name] for name in ("stop_reason", "matched_stop") if name in choice]
        stop = next((one for one in said if isinstance(one, str)), None)
        chunk = cls(text, reason, stop, bool(said), *told)
        return chunk._replace(logprob=_logprob(choice.get("logprobs")))


def _logprob(told: Any) -> float | None:
    """The sum of the log-probabilities in a choice, in either of the forms that servers use."""
    if not told:
        return None
    tokens = told.get("token_logprobs")
    if tokens is None:
        tokens = [token["logprob"] for token in told.get("content") or ()]
    return sum(float(token) for token in tokens if token is not None) if tokens else None


class Output:
    """What one request has generated so far, over one or two answers.

    Attributes:
        tokens: tokens of it.
        reason: the finish reason of the latest answer.
        goes_on: the latest answer ended without telling whether at a stop.
    """

    def __init__(
        self, request: Request, piece_tokens: Callable[[str], int], count: Callable[[str], int]
    ) -> None:
        self._request, self._piece_tokens, self._count = request, piece_tokens, count
        self._texts: list[str] = []
        self._tail = ""
        self._prompt_told = self._cached_told = False
        self._stopped = False
        self.tokens = 0
        self.begin()

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def begin(self) -> None:
        """Expect an answer."""
        self.reason: str | None = None
        self.goes_on = False
        self._stop: str | None = None
        self._says_stop = self._told = False
        self._here = 0
        self._held = Delta("", 0)

    @property
    def is_over(self) -> bool:
        return self._stopped or self.reason is not None

    def take(self, chunk: Chunk) -> Delta | None:
        """The piece to hand on; at the end it is held back for what is still to come."""
        text = self._until_stop(chunk.text)
        self._texts.append(text)
        counted, prompt, cached = self._counted(chunk), self._prompt(chunk), self._cached(chunk)
        delta = Delta(text, counted, prompt, False, cached, chunk.logprob)
        self._end(chunk)
        if self.is_over:
            self._held = delta
        return delta if delta != Delta("", 0) else None

    def add(self, chunk: Chunk) -> bool:
        """Take what follows the end; false when that is text: it was not the end."""
        if chunk.text:
            return False
        cached = self._cached(chunk)
        self._held = self._held._replace(
            tokens=self._held.tokens + self._counted(chunk),
            prompt_tokens=self._held.prompt_tokens + self._prompt(chunk),
            cached_tokens=self._held.cached_tokens if cached is None else cached,
        )
        self._end(chunk)
        return True

    def finish(self, *, stops_sent: bool) -> Delta:
        """The last piece."""
        last, ended = self._held, False
        if not self._stopped and self.reason == "stop":
            if self._stop in self._request.stops:
                stop = self._stop or ""
                more = 0 if self._told else self._spend(self._count(stop))
                last = last._replace(text=last.text + stop, tokens=last.tokens + more)
            elif stops_sent and not self._says_stop:
                self.goes_on = self.tokens < self._request.max_tokens
            else:
                ended = True
        if not self._prompt_told and not self.goes_on:
            self._prompt_told = True
            last = last._replace(prompt_tokens=self._count(self._request.prompt))
        return last._replace(ended=ended)

    def _until_stop(self, text: str) -> str:
        """``text`` up to the end of the first stop that is complete in it."""
        stops = self._request.stops
        near = self._tail + text
        ends = [at + len(stop) for stop in stops if stop and (at := near.find(stop)) >= 0]
        if ends:
            self._stopped = True
            return near[len(self._tail) : min(ends)]
        longest = max(map(len, stops), default=0)
        self._tail = near[len(near) - longest + 1 :] if longest > 1 else ""
        return text

    def _end(self, chunk: Chunk) -> None:
        self.reason = self.reason or chunk.reason
        self._stop = self._stop or chunk.stop
        self._says_stop = self._says_stop or chunk.says_stop

    def _counted(self, chunk: Chunk) -> int:
        if chunk.tokens is not None:
            self._told = True
            return self._spend(max(0, chunk.tokens - self._here))
        return self._spend(self._piece_tokens(chunk.text) if chunk.text else 0)

    def _spend(self, tokens: int) -> int:
        self._here += tokens
        self.tokens += tokens
        return tokens

    def _prompt(self, chunk: Chunk) -> int:
        if self._prompt_told or not chunk.prompt_tokens:
            return 0
        self._prompt_told = True
        return chunk.prompt_tokens

    def _cached(self, chunk: Chunk) -> int | None:
        if self._cached_told or chunk.cached_tokens is None:
            return None
        self._cached_told = True
        return chunk.cached_tokens


async def linger(chunks: AsyncGenerator[Chunk, None], output: Output) -> None:
    """Wait for what follows the end of the text. None of it is needed."""
    with suppress(TimeoutError, AprError):
        async with asyncio.timeout(LINGER):
            async for chunk in chunks:
                if not output.add(chunk):
                    return
