"""Decoders of many families, and models that the engine refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from apr_agents.engine.decoder import Decoder, Part
from apr_agents.engine.engine import Engine
from apr_agents.engine.pool import Pool, Run
from apr_agents.engine.request import Generate
from apr_agents.errors import UnsupportedModel
from tests.engine.tiny import (
    CONTEXT,
    FAMILIES,
    SHAPE,
    VOCABULARY,
    ask,
    fresh,
    generated,
    original,
    prompt,
    running,
)

REFUSED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Mamba": ("MambaForCausalLM", "MambaConfig", {"state_size": 4}),
    "T5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 4},
    ),
    "Bart": ("BartForConditionalGeneration", "BartConfig", {"d_model": 32}),
    "own attention": ("BloomForCausalLM", "BloomConfig", {"n_layer": 1, "n_head": 4}),
    "own softmax": ("DiffLlamaForCausalLM", "DiffLlamaConfig", {}),
    "plan not handed on": ("StableLmForCausalLM", "StableLmConfig", {}),
    "some linear attention": (
        "Qwen3NextForCausalLM",
        "Qwen3NextConfig",
        {
            "layer_types": ["linear_attention", "full_attention"],
            "head_dim": 16,
            "num_experts": 4,
            "moe_intermediate_size": 16,
        },
    ),
    "convolutions": ("Lfm2ForCausalLM", "Lfm2Config", {"layer_types": ["conv", "full_attention"]}),
    "window by the mask alone": (
        "PhimoeForCausalLM",
        "PhimoeConfig",
        {"num_local_experts": 4, "sliding_window": 16},
    ),
    "mask of its own": ("DogeForCausalLM", "DogeConfig", {}),
    "sees what comes": ("BertForMaskedLM", "BertConfig", {}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_engine_says_what_the_model_says_by_itself(family: str) -> None:
    # Beyond every sliding window, over several steps, with a common beginning and without.
    root = prompt(40, seed=1)
    prompts = [root, [*root, 3], [*root, *prompt(20, seed=2)], [*root[:25], 5], prompt(3, seed=3)]
    with running(family, most_tokens=24) as engine:
        answers = ask(engine, *(Generate(ids=ids, max_tokens=20) for ids in prompts))
        again = ask(engine, *(Generate(ids=[*root, i], max_tokens=5) for i in (3, 4)))
        for ids, answer in zip([*prompts, [*root, 3], [*root, 4]], answers + again, strict=True):
            assert answer.ids == generated(family, ids, len(answer.ids))
            assert answer.finish == "length"


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_decoder_of_the_right_kind_is_refused_in_one_line(kind: str) -> None:
    name, config, special = REFUSED[kind]
    torch.manual_seed(0)
    shape = {**SHAPE, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": VOCABULARY}
    model = getattr(transformers, name)(getattr(transformers, config)(**{**shape, **special}))
    before = model.config._attn_implementation
    with pytest.raises(UnsupportedModel) as caught:
        Engine(model)
    assert caught.value.model == name
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert model.config._attn_implementation == before


def test_a_refused_model_works_as_before() -> None:
    model = transformers.StableLmForCausalLM(transformers.StableLmConfig(**SHAPE)).eval()
    ids = torch.tensor([prompt(9)])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        with pytest.raises(UnsupportedModel):
            Engine(model)
        assert torch.equal(model(input_ids=ids).logits, before)


def test_a_model_can_get_a_second_engine() -> None:
    model = fresh()
    for _ in range(2):
        engine = Engine(model)
        (answer,) = ask(engine, Generate(ids=[1, 2, 3], max_tokens=5))
        engine.stop()
        assert answer.ids == generated("Llama", [1, 2, 3], 5)


def test_half_precision_is_accepted() -> None:
    engine = Engine(fresh("Gemma3").to(torch.bfloat16))  # type: ignore[arg-type]
    (answer,) = ask(engine, Generate(ids=prompt(40), max_tokens=8))
    engine.stop()
    assert len(answer.ids) == 8
    assert engine.pool.keys[0].dtype == torch.bfloat16


def test_checking_a_model_leaves_the_pool_empty() -> None:
    pool = Pool(20)
    decoder = Decoder(fresh(), pool)
    assert pool.free == 20
    assert decoder.vocabulary == VOCABULARY
    assert decoder.context_length == CONTEXT


def test_only_logits_that_are_asked_for_are_computed() -> None:
    decoder = Decoder(fresh(), Pool(20))
    parts = [
        Part([1, 2, 3], 0, [], [Run(0, 3)], False),
        Part([4, 5], 0, [], [Run(3, 2)], True),
    ]
    logits = decoder.logits(parts)
    assert logits is not None
    with torch.no_grad():
        expected = original("Llama")(input_ids=torch.tensor([[4, 5]])).logits[0, -1:]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert decoder.logits(parts[:1]) is None


def test_a_context_ends_where_positions_would_begin_to_depend_on_its_length() -> None:
    config = Phi3Config(
        **{**SHAPE, "original_max_position_embeddings": 64},
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "long_factor": [2.0] * 4,
            "short_factor": [1.0] * 4,
            "original_max_position_embeddings": 64,
        },
    )
    torch.manual_seed(0)
    engine = Engine(Phi3ForCausalLM(config))
    assert engine.context_length == 64
    engine.stop()


def test_weights_on_which_memory_runs_out_are_not_called_unsupported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def store(*_: object) -> None:
        raise torch.OutOfMemoryError("all of it")

    monkeypatch.setattr(Pool, "store", store)
    with pytest.raises(torch.OutOfMemoryError):
        Engine(LlamaForCausalLM(LlamaConfig(**SHAPE)))
