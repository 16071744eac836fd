"""The local backend, on a small random model: same tokens as `generate`, stops, cancels, errors."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path

import pytest
import torch
from langchain_core.messages import AIMessage, HumanMessage
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from apr_agents.backends import resolve
from apr_agents.backends.base import Delta, Request
from apr_agents.backends.local import LocalBackend
from apr_agents.engine.decoder import Part
from apr_agents.engine.engine import CPU_LANES, Hear
from apr_agents.engine.request import Generate
from apr_agents.errors import InvalidOption, PromptTooLong, UnknownModel
from apr_agents.training.tokenizer import build_tokenizer

CONTEXT = 128


def random_model(tokenizer: PreTrainedTokenizerFast, seed: int = 3) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte, and no chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({text: i for i, text in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>")


@pytest.fixture(scope="module")
def backend() -> Iterator[LocalBackend]:
    tokenizer = build_tokenizer()
    made = LocalBackend(random_model(tokenizer), tokenizer)
    yield made
    asyncio.run(made.aclose())


async def collect(deltas: AsyncIterator[Delta]) -> tuple[str, int, int, bool]:
    """Text, tokens, prompt tokens, and whether the model ended by itself."""
    got = [delta async for delta in deltas]
    return (
        "".join(delta.text for delta in got),
        sum(delta.tokens for delta in got),
        sum(delta.prompt_tokens for delta in got),
        got[-1].ended,
    )


async def test_a_prompt_is_told_how_much_of_it_was_computed_before(backend: LocalBackend) -> None:
    async def cached(prompt: str) -> list[int | None]:
        request = Request(prompt=prompt, max_tokens=3)
        return [delta.cached_tokens async for delta in backend.stream(request)]

    prompt = "777+12*7"
    first, *rest = await cached(prompt)
    assert (first, set(rest)) == (0, {None})
    again, *rest = await cached(prompt + "+777")
    assert (again, set(rest)) == (backend.count(prompt), {None})


def generated(backend: LocalBackend, prompt: str, count: int, seed: int = 3) -> list[int]:
    """What transformers itself generates with a model like the backend's."""
    ids = backend.tokenizer(prompt, return_tensors="pt")["input_ids"]
    model = random_model(backend.tokenizer, seed)
    with torch.no_grad():
        output = model.generate(ids, max_new_tokens=count, do_sample=False)
    return output[0, ids.shape[1] :].tolist()


async def test_concurrent_requests_give_the_tokens_of_generate(backend: LocalBackend) -> None:
    prompts = [f"(({a}*7)+5)-{a * 3}\n<think>\n" for a in range(2, 12)]
    results = await asyncio.gather(
        *(collect(backend.stream(Request(prompt=p, max_tokens=24))) for p in prompts)
    )
    for prompt, (text, tokens, prompt_tokens, ended) in zip(prompts, results, strict=True):
        expected = generated(backend, prompt, 24)
        assert tokens == len(expected)
        assert prompt_tokens == len(backend.tokenizer(prompt)["input_ids"])
        assert ended == (expected[-1] == backend.tokenizer.eos_token_id)
        assert text == backend.tokenizer.decode(expected[:-1] if ended else expected)


async def test_generation_stops_at_a_one_token_stop_and_includes_it(backend: LocalBackend) -> None:
    prompt = "1+2\n<think>\n"
    pieces = [delta.text async for delta in backend.stream(Request(prompt=prompt, max_tokens=24))]
    stop = pieces[5]
    text, *_, ended = await collect(
        backend.stream(Request(prompt=prompt, max_tokens=24, stops=(stop,)))
    )
    assert text == "".join(pieces[: pieces.index(stop) + 1])
    assert not ended


async def test_closing_a_stream_cancels_its_request(backend: LocalBackend) -> None:
    async with aclosing(backend.stream(Request(prompt="1+2", max_tokens=100))) as deltas:
        async for _ in deltas:
            break
    for _ in range(1000):
        if backend.engine.load == (0, 0):
            break
        await asyncio.sleep(0.01)
    assert backend.engine.load == (0, 0)
    text, *_ = await collect(backend.stream(Request(prompt="1+2", max_tokens=5)))
    assert text


def test_an_event_loop_that_died_costs_later_ones_nothing(backend: LocalBackend) -> None:
    async def abandoned() -> None:
        deltas = backend.stream(Request(prompt="3+4", max_tokens=100))
        await anext(deltas)
        await deltas.aclose()

    async def later() -> int:
        return (await collect(backend.stream(Request(prompt="3+4", max_tokens=5))))[1]

    asyncio.run(abandoned())
    assert asyncio.run(later()) >= 1


async def test_a_prompt_beyond_the_context_is_refused_with_both_figures(
    backend: LocalBackend,
) -> None:
    with pytest.raises(PromptTooLong) as caught:
        await collect(backend.stream(Request(prompt="1" * 200, max_tokens=5)))
    assert (caught.value.tokens, caught.value.limit) == (200, CONTEXT)


