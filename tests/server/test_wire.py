"""Requests as bytes: in pieces, one behind the other, slow, broken."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.parser import BytesParser
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from apr_agents.server import guard
from apr_agents.server.serving import bind
from tests.server.harness import NAME, Running, wait_until


class Answer(NamedTuple):
    status: int
    body: Any


class Wire:
    """A connection to a server."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._received = connection.makefile("rb")

    def send(self, *pieces: bytes, pause: float = 0) -> None:
        for piece in pieces:
            self.connection.sendall(piece)
            time.sleep(pause)

    def answer(self) -> Answer:
        """The next answer, which must say how long it is."""
        status = int(self._received.readline().split()[1])
        head = b"".join(iter(self._received.readline, b"\r\n"))
        text = self._received.read(int(BytesParser().parsebytes(head)["content-length"]))
        return Answer(status, json.loads(text) if text.startswith(b"{") else text.decode())

    def is_closed(self) -> bool:
        """Whether the server closes the connection; waits for that."""
        return self._received.read(1) == b""


@contextmanager
def wire(server: Running) -> Iterator[Wire]:
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        yield Wire(connection)


def request(
    body: bytes | dict[str, Any] = b"", *, length: int | None = None, head: str = ""
) -> bytes:
    asked = {"model": NAME, "prompt": "a", "max_tokens": 2} | body if isinstance(body, dict) else {}
    content = json.dumps(asked).encode() if asked else bytes(body)
    count = len(content) if length is None else length
    return (
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {count}\r\n{head}\r\n"
    ).encode() + content


def test_requests_in_one_packet_are_answered_in_their_order(server: Running) -> None:
    with wire(server) as line:
        line.send(request({"n": 1}) + request(b"{") + request({"n": 3}) + request(b"[]"))
        answers = [line.answer() for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 400, 200, 400]
    assert [len(answer.body.get("choices", ())) for answer in answers] == [1, 0, 3, 0]


def test_a_request_may_come_byte_by_byte(server: Running) -> None:
    asked = request({})
    with wire(server) as line:
        line.send(*(asked[i : i + 1] for i in range(len(asked))))
        assert line.answer().status == 200
    with wire(server) as line:
        line.send(asked[:50], asked[50:120], asked[120:-1], asked[-1:], pause=0.05)
        assert line.answer().status == 200


def test_a_body_that_does_not_go_on_is_a_408(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "STALLED", 0.2)
    asked = request({})
    for sent in (asked[:-5], request(length=10**15), request({}, length=10**6)):
        with wire(server) as line:
            line.send(sent)
            answer = line.answer()
            assert (answer.status, answer.body["error"]["code"]) == (408, "request_timeout")
            assert line.is_closed()
    assert wait_until(lambda: server.app.state.gate.inside == 0)


def test_a_long_answer_is_no_body_that_does_not_go_on(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "STALLED", 0.2)
    server.engine.says, server.engine.delay = (lambda prompt: "~" * 40), 0.01
    for stream in (False, True):
        response = server.post(
            "/completions", {"model": NAME, "prompt": "a", "max_tokens": 99, "stream": stream}
        )
        assert response.status_code == 200
        assert response.text.count("~") == 40


@pytest.mark.parametrize(
    "sent",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST /v1/completions HTTP/1.1\r\ncontent-length: -5\r\n\r\n{}",
        b"POST /v1/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_a_400_and_the_end(server: Running, sent: bytes) -> None:
    with wire(server) as line:
        line.send(sent)
        assert line._received.readline().startswith(b"HTTP/1.1 400")
    assert (
        server.post("/completions", {"model": NAME, "prompt": "a", "max_tokens": 1}).status_code
        == 200
    )


def test_nothing_waits_for_the_acknowledgement_of_what_went_before() -> None:
    with (
        bind("127.0.0.1", 0) as listening,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
