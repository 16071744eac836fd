"""Servers, on a small random model whose tokens are bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from apr_agents.engine.engine import EngineOptions
from tests.server.harness import Running, Scripted, byte_tokenizer, random_model, running


@pytest.fixture(scope="session")
def make_engine() -> Callable[..., Scripted]:
    """An engine over the same random model each time."""

    def make(**options: int) -> Scripted:
        model = random_model(byte_tokenizer())
        return Scripted(model, EngineOptions(cache_tokens=4096, **options))

    return make


@pytest.fixture(scope="session")
def session_server(make_engine: Callable[..., Scripted]) -> Iterator[Running]:
    with running(make_engine()) as server:
        yield server


@pytest.fixture
def server(session_server: Running) -> Running:
    """The server that most tests share; nothing is left over from the test before."""
    assert session_server.becomes_idle()
    session_server.engine.reset()
    return session_server
