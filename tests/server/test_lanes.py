"""An agent on a server under load plans with fewer threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from apr_agents import Limits, create_parallel_agent
from apr_agents.backends.completions import CompletionsBackend
from tests.server.harness import NAME, Running, Scripted, running, wait_until

ENDLESS = {"model": NAME, "prompt": "endless", "max_tokens": 900, "temperature": 0}
SPLIT = (
    "<Parallel>\n<Outlines>\n<Outline>1: a</Outline>\n<Outline>2: b</Outline>\n"
    "<Outline>3: c</Outline>\n</Outlines>"
)


def says(prompt: str) -> str:
    if prompt == "endless":
        return "x" * 900
    if "Threads: 0" in prompt:
        return "alone\n</think>\n4"
    if "<Thread>" not in prompt:
        return SPLIT
    return " done</Thread>" if prompt.endswith(":") else "\n</Parallel>\n</think>\n4"


@pytest.fixture(scope="module")
def laned(make_engine: Callable[..., Scripted]) -> Iterator[Running]:
    """A server that hardly slows down with six answers at once."""
    with running(make_engine(lanes=6)) as server:
        server.engine.says = says
        yield server


@pytest.mark.parametrize(
    ("load", "budget", "threads"), [(0, 6, 3), (4, 2, 2), (6, 0, 0), (9, 0, 0)]
)
async def test_the_busier_the_server_the_fewer_threads(
    laned: Running, ask: Any, load: int, budget: int, threads: int
) -> None:
    streams = []
    laned.engine.delay = 0.001 if load else 0.0
    if load:
        streams.append(laned.client.completions.create(**ENDLESS, n=load, stream=True))
    assert wait_until(lambda: laned.engine.load == (load, 0))
    laned.engine.asked.clear()
    backend = CompletionsBackend(laned.v1, NAME)
    run = await ask(create_parallel_agent(backend, limits=Limits(max_threads="auto")))
    for stream in streams:
        stream.close()
    await backend.aclose()
    asked = [laned.engine.tokenizer.decode(request.ids) for request in laned.engine.asked]
    assert f"\nThreads: {budget}\n" in asked[0]
    assert (run.budget, run.metrics().threads, run.answer) == (budget, threads, "4")
    assert laned.becomes_idle()


async def test_the_calls_of_a_run_are_one_program_and_two_runs_are_two(
    laned: Running, ask: Any
) -> None:
    laned.engine.delay = 0.0
    laned.engine.asked.clear()
    backend = CompletionsBackend(laned.v1, NAME)
    for _ in range(2):
        await ask(create_parallel_agent(backend))
    await backend.aclose()
    programs = [request.program for request in laned.engine.asked]
    assert len(programs) == 10
    assert len(set(programs[:5])) == len(set(programs[5:])) == 1
    assert len(set(programs)) == 2
