"""A toy task on which splitting is right for some problems and wrong for others.

``1`` is wide: three strings of digits have to be written, together or in a thread each.
``2`` is a chain: whoever splits it gets it wrong. A tiny model learns all four ways by heart.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from apr_agents.protocols.base import TraceBlock, TraceThread
from apr_agents.protocols.threadweaver import ThreadWeaver
from apr_agents.tasks.base import Problem
from apr_agents.training.forward import choose_attention
from apr_agents.training.learner import Learner, Optimization
from apr_agents.training.models import Policy
from apr_agents.training.runs import rehearse
from apr_agents.training.scripts import Script, calls_of
from apr_agents.training.sft import SFT
from apr_agents.training.tokenizer import build_tokenizer
from apr_agents.training.trie import Batch, Trie, collate, pack
from apr_agents.types import Outline

TOKENIZER = build_tokenizer()
PARTS = tuple("".join(random.Random(i).choices("0123456789", k=14)) for i in range(3))
WIDE, CHAIN = Problem("1", "7", 1.0, 3), Problem("2", "5", 0.0, 1)


@dataclass(frozen=True)
class Toy:
    """Problems in turn."""

    mix: tuple[Problem, ...] = (WIDE, CHAIN)
    name: str = "toy"

    def problems(self, count: int, seed: int) -> list[Problem]:
        return [self.mix[(seed + i) % len(self.mix)] for i in range(count)]

    def verify(self, problem: Problem, predicted: str | None) -> bool:
        return predicted == problem.answer


def script(problem: Problem, *, split: bool) -> Script:
    """One of the two ways to answer a problem."""
    if split:
        threads = [TraceThread(str(i), text, text[-1], []) for i, text in enumerate(PARTS, 1)]
        outlines = [Outline(str(i), text[0]) for i, text in enumerate(PARTS, 1)]
        blocks = [TraceBlock(outlines, threads, None, (0, 0))]
        answer = problem.answer if problem is WIDE else "0"
        calls = calls_of("", blocks, ThreadWeaver(), answer)
    else:
        text = "".join(PARTS) if problem is WIDE else PARTS[1]
        calls = calls_of(text, [], ThreadWeaver(), problem.answer)
    return Script(question=problem.question, answer=problem.answer, budget=3, calls=calls)


def tries(*scripts: Script) -> list[Trie]:
    """Each script as a trie."""
    played = asyncio.run(rehearse(scripts, TOKENIZER))
    assert all(run is not None and fault is None for run, fault in played), played
    return [pack(run.pairs) for run, _ in played if run is not None]


def fresh_model(*, hidden: int = 48, layers: int = 2) -> LlamaForCausalLM:
    """A tiny model with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=TOKENIZER.pad_token_id,
        bos_token_id=None,
        eos_token_id=TOKENIZER.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    choose_attention(model)
    return model


@cache
def _learned() -> dict[str, torch.Tensor]:
    batch = collate(tries(*(script(p, split=s) for p in (WIDE, CHAIN) for s in (True, False))))

    def stream(shard: int, done: float) -> Iterator[list[Batch]]:
        for _ in range(50):
            yield [batch]

    model = fresh_model()
    how = Optimization(rate=0.01, precision="float32", decay=0.5)
    with tempfile.TemporaryDirectory() as folder:
        learner = Learner(model, Path(folder), how, {})
        SFT(learner, stream, tokens=120 * batch.tokens, save_every=1000).run()
    return model.state_dict()


@cache
def _words() -> str:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    text = "Out of the parallel lines, one thread thinks: 12, 34; the Outlines conclude it.\n\n"
    trainer = trainers.BpeTrainer(
        vocab_size=400, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    core.train_from_iterator([text, text.upper(), text.title()] * 3, trainer)
    return core.to_str()


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer whose tokens are pieces of words, and that knows no tags."""
    core = Tokenizer.from_str(_words())
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>")


def undecided() -> Policy:
    """A policy that knows both ways to answer either problem, and splits every second time."""
    model = fresh_model()
    model.load_state_dict(_learned())
    return Policy(model, TOKENIZER)
