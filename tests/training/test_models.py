"""The model that is trained: new tags, adapters, and what is saved of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from apr_agents.errors import UnknownModel
from apr_agents.protocols.apr import APR, CALLED
from apr_agents.protocols.threadweaver import ThreadWeaver
from apr_agents.training.config import Optimization
from apr_agents.training.forward import target_logprobs
from apr_agents.training.learner import Learner
from apr_agents.training.models import Policy, add_tags, load, tags_of
from apr_agents.training.runs import rehearse
from apr_agents.training.trie import collate, pack
from tests.training.toy import WIDE, script, word_tokenizer

TAGS = tags_of(ThreadWeaver())


def plain_model(*, tied: bool, spare: int = 0) -> PreTrainedModel:
    """A model that knows no tags; its tables may have more rows than the tokenizer has tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(word_tokenizer()) + spare,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("spare", [0, 200])
@pytest.mark.parametrize("tied", [True, False])
def test_a_new_tag_is_one_token_and_starts_as_the_mean_of_its_pieces(
    tied: bool, spare: int
) -> None:
    model, tokenizer = plain_model(tied=tied, spare=spare), word_tokenizer()
    pieces = tokenizer.encode("</Outlines>", add_special_tokens=False)
    assert len(pieces) > 1
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    means = [table[pieces].mean(0).detach().clone() for table in tables]  # type: ignore[index]

    new = add_tags(model, tokenizer, TAGS)

    assert len(new) == len(TAGS)
    [token] = tokenizer.encode("</Outlines>", add_special_tokens=False)
    assert token in new
    assert tokenizer.decode([token]) == "</Outlines>"
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    for table, mean in zip(tables, means, strict=True):
        torch.testing.assert_close(table[token], mean)  # type: ignore[index]
    assert add_tags(model, tokenizer, TAGS) == []


def test_what_other_protocols_have_for_tags() -> None:
    assert CALLED in tags_of(APR())
    assert {"<Parallel>", "</Outlines>", "<think>"} <= set(TAGS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("plain")
    plain_model(tied=False).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return f"local:{folder}"


@pytest.mark.parametrize("lora", [0, 4])
def test_what_is_saved_is_what_was_learned(saved: str, lora: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    policy = load(saved, lora=lora, tags=TAGS)
    [(run, _)] = asyncio.run(rehearse([script(WIDE, split=True)], policy.tokenizer))
    assert run is not None
    batch = collate([pack(run.pairs)])
    learner = Learner(policy.model, tmp_path / "run", Optimization(rate=0.01, warmup=0), {})
    if lora:
        assert len(learner.trained) == 14 + 2  # adapters of seven layers, and two tables
        assert (
            sum(p.numel() for p in learner.trained.values()) < 0.5 * policy.model.num_parameters()
        )
    before = target_logprobs(policy.model, batch).mean().item()
    for _ in range(10):
        learner.update([-target_logprobs(policy.model, batch).mean()], done=0)
    learned = target_logprobs(policy.model, batch)
    assert learned.mean().item() > before + 0.1

    policy.save(tmp_path / "model", most_threads=5)
    again = load(f"local:{tmp_path / 'model'}")
    assert again.model.config.apr_most_threads == 5
    assert len(again.tokenizer) == len(policy.tokenizer)
    torch.testing.assert_close(target_logprobs(again.model, batch), learned, atol=1e-4, rtol=1e-4)


def test_adapters_go_on_from_a_checkpoint(saved: str, tmp_path: Path) -> None:
    def learner() -> Learner:
        torch.manual_seed(0)
        policy = load(saved, lora=2, tags=TAGS)
        return Learner(policy.model, tmp_path, Optimization(rate=0.01, warmup=0), {})

    first = learner()
    for parameter in first.trained.values():
        parameter.grad = torch.ones_like(parameter)
    first.update([], done=0)
    first.steps = 1
    first.save({"so far": 3})
    again = learner()
    assert (again.steps, again.progress) == (1, {"so far": 3})
    for name, parameter in first.trained.items():
        assert torch.equal(again.trained[name], parameter)


def test_a_model_that_is_not_there_is_named() -> None:
    with pytest.raises(UnknownModel, match="no such directory"):
        load("local:/nowhere")


def test_the_bundled_model_can_be_trained_further(tmp_path: Path) -> None:
    policy = load("bundled")
    assert isinstance(policy, Policy)
    assert all(parameter.requires_grad for parameter in policy.model.parameters())
    assert next(policy.model.parameters()).dtype == torch.float32
    # It is saved as it ships.
    policy.save(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).dtype == torch.bfloat16
    assert (tmp_path / "model.safetensors").stat().st_size < 10_000_000
