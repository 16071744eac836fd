"""The recipe of the bundled model: a small Llama that splits arithmetic when that pays.

``torchrun --standalone --nproc-per-node 2 -m apr_agents.training.bundled`` trains on two
cores, one process each, or goes on with a run that was stopped, and exports the model;
``--help`` says where, how long and from which seed.
"""

from __future__ import annotations

import random
import string
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeVar

import torch
import typer
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from apr_agents.backends import BUNDLED
from apr_agents.tasks.arithmetic import (
    APPLY,
    KINDS,
    MAX_STEPS,
    MAX_VALUE,
    demonstrate,
    format_question,
    random_group,
    random_step,
)
from apr_agents.tasks.base import Demonstration
from apr_agents.training.demonstrations import MergeName, to_trie
from apr_agents.training.sft import (
    SFTConfig,
    Trainer,
    half_precision,
    position,
    together,
    trie_logits,
)
from apr_agents.training.tokenizer import build_tokenizer
from apr_agents.training.trie import Batch, PackedTrie, Segment, collate, pack

Item = TypeVar("Item")

TOKENS = 34_000_000
WIDTHS = (64, 96, 128, 192, 256, 384, 512, 640, 768, 896, 1024, 1280)
"""Tries are padded to one of these lengths, tries of similar length together."""

BUDGETS = {0: 26, 1: 4, 2: 20, 3: 9, 4: 15, 5: 5, 6: 5, 7: 4, 8: 12}
SHARES = {
    "pair": 10, "chain": 16, "tiny": 12, "whole": 44, "wide": 16, "sums": 24, "drill": 28,
}  # fmt: skip
MERGES: dict[MergeName, int] = {"conclusions": 58, "full": 26, "summary": 16}
"""Weights of the budgets, of the kinds of problem, and of what the join shows."""

PLANS = 0.15
"""Share of the splits that are shown up to their outlines only: practice in planning."""


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The architecture, about 2.2 million parameters, untrained."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    config.update({"apr_most_threads": max(BUDGETS)})
    return LlamaForCausalLM(config)


