"""The bounds of a server: keys, sizes, places, clients that go away, and its end."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from apr_agents.errors import InvalidOption
from apr_agents.server.app import ServerOptions
from apr_agents.server.serving import bind, is_public
from tests.server.harness import NAME, Running, Scripted, running, wait_until

LONG = {"model": NAME, "prompt": "a", "max_tokens": 1000, "temperature": 0}
SHORT = LONG | {"max_tokens": 2}
KEY = "a secret"


@pytest.fixture(scope="module")
def small(make_engine: Callable[..., Scripted]) -> Iterator[Running]:
    """A server with a key and few places."""
    engine = make_engine(most_running=2)
    with running(engine, api_key=KEY, most_waiting=1, most_body_bytes=2000) as server:
        yield server


@pytest.fixture
def narrow(small: Running) -> Running:
    assert wait_until(lambda: small.app.state.service.taken == 0)
    small.engine.reset()
    return small


def endless(server: Running) -> None:
    """Answers that do not end by themselves, and not too fast."""
    server.engine.says = lambda prompt: "x" * 900
    server.engine.delay = 0.01


# --- keys ------------------------------------------------------------------------------


def test_only_the_key_lets_in(narrow: Running) -> None:
    wrong = [{}, {"authorization": "Bearer no"}, {"authorization": f"Basic {KEY}"}, {"key": KEY}]
    for headers in wrong:
        response = narrow.post("/completions", SHORT, headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
        assert KEY not in response.text
    for path in ("/v1/models", "/openapi.json", "/v1/nothing"):
        assert httpx.get(narrow.url + path).status_code == 401
    for path in ("/health", "/metrics"):
        assert httpx.get(narrow.url + path).status_code == 200
    assert narrow.client.completions.create(**SHORT).choices[0].text
    with (
        openai.OpenAI(base_url=narrow.v1, api_key="no", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_without_a_body_that_is_read_a_wrong_key_is_refused(narrow: Running) -> None:
    response = httpx.post(f"{narrow.v1}/completions", content=b"x" * 1000)
    assert response.status_code == 401


# --- sizes -----------------------------------------------------------------------------


def test_a_body_that_is_too_large_is_a_413_however_it_comes(narrow: Running) -> None:
    body = json.dumps(SHORT | {"prompt": "a" * 3000}).encode()
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}

    def pieces() -> Iterator[bytes]:
        yield body[:100]
        yield body[100:]

    for content in (body, pieces(), b"x" * 100_000):
        response = httpx.post(f"{narrow.v1}/completions", content=content, headers=headers)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "request_too_large"
        assert "2000 bytes" in response.json()["error"]["message"]


# --- places ----------------------------------------------------------------------------


def test_when_all_places_are_taken_the_next_gets_a_429_and_when_to_come_again(
    narrow: Running,
) -> None:
    endless(narrow)
    refused = narrow.metric("apr:requests_refused_total")
    first = narrow.client.completions.create(**LONG, n=3, stream=True)
    assert wait_until(lambda: narrow.engine.load == (2, 1))
    with pytest.raises(openai.RateLimitError) as caught:
        narrow.client.completions.create(**SHORT)
    assert caught.value.response.headers["retry-after"] == "1"
    assert caught.value.code == "rate_limit_exceeded"
    assert narrow.metric("apr:requests_refused_total") == refused + 1
    first.close()
    assert narrow.becomes_idle()
    narrow.engine.reset()
    assert narrow.client.completions.create(**SHORT).choices[0].text


def test_a_client_that_comes_again_gets_its_answer(narrow: Running) -> None:
    endless(narrow)
    first = narrow.client.completions.create(**LONG, n=3, stream=True)
    threading.Timer(0.5, first.close).start()
    client = narrow.client.with_options(max_retries=5)
    assert client.completions.create(**SHORT).choices[0].text


def test_more_answers_than_there_are_places_are_refused_for_good(narrow: Running) -> None:
    for change, param in (({"n": 4}, "prompt"), ({"prompt": ["a"] * 4}, "prompt")):
        with pytest.raises(openai.BadRequestError, match="3 at most") as caught:
            narrow.client.completions.create(**(SHORT | change))
        assert caught.value.param == param


def test_a_request_that_is_refused_takes_no_place(narrow: Running) -> None:
    for _ in range(5):
        with pytest.raises(openai.BadRequestError):
            narrow.client.completions.create(**(SHORT | {"prompt": [9999]}))
    assert narrow.app.state.service.taken == 0


# --- clients that go away --------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_ends_its_request(server: Running, stream: bool) -> None:
    endless(server)
    cancelled = server.metric('apr:answers_total{finish="cancelled"}')
    body = LONG | {"stream": stream, "n": 2}
    async with httpx.AsyncClient() as client:
        asking = asyncio.create_task(client.post(f"{server.v1}/completions", json=body))
        await asyncio.to_thread(wait_until, lambda: server.engine.load == (2, 0))
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    gone = server.engine.statistics.generated
    assert await asyncio.to_thread(server.becomes_idle)
    # Two answers at 10 ms a token each; the news must travel through a socket.
    assert server.engine.statistics.generated - gone < 60
    assert wait_until(lambda: server.app.state.service.taken == 0)
    assert server.metric('apr:answers_total{finish="cancelled"}') == cancelled + 2


def test_a_client_that_goes_away_while_it_waits_frees_its_place(narrow: Running) -> None:
    endless(narrow)
    first = narrow.client.completions.create(**LONG, n=2, stream=True)
    with pytest.raises(openai.APITimeoutError):
        narrow.client.completions.create(**LONG, timeout=0.3)
    assert wait_until(lambda: narrow.app.state.service.taken == 2)
    assert wait_until(lambda: narrow.engine.load == (2, 0))
    first.close()


# --- the end ---------------------------------------------------------------------------


def stream_in_background(server: Running, pieces: list[Any]) -> threading.Thread:
    """Stream an answer; what arrives, and the error if there is one, goes into ``pieces``."""

    def read() -> None:
        try:
            for chunk in server.client.completions.create(**LONG, stream=True):
                pieces.append(chunk.choices[0])
        except openai.APIError as error:
            pieces.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    return thread


def test_a_server_that_stops_lets_running_requests_finish_and_takes_no_new_ones(
    make_engine: Callable[..., Scripted],
) -> None:
    with running(make_engine()) as server:
        server.engine.says = lambda prompt: "x" * 60
        server.engine.delay = 0.01
        pieces: list[Any] = []
        reading = stream_in_background(server, pieces)
        assert wait_until(lambda: len(pieces) > 2)
        server.app.state.gate.close()
        response = server.post("/completions", SHORT)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "shutting_down"
        health = httpx.get(f"{server.url}/health")
        assert (health.status_code, health.json()) == (503, {"status": "stopping"})
        reading.join(30)
        assert "".join(piece.text for piece in pieces) == "x" * 60
        assert pieces[-1].finish_reason == "stop"
        assert wait_until(lambda: not answers(server))


def test_after_the_grace_period_the_rest_is_told_and_ended(
    make_engine: Callable[..., Scripted],
) -> None:
    with running(make_engine(), grace=0.2) as server:
        endless(server)
        pieces: list[Any] = []
        reading = stream_in_background(server, pieces)
        assert wait_until(lambda: len(pieces) > 2)
        began = time.monotonic()
        server.app.state.gate.close()
        reading.join(30)
        assert time.monotonic() - began < 5
        assert isinstance(pieces[-1], openai.APIError)
        assert "shutting down" in str(pieces[-1])
        assert wait_until(lambda: not answers(server))


def answers(server: Running) -> bool:
    try:
        httpx.get(f"{server.url}/health")
    except httpx.TransportError:
        return False
    return True


# --- where to listen -------------------------------------------------------------------


def test_public_is_what_other_machines_may_reach() -> None:
    assert not any(map(is_public, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert all(map(is_public, ("0.0.0.0", "::", "192.168.0.1", "a.example", "")))


def test_a_port_that_is_taken_is_said_to_be() -> None:
    with (
        bind("127.0.0.1", 0) as taken,
        pytest.raises(InvalidOption, match="in use"),
    ):
        bind("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(InvalidOption):
        bind("no.such.host.invalid", 0)


def test_options_that_cannot_be_are_refused() -> None:
    for wrong in ({"api_key": ""}, {"api_key": "ü"}, {"most_waiting": -1}, {"most_body_bytes": 0}):
        with pytest.raises(InvalidOption):
            ServerOptions(**wrong)
