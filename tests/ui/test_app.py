"""The routes of the live page: for its own page, on this machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from apr_agents.graph.build import create_parallel_agent
from apr_agents.ui.app import create_app
from apr_agents.ui.desk import Desk
from tests.graph.chat_script import ToolChat

httpx = pytest.importorskip("httpx")

HERE = "http://127.0.0.1:8080"
OWN = {"Origin": HERE}


@pytest.fixture
def desk() -> Desk:
    return Desk(lambda question: create_parallel_agent(ToolChat(script=lambda asked: "A")))


@pytest.fixture
async def client(desk: Desk) -> AsyncIterator[Any]:
    app = create_app(desk, {"strategies": ["adaptive"]})
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url=HERE) as client:
        yield client
    await desk.stop()


async def test_the_page_may_talk_to_its_server_and_be_framed_by_nobody(client: Any) -> None:
    shown = await client.get("/")
    assert shown.status_code == 200
    assert "connect-src 'self'" in shown.text
    assert shown.headers["content-security-policy"] == "frame-ancestors 'none'"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example"])
@pytest.mark.parametrize("path", ["/", "/events"])
async def test_a_name_of_anothers_that_leads_here_is_refused(
    client: Any, host: str, path: str
) -> None:
    assert (await client.get(path, headers={"Host": host})).status_code == 400


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "https://127.0.0.1:8080", "http://127.0.0.1:1"]
)
@pytest.mark.parametrize("path", ["/ask", "/stop"])
async def test_another_page_can_neither_ask_nor_stop(
    client: Any, path: str, origin: str | None
) -> None:
    headers = {} if origin is None else {"Origin": origin}
    refused = await client.post(path, json={"question": "Q"}, headers=headers)
    assert refused.status_code == 403
    assert refused.json() == {"error": "Only this server's own page may do that."}


async def test_the_page_asks_and_hears_the_answer(client: Any, desk: Desk) -> None:
    asked = await client.post("/ask", json={"question": "Q", "threads": "2"}, headers=OWN)
    assert asked.status_code == 204
    messages: list[Any] = []
    async for news in desk.messages():
        messages += news
        if messages[-1]["type"] == "record":
            break
    assert messages[-1]["answer"] == "A"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"question": " "}, "The question is empty."),
        ({"question": "Q", "threads": "many"}, "threads: 'many' is neither 'auto' nor a whole"),
        ({}, "question: Field required."),
        ({"question": "Q", "depth": 3}, "depth: Extra inputs are not permitted."),
        ([], "the question: Input should be"),
    ],
)
async def test_a_mistake_is_one_line(client: Any, body: Any, told: str) -> None:
    refused = await client.post("/ask", json=body, headers=OWN)
    assert 400 <= refused.status_code < 500
    assert refused.json()["error"].startswith(told)
    assert "\n" not in refused.json()["error"]
