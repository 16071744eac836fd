"""A thousand requests, many of which go wrong in some way: everybody else gets a whole answer."""

from __future__ import annotations

import asyncio
import gc
import json
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

from tests.engine.tiny import assert_nothing_leaks
from tests.server.harness import CONTEXT, NAME, Running, Scripted, running, wait_until

AT_ONCE = 40
MEBIBYTE = 2**20


class Clients:
    """Many clients of one server, by chance of different kinds.

    Attributes:
        ended: how many requests ended in which way.
        started: answers that the server began, as far as their clients know.
        answers: of each request that got one, the prompt, how many tokens, and the texts.
    """

    def __init__(self, server: Running, http: httpx.AsyncClient, seed: int) -> None:
        self.server, self.http, self.chance = server, http, random.Random(seed)
        self.ended: Counter[str] = Counter()
        self.answers: list[tuple[str, int, list[str]]] = []
        # Conversations that grow, so that prompts begin alike.
        self.contexts = [f"{letter} begins." for letter in "abcdefgh"]

    async def ask(self, count: int) -> None:
        """So many requests, some at once."""
        places = asyncio.Semaphore(AT_ONCE)

        async def one() -> None:
            async with places:
                kind = self.chance.choices(
                    [
                        self.whole,
                        self.stream,
                        self.leave,
                        self.vanish,
                        self.break_off,
                        self.ask_for_too_much,
                    ],
                    [30, 40, 12, 8, 5, 5],
                )[0]
                self.ended[await asyncio.wait_for(kind(), 60)] += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(one())

    def body(self, **changed: Any) -> dict[str, Any]:
        place = self.chance.randrange(len(self.contexts))
        context = self.contexts[place] + f" {self.chance.randrange(1000)}"
        self.contexts[place] = context if len(context) < 300 else context[:20]
        tokens, n = self.chance.randrange(1, 12), self.chance.choice([1, 1, 1, 3])
        # Whoever asks greedily gets the same as alone.
        return {
            "model": NAME, "prompt": context, "max_tokens": tokens, "n": n, "temperature": 0,
            "ignore_eos": True, "user": self.chance.choice(["", "u", "v"]),
        } | changed  # fmt: skip

    async def refused(self) -> None:
        """Come again when all places are taken."""
        self.ended["refused"] += 1
        await asyncio.sleep(0.05)

    async def post(self, body: dict[str, Any]) -> httpx.Response:
        while True:
            response = await self.http.post("/completions", json=body)
            if response.status_code != 429:
                return response
            assert response.headers["retry-after"] == "1"
            await self.refused()

    async def whole(self) -> str:
        body = self.body()
        response = await self.post(body)
        data = response.json()
        assert response.status_code == 200, data
        assert data["usage"]["completion_tokens"] == body["n"] * body["max_tokens"]
        assert {choice["finish_reason"] for choice in data["choices"]} == {"length"}
        texts = [choice["text"] for choice in data["choices"]]
        self.answers.append((body["prompt"], body["max_tokens"], texts))
        return "answered"

    async def stream(self, most: int = 10**9) -> str:
        """Hear at most so many chunks."""
        body = self.body(stream=True, stream_options={"include_usage": True})
        texts, finished, last = [""] * body["n"], 0, ""
        while True:
            async with self.http.stream("POST", "/completions", json=body) as response:
                if response.status_code == 429:
                    await self.refused()
                    continue
                assert response.status_code == 200
                async for line in response.aiter_lines():
                    last = line.removeprefix("data: ") or last
                    if not line.startswith("data: {"):
                        continue
                    for choice in json.loads(last)["choices"]:
                        texts[choice["index"]] += choice["text"]
                        finished += choice["finish_reason"] == "length"
                    most -= 1
                    if most < 0:
                        return "left"
                break
        assert (last, finished) == ("[DONE]", body["n"])
        self.answers.append((body["prompt"], body["max_tokens"], texts))
        return "answered"

    async def leave(self) -> str:
        """Close the connection in the middle of an answer, or before its first token."""
        await self.stream(self.chance.randrange(4))
        return "left"

    async def vanish(self) -> str:
        """Give up waiting."""
        asking = asyncio.create_task(self.whole())
        await asyncio.sleep(self.chance.random() / 20)
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking
        return "left"

    async def break_off(self) -> str:
        """Break the connection in the middle of a request."""
        address = urlsplit(self.server.url)
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        body = json.dumps(self.body()).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
        sent = f"{head}content-type: application/json\r\n\r\n".encode() + body
        writer.write(sent[: self.chance.randrange(1, len(sent))])
        await writer.drain()
        writer.transport.abort()
        return "left"

    async def ask_for_too_much(self) -> str:
        body = self.chance.choice(
            [self.body(prompt="x" * 2 * CONTEXT), self.body(max_tokens=CONTEXT), self.body(n=100)]
        )
        response = await self.post(body)
        assert response.status_code == 400
        assert response.json()["error"]["type"] == "invalid_request_error"
        return "too much"


async def test_a_thousand_requests_leave_nothing_behind(
    make_engine: Callable[..., Scripted],
) -> None:
    engine = make_engine(most_running=16, most_tokens=256)
    with running(engine, most_waiting=40) as server:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.v1, timeout=60, limits=limits) as http:
            clients, started = Clients(server, http, seed=5), 0
            footprints = []
            for count in (400, 600):
                await clients.ask(count)
                assert await asyncio.to_thread(server.becomes_idle)
                assert_nothing_leaks(engine)  # which empties the cache
                started += len(engine.asked)
                engine.asked.clear()
                footprints.append(footprint())
        assert wait_until(lambda: server.app.state.gate.inside == 0)
        assert server.app.state.service.taken == 0
        ways = ("stop", "end", "length", "cancelled", "failed")
        told = {way: server.metric(f'apr:answers_total{{finish="{way}"}}') for way in ways}
        assert sum(told.values()) == started
        assert told["failed"] == told["end"] == told["stop"] == 0
        assert told["length"] >= sum(len(texts) for *_, texts in clients.answers)
        for prompt, tokens, texts in random.Random(1).sample(clients.answers, 40):
            ids = engine.tokenizer(prompt)["input_ids"]
            alone, _ = server.in_process(ids=ids, max_tokens=tokens, end_ids=frozenset())
            assert set(texts) == {alone}
    assert clients.ended["answered"] + clients.ended["left"] + clients.ended["too much"] == 1000
    assert min(clients.ended.values()) > 20
    (objects, octets), (more_objects, more_octets) = footprints
    assert more_objects - objects < 4 * 600  # this test itself notes down each answer
    # torch keeps what it compiles for each new shape.
    assert more_octets - octets < 128 * MEBIBYTE


def footprint() -> tuple[int, int]:
    """Objects of Python, and memory of the process."""
    gc.collect()
    return len(gc.get_objects()), psutil.Process().memory_info().rss