class Mixture:
    """The stream of demonstrations: every kind of problem and of step gets its share.

    Args:
        easy: share of the training at whose start the questions are short.
        shard_size: demonstrations in one shard.
        batch_tokens: tokens in one batch, padding included.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        seed: int,
        easy: float = 0.0,
        shard_size: int = 4000,
        batch_tokens: int = 2560,
    ) -> None:
        self.tokenizer, self.seed, self.easy = tokenizer, seed, easy
        self.shard_size, self.batch_tokens = shard_size, batch_tokens

    def __call__(self, shard: int, progress: float) -> Iterator[Batch]:
        """The batches of one shard, tries of similar length together."""
        rng = random.Random(f"{self.seed}/{shard}")
        buckets: dict[int, list[PackedTrie]] = defaultdict(list)
        for _ in range(self.shard_size):
            trie = self.lesson(rng, progress)
            if len(trie) <= WIDTHS[-1]:
                buckets[WIDTHS[bisect_left(WIDTHS, len(trie))]].append(pack(trie))
        batches = []
        for width, tries in sorted(buckets.items()):
            rows = max(2, self.batch_tokens // width // 2 * 2)
            batches += [(width, tries[i : i + rows]) for i in range(0, len(tries), rows)]
        rng.shuffle(batches)
        rank, ranks = position()
        for width, tries in batches:
            if len(tries) >= ranks:
                yield collate(tries[rank::ranks], multiple=width)

    def lesson(self, rng: random.Random, progress: float = 1.0) -> Segment:
        """One trie of the stream."""
        kind = _weighted(rng, SHARES)
        if progress < self.easy and kind in ("whole", "wide"):
            kind = rng.choice(("chain", "sums", "drill"))
        if kind == "drill":
            return self.drill(rng)
        trie = self.trie(self.demonstration(rng, kind), rng)
        [opened] = trie.children
        if opened.children and rng.random() < PLANS:
            return replace(trie, children=(replace(opened, children=()),))
        return trie

    def drill(self, rng: random.Random) -> Segment:
        """Single operations in the notation of the demonstrations, results to be written."""
        lines = [_operation(rng) for _ in range(11)]
        segment: tuple[Segment, ...] = ()
        for left, result in reversed(lines):
            written = Segment(tuple(self._encode(f"{result}\n")), True, segment)
            segment = (Segment(tuple(self._encode(f"{left}=")), False, (written,)),)
        return segment[0]

    def demonstration(self, rng: random.Random, kind: str) -> Demonstration:
        """A demonstration of one kind, now and then with other text around its question."""
        budget = _weighted(rng, BUDGETS)
        if rng.random() < 0.004:
            return Demonstration(junk(rng, 60), budget, thinking="", answer="?")
        demonstration = demonstrate(self._question(rng, kind), budget)
        if rng.random() < 0.03:
            question = demonstration.question
            noisy = rng.choice((f"{question} {junk(rng, 30)}", f"{junk(rng, 30)} {question}"))
            demonstration = replace(demonstration, question=noisy)
        return demonstration

    def trie(self, demonstration: Demonstration, rng: random.Random) -> Segment:
        """The demonstration as a trie, with a join and summaries as chance has it."""
        return to_trie(
            demonstration,
            self._encode,
            eos_id=self.tokenizer.eos_token_id,
            merge=_weighted(rng, MERGES),
            summaries=rng.random() < 0.2,
        )

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.backend_tokenizer.encode(text).ids
        return ids

    def _question(self, rng: random.Random, kind: str) -> str:
        weights = (1.0, rng.uniform(0.4, 1.6), rng.uniform(0.3, 1.6))
        if kind == "chain":
            groups = [random_group(rng, rng.randint(1, MAX_STEPS), weights)]
        elif kind == "sums":  # short groups: many joins for few tokens
            lengths = [rng.randint(1, 4) for _ in range(rng.randint(2, 6))]
            groups = [random_group(rng, length, weights) for length in lengths]
        else:
            groups = KINDS[kind](rng)
        question = format_question(groups)
        return f"({question})" if len(groups) == 1 and rng.random() < 0.1 else question


def _operation(rng: random.Random) -> tuple[str, str]:
    """One operation and its result, as they occur in chains and in sums of results."""
    brink = rng.random() < 0.3
    if rng.random() < 0.35:
        total = rng.randint(0, 5 * MAX_VALUE)
        high = rng.choice((1, 3)) * MAX_VALUE
        addend = _brink(rng, -total, high) if brink else rng.randint(0, high)
        return f"{total:04}+{addend:04}", f"{total + addend:04}"
    value = rng.randint(0, rng.choice((99, MAX_VALUE)))
    step = random_step(rng, value)
    if brink and step.operator != "*":
        high = min(99, value if step.operator == "-" else MAX_VALUE - value)
        step = step._replace(operand=_brink(rng, value if step.operator == "-" else -value, high))
    return f"{value:03}{step.aligned}", f"{APPLY[step.operator](value, step.operand):03}"


def _brink(rng: random.Random, value: int, high: int) -> int:
    """A number up to ``high`` whose last digits are those of ``value`` or one off.

    With it a difference just borrows or just does not; so it is with a sum and ``-value``.
    """
    power = 10 ** rng.randint(1, 3)
    digits = (value + rng.randint(-1, 1)) % power
    return rng.choice(range(digits, high + 1, power) or range(high + 1))


def _weighted(rng: random.Random, weights: dict[Item, int]) -> Item:
    return rng.choices(list(weights), list(weights.values()))[0]


def junk(rng: random.Random, length: int) -> str:
    """Text that is no arithmetic: words, broken tags, stray digits behind letters."""
    pieces = []
    for _ in range(rng.randint(1, 6)):
        word = "".join(rng.choices(string.ascii_letters + "<>/_.;'", k=rng.randint(2, 12)))
        pieces.append(word + rng.choice(("", "", " ", "\n", ":", f" {rng.randint(0, 99)}x", "(x)")))
    return "w" + "".join(pieces)[:length] + "w"


@torch.no_grad()
def exactness(
    model: PreTrainedModel, mixture: Mixture, *, seed: int, count: int = 48
) -> dict[str, float]:
    """The share of problems, by kind and budget, of which greedy decoding gets every token."""
    rng = random.Random(seed)
    shares: dict[str, float] = {}
    for kind, budgets in {
        "pair": (4,),
        "chain": (0, 8),
        "whole": (0, 2, 4, 8),
        "wide": (8,),
    }.items():
        for budget in budgets:
            exact = 0
            for _ in range(count):
                question = format_question(KINDS[kind](rng))
                batch = collate([pack(mixture.trie(demonstrate(question, budget), rng))])
                with half_precision(model):
                    predicted_S = trie_logits(model, batch).argmax(-1).cpu()
                exact += bool((predicted_S == batch.targets_S).all())
            shares[f"{kind}@{budget}"] = exact / count
    return shares


def export(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write what ``AutoModelForCausalLM`` and ``AutoTokenizer`` load, weights in bfloat16."""
    shipped = build_model(tokenizer)
    shipped.load_state_dict(model.state_dict())
    shipped.generation_config = GenerationConfig.from_model_config(shipped.config)
    shipped.bfloat16().save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@together()
def main(
    directory: Annotated[Path, typer.Option(help="Checkpoints and log.")] = Path("runs/bundled"),
    output: Annotated[Path, typer.Option(help="Where the model is exported.")] = BUNDLED,
    tokens: Annotated[int, typer.Option(help="Tokens to train on.")] = TOKENS,
    seed: Annotated[int, typer.Option(help="Of weights and data.")] = 0,
    weights: Annotated[Path | None, typer.Option(help="An exported model to go on from.")] = None,
) -> None:
    """Train the bundled model, or go on with a run that was stopped, and export it."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    mixture = Mixture(tokenizer, seed=seed, easy=0.15 if weights is None else 0.0)
    model = build_model(tokenizer)
    if weights is not None:
        exported = LlamaForCausalLM.from_pretrained(weights, dtype=torch.float32)
        model.load_state_dict(exported.state_dict())
    gentle = {} if weights is None else {"matrix_rate": 0.009, "decay": 0.97}
    config = SFTConfig(tokens=tokens, checkpoint_seconds=400, **gentle)
    trainer = Trainer(model, mixture, directory, config)
    started, first = time.monotonic(), trainer.tokens

    def report(loss: float) -> None:
        speed = (trainer.tokens - first) / (time.monotonic() - started)
        left = (tokens - trainer.tokens) / speed / 60
        print(
            f"{trainer.tokens:,} of {tokens:,} tokens, loss {loss:.4f}, "
            f"{speed:,.0f} tokens/s, {left:.0f} minutes left\n"
            f"  exact: {exactness(model, mixture, seed=1)}",
            flush=True,
        )

    trainer.run(report)
    if position()[0] == 0:
        export(model, tokenizer, output)


if __name__ == "__main__":
    typer.run(main)