async def test_generation_never_leaves_the_context(backend: LocalBackend) -> None:
    prompt = "1" * (CONTEXT - 3)
    _, tokens, *_ = await collect(backend.stream(Request(prompt=prompt, max_tokens=50)))
    assert 1 <= tokens <= 3


def test_control_tokens_inside_messages_are_broken(backend: LocalBackend) -> None:
    rendered = backend.render([AIMessage("before"), HumanMessage("1+2<eos><pad>")])
    ids = backend.tokenizer(rendered)["input_ids"]
    assert backend.tokenizer.eos_token_id not in ids
    assert backend.tokenizer.pad_token_id not in ids


async def test_characters_of_several_tokens_arrive_whole_and_templates_are_optional() -> None:
    tokenizer = bytes_tokenizer()
    backend = LocalBackend(random_model(tokenizer, seed=1), tokenizer)
    assert backend.render([HumanMessage("Grüße"), AIMessage("né")]) == "Grüße\nné"
    text, tokens, prompt_tokens, _ = await collect(
        backend.stream(Request(prompt="Grüße", max_tokens=40))
    )
    await backend.aclose()
    expected = [i for i in generated(backend, "Grüße", 40, seed=1) if i != tokenizer.eos_token_id]
    assert prompt_tokens == len("Grüße".encode())
    assert tokenizer.decode(expected).startswith(text)
    assert tokens >= 1


def test_what_cannot_be_loaded_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for model in (f"local:{tmp_path}", "local:", "nonsense"):
        with pytest.raises(UnknownModel) as caught:
            resolve(model)
        assert "\n" not in str(caught.value)
        assert repr(model) in str(caught.value) or str(tmp_path) in str(caught.value)


def test_a_negative_temperature_is_refused() -> None:
    tokenizer = build_tokenizer()
    with pytest.raises(InvalidOption):
        LocalBackend(random_model(tokenizer), tokenizer, temperature=-1)


async def test_with_a_temperature_a_call_repeats_and_others_differ() -> None:
    tokenizer = build_tokenizer()
    backend = LocalBackend(random_model(tokenizer), tokenizer, temperature=2.0, seed=5)

    async def text(key: str) -> str:
        return (await collect(backend.stream(Request(prompt="1+2", max_tokens=20, key=key))))[0]

    texts = [await text(f"0.{i}/0") for i in range(4)]
    again = await asyncio.gather(*(text(f"0.{i}/0") for i in range(4)))
    await backend.aclose()
    assert texts == again
    assert len(set(texts)) == 4


async def test_generation_stops_at_a_stop_of_several_tokens() -> None:
    tokenizer = bytes_tokenizer()
    backend = LocalBackend(random_model(tokenizer, seed=1), tokenizer)
    whole, *_ = await collect(backend.stream(Request(prompt="abc", max_tokens=40)))
    found = re.search(r"[!-~]{2}", whole[4:])
    assert found is not None
    stop = found[0]
    text, *_ = await collect(
        backend.stream(Request(prompt="abc", max_tokens=40, stops=(stop, "never")))
    )
    await backend.aclose()
    assert text == whole[: whole.index(stop) + len(stop)]


# --- many requests -----------------------------------------------------------------


async def test_requests_that_start_together_compute_their_prompts_in_one_step(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    logits = backend.engine.decoder.logits

    def counted(parts: Sequence[Part]) -> torch.Tensor | None:
        steps.append(len(parts))
        return logits(parts)

    monkeypatch.setattr(backend.engine.decoder, "logits", counted)
    prompts = [f"{i}+{i}" for i in range(8)]
    await asyncio.gather(
        *(collect(backend.stream(Request(prompt=p, max_tokens=3))) for p in prompts)
    )
    assert steps[0] == 8


async def test_the_calls_of_a_run_are_one_program(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs: list[str] = []
    submit = backend.engine.submit

    def noted(request: Generate, hear: Hear) -> int:
        programs.append(request.program)
        return submit(request, hear)

    monkeypatch.setattr(backend.engine, "submit", noted)
    for run in ("one", "one", "other"):
        await collect(backend.stream(Request(prompt="1+2", max_tokens=1, run=run)))
    assert programs == ["one", "one", "other"]


async def test_every_request_at_work_takes_a_lane(backend: LocalBackend) -> None:
    lanes = await backend.free_lanes()
    assert lanes == backend.engine.options.lanes == CPU_LANES
    async with aclosing(backend.stream(Request(prompt="1+2", max_tokens=100))) as deltas:
        await anext(deltas)
        assert await backend.free_lanes() == lanes - 1
    await collect(backend.stream(Request(prompt="1+2", max_tokens=1)))  # a step later
    assert await backend.free_lanes() == lanes
