"""Packed tries: the loss is that of the separate pairs, and siblings see nothing of each other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from apr_agents.training import attention
from apr_agents.training.sft import trie_logits, trie_loss
from apr_agents.training.trie import Segment, branches, collate, pack

VOCABULARY = 17
tokens = st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=6).map(tuple)


def segments(depth: int = 3) -> st.SearchStrategy[Segment]:
    children = st.just(()) if depth == 0 else st.lists(segments(depth - 1), max_size=3).map(tuple)
    return st.builds(Segment, tokens, st.booleans(), children)


def tries() -> st.SearchStrategy[Segment]:
    """Tries whose root is a given prompt and where something is supervised."""
    written = st.builds(
        Segment, tokens, st.just(True), st.lists(segments(2), max_size=3).map(tuple)
    )
    return st.builds(
        Segment, tokens, st.just(False), st.lists(written, min_size=1, max_size=2).map(tuple)
    )


def model(implementation: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    attention.register()
    built = LlamaForCausalLM(config)
    built.set_attn_implementation(implementation)
    return built


@pytest.fixture(scope="module")
def packed_model() -> PreTrainedModel:
    return model(attention.NAME)


@pytest.fixture(scope="module")
def plain_model() -> PreTrainedModel:
    return model("eager")


def separate_loss(plain: PreTrainedModel, roots: list[Segment]) -> torch.Tensor:
    losses = []
    for context, completion in (pair for root in roots for pair in branches(root)):
        logits = plain(torch.tensor([context + completion])).logits[0, len(context) - 1 : -1]
        losses.append(F.cross_entropy(logits, torch.tensor(completion), reduction="none"))
    return torch.cat(losses).mean()


@settings(max_examples=25, deadline=None)
@given(st.lists(tries(), min_size=1, max_size=3))
def test_the_packed_loss_and_its_gradients_equal_those_of_the_separate_pairs(
    packed_model: PreTrainedModel, plain_model: PreTrainedModel, roots: list[Segment]
) -> None:
    packed = trie_loss(packed_model, collate([pack(root) for root in roots], multiple=8))
    separate = separate_loss(plain_model, roots)
    torch.testing.assert_close(packed, separate, atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(
        torch.autograd.grad(packed, list(packed_model.parameters())),
        torch.autograd.grad(separate, list(plain_model.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_chunked_attention_equals_plain_attention_beyond_one_chunk(
    packed_model: PreTrainedModel, plain_model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "QUERY_CHUNK", 8)
    leaf = Segment(tuple(range(1, 15)), True)
    root = Segment((1, 2, 3), False, (replace(leaf, children=(leaf, leaf)),))
    packed = trie_loss(packed_model, collate([pack(root)]))
    torch.testing.assert_close(packed, separate_loss(plain_model, [root]), atol=1e-5, rtol=1e-5)


def test_a_sibling_token_that_leaks_changes_the_loss(packed_model: PreTrainedModel) -> None:
    root = Segment(
        (1, 2), False, (Segment((3, 4, 5), True), Segment((6,), False, (Segment((7, 8), True),)))
    )
    batch = collate([pack(root)])
    leaky = batch.allowed_B1TT.clone()
    leaky[0, 0, 5, 3] = True  # the second branch sees one token of the first
    with torch.no_grad():
        tight = trie_logits(packed_model, batch)
        loose = trie_logits(packed_model, batch._replace(allowed_B1TT=leaky))
    assert not torch.allclose(tight, loose, atol=1e-5)


@given(tries())
def test_every_token_sees_its_ancestors_and_nothing_else(root: Segment) -> None:
    trie = pack(root)
    for index, parent in enumerate(trie.parents_T.tolist()):
        above = trie.allowed_TT[parent].clone() if parent >= 0 else torch.zeros(len(trie.ids_T)) > 0
        above[index] = True
        assert torch.equal(trie.allowed_TT[index], above)
        assert trie.positions_T[index] == trie.allowed_TT[index].sum() - 1


@given(st.lists(tries(), min_size=1, max_size=4), st.integers(1, 16))
def test_padding_neither_supervises_nor_counts(roots: list[Segment], multiple: int) -> None:
    batch = collate([pack(root) for root in roots], multiple=multiple)
    assert batch.ids_BT.shape[1] % multiple == 0
    assert batch.tokens == sum(map(len, roots))
    assert len(batch.targets_S) == sum(len(done) for root in roots for _, done in branches(root))
    assert int(batch.sources_S.max()) < len(roots) * batch.ids_BT.shape[1]
