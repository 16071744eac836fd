"""Supervised fine-tuning: it learns, and a run that was stopped goes on as if it had not been."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from apr_agents.training.bundled import Mixture, build_model, build_tokenizer, export
from apr_agents.training.sft import SFTConfig, Trainer, rate
from apr_agents.training.trie import Batch, Segment, collate, pack

tokenizer = build_tokenizer()


def stream(shard: int, progress: float) -> Iterator[Batch]:
    """Two batches a shard of one and the same tiny lesson."""
    lesson = Segment((3, 4, 5), False, (Segment((6, 7, 8), True), Segment((9, 1), True)))
    for width in (8, 16):
        yield collate([pack(lesson)] * (2 + shard % 2), multiple=width)


def small_model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def fresh(directory: Path, tokens: int) -> Trainer:
    return Trainer(small_model(), stream, directory, SFTConfig(tokens=tokens, warmup=0))


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    losses: list[float] = []
    trainer = fresh(tmp_path, 1500)
    step = trainer._step
    trainer._step = lambda batch: losses.append(step(batch)) or losses[-1]  # type: ignore[method-assign,func-returns-value]
    trainer.run()
    assert losses[-1] < losses[0] / 2


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    through = fresh(tmp_path / "through", 120)
    through.run()

    stopped = fresh(tmp_path / "stopped", 120)
    for count, batch in enumerate(stopped._batches()):
        stopped._step(batch)
        if count == 2:
            break
    stopped._save(0.0)
    resumed = fresh(tmp_path / "stopped", 120)
    assert resumed.tokens == stopped.tokens > 0
    resumed.run()

    assert resumed.tokens == through.tokens
    for mine, theirs in zip(resumed.model.parameters(), through.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("progress", "expected"), [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.5, 1.0), (0.75, 0.5), (1, 0)]
)
def test_the_rate_rises_stays_and_falls(progress: float, expected: float) -> None:
    config = SFTConfig(tokens=1, warmup=0.1, decay=0.5)
    assert rate(progress, config) == pytest.approx(expected)


def test_the_mixture_is_the_same_for_the_same_seed() -> None:
    def first(seed: int) -> torch.Tensor:
        return next(iter(Mixture(tokenizer, seed=seed, shard_size=20)(0, 1.0))).ids_BT

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_an_exported_model_loads_with_the_auto_classes(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: PreTrainedModel = build_model(tokenizer)
    export(model, tokenizer, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    text = "((12*7) + 5)-2\nThreads: 4\n<think>\n12*7+5-2"
    ids = AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"]
    assert ids == tokenizer(text)["input_ids"]
    with torch.no_grad():
        mine, theirs = model(torch.tensor([ids])).logits, loaded(torch.tensor([ids])).logits
    torch.testing.assert_close(
        mine, theirs, atol=0.05, rtol=0.05
    )  # weights are shipped in bfloat16


TOGETHER = """
import sys
from pathlib import Path
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from apr_agents.training.sft import SFTConfig, Trainer, position, together
from apr_agents.training.trie import Segment, collate, pack

def stream(shard, progress):
    tries = [Segment((3, 4, n), False, (Segment((n, 7, 8)[: n - 3], True),)) for n in (4, 5, 6, 6)]
    rank, ranks = position()
    yield collate([pack(trie) for trie in tries][rank::ranks])

torch.manual_seed(0)
config = LlamaConfig(vocab_size=12, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                     num_attention_heads=1)
with together():
    Trainer(LlamaForCausalLM(config), stream, Path(sys.argv[1]), SFTConfig(tokens=100)).run()
"""


def test_two_processes_learn_what_one_would(tmp_path: Path) -> None:
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, prefix in (("alone", []), ("together", launch)):
        command = [sys.executable, *prefix, str(script), str(tmp_path / name)]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    alone, together = (
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)
        for name in ("alone", "together")
    )
    assert alone["position"] == together["position"]
    for name, weights in alone["model"].items():
        # bfloat16 rounds the two halves of a batch on their own.
        torch.testing.assert_close(together["model"][name], weights, atol=0.02, rtol=0.05)
