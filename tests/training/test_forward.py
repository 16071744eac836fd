"""The loss over tries is that of the separate pairs, in every kind of decoder."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel, RecurrentGemmaConfig, RecurrentGemmaForCausalLM

from apr_agents.errors import UnsupportedModel
from apr_agents.training.forward import (
    FLEX,
    allowed,
    block_mask,
    choose_attention,
    in_precision,
    target_logprobs,
)
from apr_agents.training.trie import Batch, Pair, collate, pack
from tests.engine.tiny import FAMILIES, fresh, original
from tests.training.runs_of_calls import calls


@pytest.fixture(scope="module")
def packed_model() -> PreTrainedModel:
    model = fresh()
    choose_attention(model)
    return model


def separately(model: PreTrainedModel, pairs: list[Pair]) -> torch.Tensor:
    """Log-probabilities of the completions, each call computed by itself."""
    found = []
    for context, completion in pairs:
        logits = model(input_ids=torch.tensor([[*context, *completion]]), use_cache=False).logits
        logprobs = logits[0, len(context) - 1 : -1].log_softmax(-1)
        found.append(logprobs[range(len(completion)), list(completion)])
    return torch.cat(found)


@settings(max_examples=20)
@given(st.lists(calls(), min_size=1, max_size=3))
def test_the_packed_loss_and_its_gradients_equal_those_of_the_separate_pairs(
    packed_model: PreTrainedModel, runs: list[list[Pair]]
) -> None:
    batch = collate([pack(pairs) for pairs in runs], multiple=8)
    packed = -target_logprobs(packed_model, batch).mean()
    plain = fresh()
    separate = -separately(plain, [pair for pairs in runs for pair in pairs]).mean()
    torch.testing.assert_close(packed, separate, atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(
        torch.autograd.grad(packed, list(packed_model.parameters())),
        torch.autograd.grad(separate, list(plain.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def long_run() -> list[Pair]:
    """A run whose contexts are longer than the tiny models' windows."""
    chance = random.Random(3)

    def ids(count: int) -> list[int]:
        return [chance.randint(1, 80) for _ in range(count)]

    prompt, spawn, header, thread = ids(20), ids(12), ids(4), ids(9)
    other, joined = ids(11), ids(15)
    return [
        Pair(prompt, spawn),
        Pair([*prompt, *spawn, *header], thread),
        Pair([*prompt, *spawn, *other], ids(7)),
        Pair([*prompt, *spawn, *header, *thread, *joined], ids(6)),
        Pair(ids(3), ids(30)),
    ]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_it_holds_for_every_family_of_decoders_and_beyond_sliding_windows(family: str) -> None:
    model, pairs = fresh(family), long_run()
    choose_attention(model)
    packed = target_logprobs(model, collate([pack(pairs), pack(pairs[:2])]))
    separate = separately(original(family), [*pairs, *pairs[:2]])
    torch.testing.assert_close(packed, separate, atol=2e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
@torch.no_grad()
def test_flex_attention_gives_what_the_dense_mask_gives(family: str) -> None:
    model, batch = fresh(family), collate([pack(long_run()), pack(long_run()[:2])], multiple=128)
    choose_attention(model)
    dense = target_logprobs(model, batch)
    model.set_attn_implementation(FLEX)
    # Uncompiled: that takes no compiler, and the mask is the same.
    with torch.compiler.set_stance("force_eager"):
        flex = target_logprobs(model, batch)
    torch.testing.assert_close(flex, dense, atol=2e-5, rtol=1e-5)


@given(st.lists(calls(), min_size=1, max_size=3), st.sampled_from([None, 3]))
@settings(max_examples=20)
def test_the_block_mask_allows_what_the_dense_mask_allows(
    runs: list[list[Pair]], window: int | None
) -> None:
    batch = collate([pack(pairs) for pairs in runs])
    width = batch.ids_BT.shape[1]
    sees = block_mask(batch, window).mask_mod
    rows, queries, keys = torch.meshgrid(
        torch.arange(len(runs)), torch.arange(width), torch.arange(width), indexing="ij"
    )
    assert torch.equal(sees(rows, rows, queries, keys), allowed(batch, window)[:, 0])


@torch.no_grad()
def test_one_token_of_a_sibling_that_leaks_changes_the_loss(packed_model: PreTrainedModel) -> None:
    pairs = [Pair([1, 2], [3, 4, 5]), Pair([1, 2, 6], [7, 8])]
    batch = collate([pack(pairs)])
    assert batch.ids_BT.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    leaky = batch.ends_BT.clone()
    leaky[0, 3] = 8  # what follows sees one token of the first branch
    tight = target_logprobs(packed_model, batch)
    loose = target_logprobs(packed_model, batch._replace(ends_BT=leaky))
    torch.testing.assert_close(tight, separately(original("Llama"), pairs), atol=1e-5, rtol=1e-5)
    assert torch.allclose(tight[:3], loose[:3])
    assert not torch.isclose(tight[3:], loose[3:], atol=1e-4).any()


@torch.no_grad()
def test_a_temperature_flattens_what_the_model_says(packed_model: PreTrainedModel) -> None:
    batch = collate([pack([Pair([1, 2], [3, 4])])])
    logits = original("Llama")(input_ids=batch.ids_BT).logits[0, 1:3]
    expected = -F.cross_entropy(logits / 2, batch.targets_S, reduction="none")
    found = target_logprobs(packed_model, batch, temperature=2.0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_bfloat16_stays_close(packed_model: PreTrainedModel) -> None:
    batch: Batch = collate([pack(long_run())])
    with in_precision(packed_model, "bfloat16"):
        half = target_logprobs(packed_model, batch)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, target_logprobs(packed_model, batch), atol=0.1, rtol=0.1)


def test_a_model_with_other_layers_than_attention_is_refused() -> None:
    config = RecurrentGemmaConfig(
        vocab_size=17, hidden_size=16, intermediate_size=16, num_hidden_layers=3,
        num_attention_heads=2, lru_width=16,
    )  # fmt: skip
    with pytest.raises(UnsupportedModel, match="linear_attention"):
        choose_attention(RecurrentGemmaForCausalLM(config))
