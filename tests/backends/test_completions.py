"""The completions backend against a real HTTP server: stops, counts, retries, refusals, lanes."""

from __future__ import annotations

import asyncio
import gc
import importlib
import itertools
import json
import re
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Response
from fastapi import Request as HttpRequest
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from apr_agents import Limits, create_parallel_agent
from apr_agents.backends import BUNDLED, _load, answer, capacity, completions, resolve
from apr_agents.backends.answer import Chunk, Output
from apr_agents.backends.base import Delta, Request
from apr_agents.backends.completions import CompletionsBackend
from apr_agents.backends.refusal import Overflow, Passing, pause_of
from apr_agents.backends.scripted import tokens
from apr_agents.errors import (
    AprError,
    BackendFailed,
    InvalidOption,
    MissingExtra,
    ModelNotReady,
    PromptTooLong,
    UnknownModel,
)

SECRET = "sk-very-secret"
STOPS = ("</Outlines>", "</Thread>")
SOON = 2.0
"""Seconds in which the server must notice that its client is gone."""

Fault = Callable[[dict[str, Any]], Response]


class Server:
    """A small completions server that continues texts as it is told to.

    Attributes:
        continues: from a prompt to what follows it.
        stops: how it ends at a stop: ``"stop_reason"`` and ``"matched_stop"`` leave the stop
            out and tell it, as vLLM and SGLang do; ``"included"`` writes it; ``"silent"``
            leaves it out and tells nothing; ``"ignored"`` goes on.
        usage: when it counts: with ``"each"`` piece, at the ``"end"``, or never (``""``).
        cached: tokens of the prompt that it says it had computed before.
        faults: what it does with its next requests instead.
        pages: what it answers to a GET.
        asked: the requests so far; ``keys`` and ``ports`` belong to them.
        begun: set when it hangs.
        left: set when a client has closed a connection before its answer was over.
    """

    def __init__(self) -> None:
        self.url = ""
        self.begun, self.left = threading.Event(), threading.Event()
        self.reset()

    def reset(self) -> None:
        self.continues: Callable[[str], str] = lambda prompt: "a b c"
        self.stops, self.usage = "stop_reason", "each"
        self.cached: int | None = None
        self.faults: deque[Fault] = deque()
        self.pages: dict[str, Response] = {}
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.ports: list[int] = []
        self.read: list[str] = []
        self.begun.clear()
        self.left.clear()

    async def complete(self, request: HttpRequest) -> Response:
        body = await request.json()
        self.asked.append(body)
        self.keys.append(request.headers.get("authorization"))
        assert request.client is not None
        self.ports.append(request.client.port)
        if self.faults:
            return self.faults.popleft()(body)
        return events(self.answer(body))

    async def page(self, request: HttpRequest) -> Response:
        self.read.append(request.url.path)
        missing = JSONResponse({"detail": "Not Found"}, 404)
        return self.pages.get(request.url.path, missing)

    def answer(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        text = self.continues(body["prompt"])
        asked = [] if self.stops == "ignored" else body.get("stop", [])
        ends = [(text.find(stop) + len(stop), stop) for stop in asked if stop in text]
        end, stop = min(ends, default=(len(text), None))
        generated = tokens(text[:end])
        reason = "stop"
        if len(generated) > body["max_tokens"]:
            generated, reason, stop = generated[: body["max_tokens"]], "length", None
        shown = "".join(generated)
        if stop is not None and self.stops != "included":
            shown = shown.removesuffix(stop)
        pieces = [*tokens(shown), ""]
        told = [self.piece(piece, i) for i, piece in enumerate(pieces, 1)]
        last, at_end = told[-1], reason == "stop" and stop is None
        last["choices"][0]["finish_reason"] = reason
        if self.stops in ("stop_reason", "matched_stop"):
            last["choices"][0][self.stops] = stop
        count: dict[str, Any] = {"prompt_tokens": len(tokens(body["prompt"]))}
        if self.cached is not None:
            count["prompt_tokens_details"] = {"cached_tokens": self.cached}
        count["completion_tokens"] = len(generated) + at_end
        if self.usage == "each":
            for i, event in enumerate(told, 1):
                event["usage"] = count | {"completion_tokens": i}
            last["usage"] = count
        if self.usage:
            told.append({"choices": [], "usage": count})
        return told

    def piece(self, text: str, number: int = 1) -> dict[str, Any]:
        return {"choices": [{"index": 0, "text": text, "finish_reason": None}], "usage": None}

    # --- faults ------------------------------------------------------------------------

    def refuses(self, status: int, body: Any = None, **headers: str) -> Fault:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if isinstance(body, str):
            return lambda _: HTMLResponse(body, status, named)
        return lambda _: JSONResponse(body or {"error": {"message": "no"}}, status, named)

    def writes(self, *lines: str) -> Fault:
        """Sends these events and ends, as if that were all."""
        return lambda _: raw(*lines)

    def breaks(self, *lines: str) -> Fault:
        """Sends these events, then the connection breaks."""

        async def stream() -> AsyncIterator[str]:
            for line in lines:
                yield f"data: {line}\n\n"
            raise ConnectionAbortedError

        return lambda _: StreamingResponse(stream(), media_type="text/event-stream")

    def hangs(self, *lines: str) -> Fault:
        """Sends these events, then nothing until its client leaves."""

        async def stream() -> AsyncIterator[str]:
            try:
                for line in lines:
                    yield f"data: {line}\n\n"
                self.begun.set()
                await asyncio.sleep(60)
            finally:
                self.left.set()

        return lambda _: StreamingResponse(stream(), media_type="text/event-stream")


def raw(*lines: str) -> Response:
    text = "".join(f"data: {line}\n\n" for line in lines)
    return Response(text, media_type="text/event-stream")


def events(told: Sequence[dict[str, Any]]) -> Response:
    async def stream() -> AsyncIterator[str]:
        for event in told:
            yield f"data: {json.dumps(event, ensure_ascii=False)}\n\n"
            await asyncio.sleep(0)
        yield "data: [DONE]\n\n"

    return StreamingResponse(stream(), media_type="text/event-stream")


def a_piece(text: str, **more: Any) -> str:
    return json.dumps({"choices": [{"text": text, "finish_reason": None, **more}]})


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    server, app = Server(), FastAPI()
    app.add_api_route("/v1/completions", server.complete, methods=["POST"])
    app.add_api_route("/{path:path}", server.page, methods=["GET"])
    config = uvicorn.Config(
        app, "127.0.0.1", 0, log_level="critical", lifespan="off", ws="none", http="h11"
    )
    runner = uvicorn.Server(config)
    thread = threading.Thread(target=runner.run, daemon=True)
    thread.start()
    while not runner.started:
        time.sleep(0.01)
    port = runner.servers[0].sockets[0].getsockname()[1]
    server.url = f"http://127.0.0.1:{port}/v1"
    yield server
    runner.should_exit = True
    thread.join(10)


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.delenv("APR_API_KEY", raising=False)
    running.reset()
    return running


Make = Callable[..., CompletionsBackend]


@pytest.fixture
async def make(server: Server) -> AsyncIterator[Make]:
    """A backend of the server, quick to try again."""
    made: list[CompletionsBackend] = []

    def make(model: str | None = "m", url: str = "", **options: Any) -> CompletionsBackend:
        options = {"backoff": 0.001, "read_timeout": 10.0} | options
        made.append(CompletionsBackend(url or server.url, model, **options))
        return made[-1]

    yield make
    for backend in made:
        await backend.aclose()


async def listen(
    backend: CompletionsBackend,
    prompt: str = "one two",
    *,
    max_tokens: int = 100,
    stops: tuple[str, ...] = (),
    key: str = "",
    run: str = "",
) -> list[Delta]:
    request = Request(prompt=prompt, max_tokens=max_tokens, stops=stops, key=key, run=run)
    async with aclosing(backend.stream(request)) as deltas:
        return [delta async for delta in deltas]


def text_of(deltas: Sequence[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def counts_of(deltas: Sequence[Delta]) -> tuple[int, int]:
    """Tokens of the output and of the prompt."""
    return sum(delta.tokens for delta in deltas), sum(delta.prompt_tokens for delta in deltas)


def going_on(prompt: str, text: str) -> Callable[[str], str]:
    """The model that writes ``text`` behind ``prompt``, wherever it is asked to go on."""

    def follows(asked: str) -> str:
        assert (prompt + text).startswith(asked)
        return (prompt + text)[len(asked) :]

    return follows


# --- what arrives ------------------------------------------------------------------


async def test_an_answer_comes_piece_by_piece_and_ends_by_itself(
    server: Server, make: Make
) -> None:
    deltas = await listen(make())

    assert [delta.text for delta in deltas] == ["a", " ", "b", " ", "c", ""]
    assert [delta.tokens for delta in deltas] == [1] * 6
    assert [delta.prompt_tokens for delta in deltas] == [3, 0, 0, 0, 0, 0]
    assert [delta.ended for delta in deltas] == [False] * 5 + [True]
    asked = server.asked[0]
    assert (asked["model"], asked["prompt"], asked["max_tokens"]) == ("m", "one two", 100)
    assert (asked["temperature"], asked["stream"]) == (0, True)


@pytest.mark.parametrize(("usage", "counts"), [("each", (6, 3)), ("end", (6, 3)), ("", (5, 2))])
async def test_tokens_are_counted_by_the_server_or_else_by_pieces(
    server: Server, make: Make, usage: str, counts: tuple[int, int]
) -> None:
    server.usage = usage
    deltas = await listen(make())

    assert counts_of(deltas) == counts
    assert deltas[-1].ended


async def test_a_limit_ends_an_answer_which_then_has_not_ended(server: Server, make: Make) -> None:
    deltas = await listen(make(), max_tokens=3)

    assert text_of(deltas) == "a b"
    assert counts_of(deltas) == (3, 3)
    assert not any(delta.ended for delta in deltas)


@pytest.mark.parametrize("usage", ["each", "end", ""])
@pytest.mark.parametrize("cached", [None, 0, 2])
async def test_what_the_server_had_computed_before_is_told_once(
    server: Server, make: Make, usage: str, cached: int | None
) -> None:
    server.usage, server.cached = usage, cached
    told = [delta.cached_tokens for delta in await listen(make())]
    assert [count for count in told if count is not None] == [
        count for count in [cached] if usage and count is not None
    ]


@pytest.mark.parametrize("usage", ["each", "end", ""])
@pytest.mark.parametrize("style", ["stop_reason", "matched_stop", "included", "silent", "ignored"])
async def test_a_stop_is_the_last_thing_written_whatever_the_server_makes_of_it(
    server: Server, make: Make, style: str, usage: str
) -> None:
    server.stops, server.usage = style, usage
    server.continues = going_on("one two", "a b</Thread> c</Outlines>")
    backend = make()
    for _ in range(2):
        deltas = await listen(backend, stops=STOPS)
        assert text_of(deltas) == "a b</Thread>"
        assert not any(delta.ended for delta in deltas)
        told, prompt = counts_of(deltas)
        # A server that is asked to go on writes its stop twice; a stop left out is estimated.
        assert 4 <= told <= (5 if usage else 6)
        # An answer that is closed early is not counted at its end.
        assert prompt == 3 if usage == "each" else prompt in (2, 3)


@pytest.mark.parametrize("style", ["stop_reason", "matched_stop", "included", "silent", "ignored"])
async def test_the_end_of_a_text_is_told_from_a_stop(
    server: Server, make: Make, style: str
) -> None:
    server.stops, server.continues = style, going_on("one two", "a b")
    backend = make()
    for _ in range(2):
        deltas = await listen(backend, stops=STOPS)
        assert text_of(deltas) == "a b"
        assert [delta.ended for delta in deltas][-1]


async def test_a_server_that_does_not_tell_stops_is_found_out_once(
    server: Server, make: Make
) -> None:
    server.stops, server.continues = "silent", going_on("one two", "a b</Thread>")
    backend = make()
    await listen(backend, stops=STOPS)
    await listen(backend, stops=STOPS)

    assert [asked.get("stop") for asked in server.asked] == [list(STOPS), None, None]
    assert [asked["prompt"] for asked in server.asked] == ["one two", "one twoa b", "one two"]


async def test_an_end_token_told_by_its_number_is_the_end(server: Server, make: Make) -> None:
    server.faults.append(
        server.writes(a_piece("a"), a_piece("", finish_reason="stop", stop_reason=7))
    )

    assert (await listen(make(), stops=STOPS))[-1].ended


@given(
    st.text("abx", max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3),
    st.lists(st.integers(0, 12), max_size=5),
)
def test_a_stop_is_found_wherever_the_text_is_cut(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    request = Request(prompt="", max_tokens=99, stops=tuple(stops))
    output = Output(request, lambda piece: 1, len)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for start, stop in itertools.pairwise(edges):
        output.take(Chunk(text[start:stop]))
        if output.is_over:
            break

    assert output.text == text[: min(ends, default=len(text))]
    assert output.is_over == bool(ends)


async def test_a_server_that_does_not_stream_is_heard_all_the_same(
    server: Server, make: Make
) -> None:
    whole = {"choices": [{"text": "a b", "finish_reason": "stop"}]}
    whole["usage"] = {"prompt_tokens": 3, "completion_tokens": 4}  # type: ignore[assignment]
    server.faults.append(lambda _: JSONResponse(whole))

    assert await listen(make()) == [Delta("a b", 4, 3, ended=True)]


async def test_line_separators_inside_a_piece_break_nothing(server: Server, make: Make) -> None:
    server.continues = lambda prompt: "a\u2028b\x85c\x0cd"

    assert text_of(await listen(make())) == "a\u2028b\x85c\x0cd"


async def test_tags_that_are_special_tokens_are_asked_for(server: Server, make: Make) -> None:
    await listen(make())

    assert server.asked[0]["skip_special_tokens"] is False


async def test_a_temperature_gets_a_seed_that_repeats_with_the_call(
    server: Server, make: Make
) -> None:
    warm = make(temperature=0.7, seed=1)
    for key in ("0/0", "0/1", "0/0"):
        await listen(warm, key=key)
    await listen(make(temperature=0.7, seed=2), key="0/0")
    await listen(make(), key="0/0")
    first, second, again, other, cold = (asked.get("seed") for asked in server.asked)

    assert first == again
    assert len({first, second, other}) == 3
    assert cold is None


async def test_one_connection_serves_one_request_after_the_other(
    server: Server, make: Make
) -> None:
    backend = make()
    await listen(backend)
    await listen(backend, stops=("b",))
    await listen(backend, max_tokens=2)

    assert len(set(server.ports)) == 1


# --- closing -----------------------------------------------------------------------


async def gone(server: Server) -> bool:
    return await asyncio.to_thread(server.left.wait, SOON)


async def test_closing_a_stream_ends_the_request_at_the_server(server: Server, make: Make) -> None:
    server.faults.append(server.hangs(a_piece("a")))
    request = Request(prompt="", max_tokens=9)
    async with aclosing(make().stream(request)) as deltas:
        assert (await anext(deltas)).text == "a"
        assert not server.left.is_set()

    assert await gone(server)


async def test_cancelling_a_request_ends_it_at_the_server(server: Server, make: Make) -> None:
    server.faults.append(server.hangs())
    asking = asyncio.create_task(listen(make()))
    assert await asyncio.to_thread(server.begun.wait, SOON)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking

    assert await gone(server)


async def test_a_stop_ends_the_request_of_a_server_that_goes_on(server: Server, make: Make) -> None:
    server.faults.append(server.hangs(a_piece("a</Thread>"), a_piece(" b")))

    assert text_of(await listen(make(), stops=STOPS)) == "a</Thread>"
    assert await gone(server)


async def test_an_answer_that_is_complete_does_not_wait_for_its_count(
    server: Server, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer, "LINGER", 0.1)
    server.faults.append(server.hangs(a_piece("a"), a_piece("", finish_reason="stop")))

    assert (await listen(make()))[-1].ended
    server.faults.append(server.breaks(a_piece("", finish_reason="stop")))
    assert (await listen(make()))[-1].ended
    assert len(server.asked) == 2


def test_every_event_loop_has_connections_of_its_own_and_leaves_none(server: Server) -> None:
    backend = CompletionsBackend(server.url, "m")
    for _ in range(2):
        assert text_of(asyncio.run(listen(backend))) == "a b c"
        assert not backend._lines
    gc.collect()  # an open connection would be a warning, and so an error

    assert len(set(server.ports)) == 2


async def test_a_closed_backend_may_be_used_again(server: Server, make: Make) -> None:
    backend = make()
    for _ in range(2):
        await listen(backend)
        await backend.aclose()
        assert not backend._lines


async def test_closing_reaches_the_connections_of_other_loops(server: Server, make: Make) -> None:
    backend, loop = make(), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(listen(backend), loop))
        assert loop in backend._lines
        await backend.aclose()
        assert not backend._lines
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


# --- trying again ------------------------------------------------------------------


async def test_a_busy_server_is_asked_again_when_it_says(server: Server, make: Make) -> None:
    server.faults.append(server.refuses(429, retry_after="0.3"))
    started = time.monotonic()

    assert text_of(await listen(make())) == "a b c"
    assert time.monotonic() - started >= 0.3


async def test_failures_before_the_first_piece_are_tried_again(server: Server, make: Make) -> None:
    for fault in (
        server.refuses(503),
        server.breaks(),
        server.writes(),
        server.writes('{"error": {"message": "overloaded", "code": 503}}'),
    ):
        server.faults.extend([fault, fault])
        assert text_of(await listen(make())) == "a b c"
    assert len(server.asked) == 4 * 3


async def test_pauses_grow_and_are_not_all_the_same(
    server: Server, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused: list[float] = []

    async def sleep(seconds: float) -> None:
        paused.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    backend = make(backoff=1.0)
    for failures in (0, 1, 2, 9):
        backend.retries = 10
        await backend._pause(failures, Passing("busy"))

    for pause, longest in zip(paused, (1, 2, 4, 60), strict=True):
        assert longest / 2 <= pause <= longest


async def test_tokens_that_arrived_are_never_asked_for_again(server: Server, make: Make) -> None:
    heard = []
    for fault in (
        server.breaks(a_piece("a")),
        server.writes(a_piece("a")),
        server.writes(a_piece("a"), "[DONE]"),
        server.writes(a_piece("a"), '{"error": {"message": "out of memory"}}'),
    ):
        server.faults.append(fault)
        deltas = make().stream(Request(prompt="", max_tokens=9))
        heard.append((await anext(deltas)).text)
        with pytest.raises(BackendFailed, match="Part of the answer had arrived"):
            await anext(deltas)

    assert heard == ["a"] * 4
    assert len(server.asked) == 4


@contextmanager
def resetting() -> Iterator[str]:
    """The URL of a server that resets every connection as soon as a request is there."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.recv(100)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


async def test_a_server_that_resets_every_connection_is_given_up(make: Make) -> None:
    with resetting() as url, pytest.raises(BackendFailed, match="tried 3 times"):
        await listen(make(url=url, retries=2))


async def test_a_server_that_is_not_there_is_said_to_be(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    for model in ("m", None):
        with pytest.raises(BackendFailed, match=r"cannot connect to .*: start the server"):
            await listen(make(model, url, retries=1))


async def test_a_server_that_hangs_is_given_up_at_once(server: Server, make: Make) -> None:
    server.faults.append(server.hangs())
    with pytest.raises(BackendFailed, match=r"sent nothing for 0\.5 s.*read_timeout"):
        await listen(make(read_timeout=0.5))

    assert len(server.asked) == 1
    assert await gone(server)


async def test_a_wait_that_is_too_long_is_not_waited_for(server: Server, make: Make) -> None:
    server.faults.append(server.refuses(429, retry_after="3600"))
    with pytest.raises(BackendFailed, match="It wants 3600 s until the next request"):
        await listen(make())


def test_a_wait_may_be_given_in_seconds_or_as_a_date() -> None:
    then = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert pause_of({"retry-after": "1.5"}) == 1.5
    assert pause_of({"retry-after": "-3"}) == 0
    assert 25 < (pause_of({"retry-after": then}) or 0) <= 30
    for nothing in ({}, {"retry-after": "soon"}, {"retry-after": "nan"}):
        assert pause_of(nothing) is None


# --- refusals ----------------------------------------------------------------------

REFUSED: list[tuple[int, Any, type[AprError], str]] = [
    (401, {"error": {"message": f"no such key: {SECRET}"}}, ModelNotReady, "APR_API_KEY"),
    (403, {"detail": "forbidden"}, ModelNotReady, "refuses the API key .403."),
    (404, {"detail": "Not Found"}, UnknownModel, "usually ends in /v1"),
    (404, "<html>404: no model here</html>", UnknownModel, "usually ends in /v1"),
    (404, {"message": "The model `m` does not exist."}, UnknownModel, "has only 'x', 'org/y'"),
    (400, {"error": {"message": f"odd {SECRET} prompt"}}, BackendFailed, "odd … prompt"),
    (400, {"error": "two\nlines " + "x" * 999}, BackendFailed, "two lines xxx"),
    (418, "a <b>teapot</b>", BackendFailed, "refuses the request .418."),
    (500, {"error": {"message": "boom"}}, BackendFailed, "500: boom.*log; tried 2 times"),
    (502, "<html>bad gateway</html>", BackendFailed, "502: .a web page."),
    (429, {"error": {"message": "quota"}}, BackendFailed, "429: quota.*tried 2 times"),
    (200, "<html>hello</html>", BackendFailed, "a web page where events were expected"),
]


@pytest.mark.parametrize(("status", "body", "error", "says"), REFUSED)
async def test_a_refusal_is_one_line_that_says_what_to_do(
    server: Server, make: Make, status: int, body: Any, error: type[AprError], says: str
) -> None:
    server.pages["/v1/models"] = JSONResponse({"data": [{"id": "x"}, {"id": "org/y"}]})
    server.faults.extend([server.refuses(status, body)] * 2)
    with pytest.raises(error, match=says) as caught:
        await listen(make(retries=1, api_key=SECRET))

    assert server.url in str(caught.value)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "line",
    ["{", '"text"', "[]", "{}", '{"choices": [{"delta": {}}]}', '{"choices": [{"text": 5}]}'],
)
async def test_what_is_no_event_of_a_completion_is_said_to_be_none(
    server: Server, make: Make, line: str
) -> None:
    server.faults.append(server.writes(line))
    with pytest.raises(BackendFailed, match=r"none of a completion.*Check that"):
        await listen(make())


async def test_an_answer_that_the_server_gives_up_has_failed(server: Server, make: Make) -> None:
    server.faults.append(server.writes(a_piece("a"), a_piece("", finish_reason="abort")))
    with pytest.raises(BackendFailed, match="gave the answer up: 'abort'"):
        await listen(make())


async def test_a_server_that_has_moved_is_not_followed(server: Server, make: Make) -> None:
    server.faults.append(server.refuses(308, location="http://127.0.0.1:9/v1/completions?x=1"))
    with pytest.raises(BackendFailed, match=r"has moved: use http://127\.0\.0\.1:9/v1/comp"):
        await listen(make(api_key=SECRET))


@pytest.mark.parametrize(
    "name", ["continuous_usage_stats", "stream_options", "seed", "stop", "user"]
)
async def test_a_parameter_that_a_server_does_not_know_is_left_out(
    server: Server, make: Make, name: str
) -> None:
    def strict(body: dict[str, Any]) -> Response:
        if f'"{name}"' in json.dumps(body):
            said = {"message": f"Unrecognized request argument: '{name}'", "param": name}
            return JSONResponse({"error": said}, 400)
        return events(server.answer(body))

    server.faults.extend([strict] * 9)
    backend = make(temperature=1.0)
    asking = {"stops": ("b",), "run": "r"}
    several = await asyncio.gather(*(listen(backend, **asking) for _ in range(3)))
    alone = await listen(backend, **asking)

    assert [text_of(deltas) for deltas in (*several, alone)] == ["a b"] * 4
    assert len(server.asked) == 2 * 3 + 1
    assert ("stream_options" in server.asked[-1]) == (name != "stream_options")


OVERFLOWS = [
    (
        "This model's maximum context length is 4097 tokens, however you requested 5000 tokens "
        "(4500 in your prompt; 500 for the completion). Please reduce your prompt.",
        (4500, 4097),
    ),
    (
        "This model's maximum context length is 32768 tokens. However, your request has 40000 "
        "input tokens. Please reduce the length of the input messages.",
        (40000, 32768),
    ),
    (
        "'max_tokens' or 'max_completion_tokens' is too large: 500. This model's maximum context "
        "length is 128 tokens and your request has 130 input tokens (500 > 128 - 130).",
        (130, 128),
    ),
    (
        "You passed 410 input tokens and requested 10 output tokens. However, the model's context "
        "length is only 48 tokens, resulting in a maximum input length of 38 tokens.",
        (410, 48),
    ),
    (
        "The input (400013 tokens) is longer than the model's context length (262144 tokens).",
        (400013, 262144),
    ),
    (
        "Requested token count exceeds the model's maximum context length of 4096 tokens. You "
        "requested a total of 5000 tokens: 4500 tokens from the input messages and 500 tokens.",
        (4500, 4096),
    ),
    (
        "request (9,412 tokens) exceeds the available context size (8,192 tokens), try more",
        (9412, 8192),
    ),
    ("Input length (265330) exceeds model's maximum context length (262144).", (265330, 262144)),
    ("The prompt is longer than the maximum model length of 100.", (None, 100)),
    ("the request exceeds the available context size, try increasing it", (None, None)),
]


@pytest.mark.parametrize(("said", "numbers"), OVERFLOWS)
async def test_a_prompt_beyond_the_context_is_refused_with_the_figures_that_are_told(
    server: Server, make: Make, said: str, numbers: tuple[int | None, int | None]
) -> None:
    server.faults.append(server.refuses(400, {"error": {"message": said}}))
    backend = make()
    with pytest.raises(PromptTooLong, match="Shorten the question") as caught:
        await listen(backend)

    assert (caught.value.tokens, caught.value.limit) == numbers
    assert backend.context_length == numbers[1]
    assert "None" not in str(caught.value)


async def test_figures_may_come_as_data(server: Server, make: Make) -> None:
    said = {"type": "exceed_context_size_error", "n_prompt_tokens": 90, "n_ctx": 64}
    server.faults.append(server.refuses(400, {"error": said | {"message": "too long"}}))
    with pytest.raises(PromptTooLong) as caught:
        await listen(make())

    assert (caught.value.tokens, caught.value.limit) == (90, 64)


async def test_a_prompt_that_fits_gets_what_room_there_is(server: Server, make: Make) -> None:
    """vLLM and SGLang refuse a prompt that fits when prompt and limit together do not."""

    def refuses(said: str) -> Callable[[dict[str, Any]], Response]:
        def reply(body: dict[str, Any]) -> Response:
            if 60 + body["max_tokens"] > 64:
                return JSONResponse({"message": said.format(64 - body["max_tokens"] + 1)}, 400)
            return events(server.answer(body))

        return reply

    exact = "maximum context length is 64 tokens and your request has 60 input tokens"
    vague = "maximum context length is 64 tokens but it has at least {} input tokens"
    for said, asked in ((exact, [50, 4]), (vague, [50, 25, 12, 6, 3])):
        server.reset()
        server.faults.extend([refuses(said)] * 9)
        backend = make()
        await listen(backend, max_tokens=50)
        assert [each["max_tokens"] for each in server.asked] == asked
        assert backend.context_length == 64


@given(st.text())
def test_whatever_a_refusal_says_it_can_be_read(text: str) -> None:
    said = f"context length {text}"
    assert Overflow.of(said, 10) is not None


# --- the server and its name -------------------------------------------------------


async def test_without_a_name_the_first_model_is_taken(server: Server, make: Make) -> None:
    models = [{"id": "org/first", "max_model_len": 512}, {"id": "second"}]
    server.pages["/v1/models"] = JSONResponse({"data": models})
    backend = make(None)
    assert backend.name == f"completions:{server.url}"
    await listen(backend)
    await listen(backend)

    assert [asked["model"] for asked in server.asked] == ["org/first"] * 2
    assert server.read == ["/v1/models"]
    assert backend.name == f"completions:{server.url}#org/first"
    assert backend.context_length == 512


@pytest.mark.parametrize(
    ("page", "error", "says"),
    [
        (JSONResponse({"data": []}), BackendFailed, "names no model.*'completions:URL#MODEL'"),
        (HTMLResponse("<html>"), BackendFailed, "names no model"),
        (JSONResponse({}, 404), UnknownModel, "A URL usually ends in /v1"),
        (JSONResponse({}, 401), ModelNotReady, "wants an API key .401.; set APR_API_KEY"),
        (JSONResponse({}, 500), BackendFailed, "tried 2 times"),
    ],
)
async def test_a_server_without_models_needs_a_name(
    server: Server, make: Make, page: Response, error: type[AprError], says: str
) -> None:
    server.pages["/v1/models"] = page
    with pytest.raises(error, match=says):
        await listen(make(None, retries=1))


def test_a_model_string_names_server_and_model() -> None:
    for string, url, model in (
        ("completions:http://127.0.0.1:8000/v1#org/m", "http://127.0.0.1:8000/v1", "org/m"),
        ("completions:https://host:1/a/v1/#m", "https://host:1/a/v1", "m"),
        ("completions:http://host", "http://host/v1", None),
        ("completions:http://[::1]:8000", "http://[::1]:8000/v1", None),
    ):
        backend = resolve(string)
        assert isinstance(backend, CompletionsBackend)
        assert (backend.url, backend.model) == (url, model)
        assert resolve(string) is backend
    _load.cache_clear()


@pytest.mark.parametrize(
    "url",
    ["", "host:8000/v1", "ftp://host/v1", "http://", "http://host:x/v1", "http://host/v1?k=v"],
)
def test_what_is_no_url_leads_to_no_model(url: str) -> None:
    with pytest.raises(UnknownModel, match="completions:URL#MODEL"):
        resolve(f"completions:{url}")


def test_a_password_in_a_url_is_never_shown() -> None:
    backend = CompletionsBackend("http://me:s3cret@host/v1", "m")
    with pytest.raises(UnknownModel) as caught:
        CompletionsBackend("ftp://me:s3cret@host/v1?key=s3cret", "m")

    for shown in (repr(backend), str(backend), backend.name, backend.url, str(caught.value)):
        assert "s3cret" not in shown
        assert "host/v1#m" in shown or shown == "http://host/v1"


async def test_the_key_comes_from_the_argument_or_the_environment(
    server: Server, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    await listen(make())
    monkeypatch.setenv("APR_API_KEY", f" {SECRET}\n")
    await listen(make())
    await listen(make(api_key="other"))

    assert server.keys == [None, f"Bearer {SECRET}", "Bearer other"]


def test_a_key_is_never_shown() -> None:
    backend = CompletionsBackend("http://host/v1", "m", api_key=SECRET)
    assert SECRET not in f"{backend!r} {vars(backend)}"
    for unusable in ("a\nb", "ключ"):
        with pytest.raises(InvalidOption) as caught:
            CompletionsBackend("http://host/v1", "m", api_key=unusable)
        assert unusable not in str(caught.value)


@pytest.mark.parametrize(
    "option", ["temperature", "retries", "backoff", "connect_timeout", "read_timeout", "lanes"]
)
def test_options_out_of_range_are_refused(option: str) -> None:
    with pytest.raises(InvalidOption, match=option):
        CompletionsBackend("http://host/v1", "m", **{option: -1})


def test_without_its_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("httpx", "httpx_sse", "prometheus_client.parser"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, package, None)
            for module in (completions, answer, capacity):
                without.delitem(sys.modules, module.__name__)
            with pytest.raises(MissingExtra, match=r"apr-agents\[http\]"):
                importlib.import_module(completions.__name__)


# --- texts -------------------------------------------------------------------------


def backend_with(**options: Any) -> CompletionsBackend:
    return CompletionsBackend("http://host/v1", "m", **options)


def test_messages_are_joined_by_lines_and_cannot_hold_control_tokens() -> None:
    messages = [SystemMessage("be"), HumanMessage("a <|im_end|> b</s>"), AIMessage("<s> c < d |>")]
    assert backend_with().render(messages) == "be\na < |im_end|> b< /s>\n< s> c < d |>"


def test_a_function_may_be_the_template() -> None:
    backend = backend_with(template=lambda messages: "|".join(m.text for m in messages))
    assert backend.render([HumanMessage("a<|x|>"), AIMessage("b")]) == "a< |x|>|b"


def test_without_a_tokenizer_tokens_are_about_four_characters() -> None:
    backend = backend_with()
    assert backend.count("12345") == 2
    assert backend.tail("123456789", 2) == "23456789"


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that begins every text with a token of its own, with a chat template."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    tokenizer.add_special_tokens({"bos_token": "<begin>"})
    begin = ("<begin>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<begin> $A", special_tokens=[begin]
    )
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}>"
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


def test_a_tokenizer_gives_its_template_its_counts_and_its_control_tokens(
    tokenizer_folder: Path,
) -> None:
    backend = backend_with(template=str(tokenizer_folder))
    messages = [HumanMessage("1+2<begin><|x|>"), AIMessage("3")]

    assert backend.render(messages) == "<begin>[user]1+2< begin><|x|>[assistant]3>"
    assert backend.count("1+2") == 3
    assert backend.tail("1+2", 2) == "+2"
    assert backend.tail("1+2", 0) == ""
    assert backend.tail("1+2", 9) == "1+2"


async def test_a_tokenizer_counts_what_the_server_does_not(
    server: Server, make: Make, tokenizer_folder: Path
) -> None:
    server.usage, server.continues = "", lambda prompt: "123+45"
    deltas = await listen(make(template=str(tokenizer_folder)), "1+2")

    assert counts_of(deltas) == (6, 3)


async def test_a_token_that_the_server_puts_in_front_itself_is_not_sent(
    server: Server, make: Make, tokenizer_folder: Path
) -> None:
    backend = make(template=str(tokenizer_folder))
    await listen(backend, backend.render([HumanMessage("1+2")]))

    assert server.asked[-1]["prompt"] == "[user]1+2>"


def test_what_is_no_tokenizer_is_no_template(tmp_path: Path) -> None:
    for template in (str(tmp_path / "missing"), str(tmp_path)):
        with pytest.raises(InvalidOption, match="a tokenizer's directory or hub id"):
            backend_with(template=template)


# --- capacity ----------------------------------------------------------------------

VLLM = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="m"}} 3.0
vllm:num_requests_running{{engine="1",model_name="m"}} 2.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0",model_name="m"}} {waiting}
vllm:num_requests_waiting_by_reason{{engine="0",reason="capacity"}} 99.0
vllm:kv_cache_usage_perc{{engine="0"}} 0.5
"""
SGLANG = """sglang:num_running_reqs{tp_rank="0",model_name="m"} 5.0
sglang:num_running_reqs{tp_rank="1",model_name="m"} 5.0
sglang:num_queue_reqs{tp_rank="0",model_name="m"} 0.0
"""
LLAMA = "llamacpp:requests_processing 1\nllamacpp:requests_deferred {deferred}\n"
STATES = {"internal_states": [{"effective_max_running_requests_per_dp": 4}] * 2}
SLOTS = [{"id": 0, "is_processing": True}, {"id": 1, "is_processing": False}]

CAPACITIES: list[tuple[dict[str, Any], int | None, int | None]] = [
    ({"/metrics": VLLM.format(waiting=0)}, 16, 11),
    ({"/metrics": VLLM.format(waiting=0)}, 4, 0),
    ({"/metrics": VLLM.format(waiting=0)}, None, None),
    ({"/metrics": VLLM.format(waiting=1)}, None, 0),
    ({"/metrics": SGLANG, "/get_server_info": STATES}, None, 3),
    ({"/metrics": SGLANG, "/server_info": STATES}, None, 3),
    ({"/metrics": SGLANG, "/server_info": {"internal_states": [{}]}}, None, None),
    ({"/metrics": SGLANG}, 6, 1),
    ({"/metrics": LLAMA.format(deferred=0), "/props": {"total_slots": 4}}, None, 3),
    ({"/metrics": LLAMA.format(deferred=2), "/props": {"total_slots": 4}}, None, 0),
    ({"/metrics": LLAMA.format(deferred=0), "/props": []}, None, None),
    ({"/slots": SLOTS}, None, 1),
    ({"/slots": {"error": "off"}}, None, None),
    ({"/metrics": "# TYPE apr:free_lanes gauge\napr:free_lanes 7\n"}, None, 7),
    ({"/metrics": "apr:free_lanes NaN\n"}, None, None),
    ({"/metrics": 'apr:free_lanes{a="1 2\n'}, None, None),
    ({"/metrics": "process_cpu_seconds_total 5\n"}, 16, None),
    ({}, 16, None),
]


@pytest.mark.parametrize(("pages", "lanes", "free"), CAPACITIES)
async def test_free_lanes_are_read_from_what_servers_publish(
    server: Server, make: Make, pages: dict[str, Any], lanes: int | None, free: int | None
) -> None:
    for path, page in pages.items():
        server.pages[path] = (
            PlainTextResponse(page) if isinstance(page, str) else JSONResponse(page)
        )

    assert await make(lanes=lanes).free_lanes() == free


async def test_free_lanes_are_read_once_a_second(
    server: Server, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.pages["/metrics"] = PlainTextResponse("apr:free_lanes 7\n")
    backend = make()
    assert await asyncio.gather(*(backend.free_lanes() for _ in range(5))) == [7] * 5
    assert server.read == ["/metrics"]

    server.pages["/metrics"] = PlainTextResponse("apr:free_lanes 2\n")
    assert await backend.free_lanes() == 7
    monkeypatch.setattr(capacity, "AGE", 0.0)
    assert await backend.free_lanes() == 2


async def test_a_server_that_breaks_or_hangs_tells_no_free_lanes(
    server: Server, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with resetting() as url:
        assert await make(url=url).free_lanes() is None
    monkeypatch.setattr(capacity, "TIMEOUT", 0.5)
    server.pages["/metrics"] = server.hangs()({})
    assert await make().free_lanes() is None
    assert await gone(server)


@given(
    st.lists(st.text() | st.sampled_from(capacity.GAUGES).map(lambda name: name + "{"))
    | st.lists(st.builds("{}{}".format, st.sampled_from(capacity.GAUGES), st.text()))
)
def test_whatever_a_page_of_metrics_holds_it_can_be_read(lines: list[str]) -> None:
    assert all(isinstance(value, int) for value in capacity.gauges("\n".join(lines)).values())


# --- a whole run -------------------------------------------------------------------


def threaded(outlines: Callable[..., str]) -> Callable[[str], str]:
    """A model that spawns three threads, and goes on with a text wherever it is cut."""

    def says(prompt: str) -> str | None:
        if prompt.endswith("<think>\n"):
            return "Three parts.\n" + outlines("one", "two", "three") + " never read"
        if number := re.search(r"<Thread>\n(\d):$", prompt):
            return f" part\n<Conclusion>{number[1]}</Conclusion></Thread> never read"
        return "\n</Parallel>\n</think>6" if prompt.endswith("</Thread>") else None

    def continues(prompt: str) -> str:
        for end in range(len(prompt), 0, -1):
            said = says(prompt[:end])
            if said is not None and (prompt[:end] + said).startswith(prompt):
                return (prompt[:end] + said)[len(prompt) :]
        raise AssertionError(prompt)

    return continues


@pytest.mark.parametrize("style", ["stop_reason", "included", "silent", "ignored"])
async def test_an_agent_thinks_in_parallel_on_a_completions_server(
    server: Server,
    make: Make,
    outlines: Callable[..., str],
    ask: Callable[..., Awaitable[Any]],
    style: str,
) -> None:
    server.stops, server.continues = style, threaded(outlines)
    agent = create_parallel_agent(make(), limits=Limits(max_depth=1))
    trajectory = await ask(agent, "What is 1+2+3? </Outlines>")

    assert trajectory.answer == "6"
    assert trajectory.model == f"completions:{server.url}#m"
    block = next(step for step in trajectory.root.steps if step.kind == "block")
    assert [thread.status for thread in block.threads] == ["done"] * 3
    assert [thread.conclusion for thread in block.threads] == ["1", "2", "3"]
    assert trajectory.root.tokens > 20
    # Contexts only grow at their end, so that a server's prefix cache hits.
    assert all(asked["prompt"].startswith(server.asked[0]["prompt"]) for asked in server.asked)


async def test_a_thread_whose_request_fails_costs_no_other_its_result(
    server: Server,
    make: Make,
    outlines: Callable[..., str],
    ask: Callable[..., Awaitable[Any]],
) -> None:
    writes = threaded(outlines)

    def faulty(body: dict[str, Any]) -> Response:
        if body["prompt"].endswith("<Thread>\n2:"):
            return server.refuses(500, {"error": {"message": "boom"}})(body)
        return events(server.answer(body))

    server.continues = writes
    server.faults.extend([faulty] * 9)
    trajectory = await ask(create_parallel_agent(make(retries=1), limits=Limits(max_depth=1)))

    block = next(step for step in trajectory.root.steps if step.kind == "block")
    assert [thread.status for thread in block.threads] == ["done", "failed", "done"]
    assert "boom" in block.threads[1].reason
    assert trajectory.answer == "6"


def test_a_sync_call_works_as_well(server: Server, outlines: Callable[..., str]) -> None:
    server.continues = threaded(outlines)
    backend = CompletionsBackend(server.url, "m")
    agent = create_parallel_agent(backend, limits=Limits(max_depth=1))
    for _ in range(2):
        output = agent.invoke({"messages": [("user", "Q")]})
        assert output["messages"][-1].text == "6"
    asyncio.run(backend.aclose())
