"""Temperature by request, and log-probabilities: in this process, from a server, from a chat model.

All three run the same small random model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest
import torch
from langchain_openai import ChatOpenAI

from apr_agents import BestOfN, Limits, SelfConsistency, create_parallel_agent
from apr_agents.backends.answer import Chunk
from apr_agents.backends.base import Backend, Delta, Request
from apr_agents.backends.completions import CompletionsBackend
from apr_agents.backends.local import LocalBackend
from apr_agents.engine.engine import EngineOptions
from apr_agents.errors import InvalidOption
from apr_agents.trace.trajectory import Trajectory
from apr_agents.types import Call
from tests.conftest import RuledModel
from tests.server.harness import NAME, Running, Scripted, byte_tokenizer, random_model, running

PROMPT = "What is it?"
TOKENS = 12
SHORT = Limits(max_tokens_per_thread=30)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    engine = Scripted(random_model(byte_tokenizer()), EngineOptions(cache_tokens=4096))
    with running(engine) as served:
        yield served


@pytest.fixture(scope="module", params=["local", "completions"])
def backend(request: pytest.FixtureRequest, server: Running) -> Iterator[Backend]:
    made: Backend = CompletionsBackend(server.v1, NAME)
    if request.param == "local":
        tokenizer = byte_tokenizer()
        made = LocalBackend(random_model(tokenizer), tokenizer)
    yield made
    asyncio.run(made.aclose())


async def listen(backend: Backend, **options: Any) -> list[Delta]:
    request = Request(**{"prompt": PROMPT, "max_tokens": TOKENS, "key": "0.1/0", **options})
    async with aclosing(backend.stream(request)) as deltas:
        return [delta async for delta in deltas]


def text(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


# --- temperature -----------------------------------------------------------------------


async def test_a_request_may_have_a_temperature_of_its_own(backend: Backend) -> None:
    greedy = text(await listen(backend))
    assert text(await listen(backend, key="0.2/0")) == greedy  # as the backend is set
    warm = {text(await listen(backend, temperature=1.5, key=f"0.{i}/0")) for i in range(4)}
    assert len(warm) == 4
    again = text(await listen(backend, temperature=1.5, key="0.3/0"))
    assert again in warm  # the key decides


async def test_an_agents_temperature_makes_its_samples_differ(backend: Backend, ask: Any) -> None:
    def samples(trajectory: Trajectory) -> set[str]:
        return {thread.transcript for thread in trajectory.root.blocks[0].threads}

    def agent(**options: Any) -> Any:
        strategy = SelfConsistency(n=3, extract=lambda text: None)
        return create_parallel_agent(backend, strategy=strategy, limits=SHORT, **options)

    assert len(samples(await ask(agent()))) == 1
    runs = [samples(await ask(agent(temperature=1.5))) for _ in range(2)]
    assert len(runs[0]) == 3
    assert runs[0] == runs[1]


@pytest.mark.parametrize("temperature", [-0.1, float("inf"), float("nan")])
def test_a_temperature_must_be_one(temperature: float, backend: Backend) -> None:
    with pytest.raises(InvalidOption, match="temperature"):
        create_parallel_agent(backend, temperature=temperature)


def test_a_chat_model_has_its_own_temperature() -> None:
    with pytest.raises(InvalidOption, match="set on the chat model itself"):
        create_parallel_agent(RuledModel(rule=lambda messages: "5"), temperature=0.7)


# --- log-probabilities -----------------------------------------------------------------


def likeliest() -> float:
    """The log-probability of the likeliest tokens behind the prompt, as transformers has it."""
    tokenizer = byte_tokenizer()
    model = random_model(tokenizer)
    ids = tokenizer(PROMPT)["input_ids"]
    total = 0.0
    for _ in range(TOKENS):
        with torch.no_grad():
            logprobs_V = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        ids.append(int(logprobs_V.argmax()))
        total += float(logprobs_V.max())
    return total


async def test_the_log_probability_of_an_output_is_told_where_it_is_asked_for(
    backend: Backend,
) -> None:
    told = [delta.logprob for delta in await listen(backend, logprobs=True)]
    assert sum(filter(None, told)) == pytest.approx(likeliest(), rel=1e-3)
    assert all(delta.logprob is None for delta in await listen(backend))


async def test_the_record_of_each_sample_has_it(backend: Backend, ask: Any) -> None:
    strategy = BestOfN(n=3, score="logprob")
    agent = create_parallel_agent(backend, strategy=strategy, temperature=0.3, limits=SHORT)
    calls = [
        step
        for thread in (await ask(agent, PROMPT)).root.blocks[0].threads
        for step in thread.steps
        if isinstance(step, Call)
    ]
    assert len(calls) == 3
    assert all(call.logprob is not None and call.logprob < 0 for call in calls)


async def test_a_chat_model_tells_it_as_its_provider_does(server: Running, ask: Any) -> None:
    server.engine.says = lambda prompt: "ok"
    model = ChatOpenAI(model=NAME, base_url=server.v1, api_key="none", temperature=0.7)  # type: ignore[arg-type]
    strategy = BestOfN(n=2, score="logprob")
    trajectory = await ask(create_parallel_agent(model, strategy=strategy, limits=SHORT))
    assert trajectory.answer == "ok"
    threads = trajectory.root.blocks[0].threads
    told = [step.logprob for thread in threads for step in thread.steps if step.kind == "call"]
    assert len(told) == 2
    assert all(logprob is not None and logprob < 0 for logprob in told)
    server.engine.reset()


@pytest.mark.parametrize(
    ("told", "total"),
    [
        ({"token_logprobs": [None, -1.0, -0.5]}, -1.5),  # OpenAI, vLLM, SGLang
        ({"content": [{"token": "a", "logprob": -1.0}, {"token": "b", "logprob": -2.0}]}, -3.0),
        ({"token_logprobs": []}, None),
        (None, None),
    ],
    ids=["completions", "llama.cpp", "none yet", "none"],
)
def test_servers_write_log_probabilities_in_two_forms(told: Any, total: float | None) -> None:
    event = {"choices": [{"text": "x", "finish_reason": None, "logprobs": told}]}
    assert Chunk.of(event).logprob == total
