"""The recipe of the bundled model: a small Llama that splits arithmetic when that pays.

``torchrun --standalone --nproc-per-node 2 -m apr_agents.training.bundled`` trains on two
cores, one process each, or goes on with a run that was stopped, and saves the model;
``--help`` says where, how long and from which seed.
"""

from __future__ import annotations

import asyncio
import random
import string
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import accumulate
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
from apr_agents.protocols.threadweaver import ThreadWeaver
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
from apr_agents.training.config import Optimization
from apr_agents.training.decisions import Shown
from apr_agents.training.forward import choose_attention
from apr_agents.training.learner import Learner, position, together
from apr_agents.training.models import Policy
from apr_agents.training.runs import rehearse
from apr_agents.training.scripts import Script, from_demonstration
from apr_agents.training.sft import SFT, evaluate
from apr_agents.training.tokenizer import build_tokenizer
from apr_agents.training.trie import Batch, Pair, Trie, collate, pack

Item = TypeVar("Item")

TOKENS = 34_000_000
WIDTHS = (64, 96, 128, 192, 256, 384, 512, 640, 768, 896, 1024, 1280)
"""Tries are padded to one of these lengths, tries of similar length together."""

BUDGETS = {0: 26, 1: 4, 2: 20, 3: 9, 4: 15, 5: 5, 6: 5, 7: 4, 8: 12}
SHARES = {
    "pair": 10, "chain": 16, "tiny": 12, "whole": 44, "wide": 16, "sums": 24, "drill": 28,
}  # fmt: skip
MERGES = {"conclusions": 58, "full": 26, "summary": 16}
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


FROM_SCRATCH = Optimization(matrix_rate=0.014, rate=2e-3, warmup=0.01, decay=0.65)
SAVE_EVERY = 500
"""Optimizer steps between two checkpoints: a few minutes."""


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

    def __call__(self, shard: int, done: float) -> Iterator[list[Batch]]:
        """The batches of one shard, a step each, tries of similar length together."""
        rng = random.Random(f"{self.seed}/{shard}")
        buckets: dict[int, list[Trie]] = defaultdict(list)
        for trie in self.tries(rng, done):
            if len(trie) <= WIDTHS[-1]:
                buckets[WIDTHS[bisect_left(WIDTHS, len(trie))]].append(trie)
        batches = []
        for width, tries in sorted(buckets.items()):
            rows = max(2, self.batch_tokens // width // 2 * 2)
            batches += [(width, tries[i : i + rows]) for i in range(0, len(tries), rows)]
        rng.shuffle(batches)
        rank, ranks = position()
        for width, tries in batches:
            if len(tries) >= ranks:
                yield [collate(tries[rank::ranks], multiple=width)]

    def tries(self, rng: random.Random, done: float = 1.0) -> Iterator[Trie]:
        """The lessons of one shard."""
        lessons = [self.lesson(rng, done) for _ in range(self.shard_size)]
        scripts = [lesson for lesson in lessons if isinstance(lesson, Script)]
        played = iter(asyncio.run(rehearse(scripts, self.tokenizer)))
        for lesson in lessons:
            if not isinstance(lesson, Script):
                yield pack(lesson)
                continue
            run, fault = next(played)
            assert run is not None, fault
            plans_only = len(lesson.calls) > 1 and rng.random() < PLANS
            yield pack(run.pairs[:1] if plans_only else run.pairs)

    def lesson(self, rng: random.Random, done: float = 1.0) -> Script | list[Pair]:
        """One lesson of the stream: a run, or a drill."""
        kind = _weighted(rng, SHARES)
        if done < self.easy and kind in ("whole", "wide"):
            kind = rng.choice(("chain", "sums", "drill"))
        if kind == "drill":
            return self.drill(rng)
        shown, merge = self.demonstration(rng, kind), _weighted(rng, MERGES)
        return from_demonstration(shown, ThreadWeaver(), merge=merge)

    def drill(self, rng: random.Random) -> list[Pair]:
        """Single operations in the notation of the demonstrations, results to be written."""
        operations = [_operation(rng) for _ in range(11)]
        asked = [self._encode(f"{left}=") for left, _ in operations]
        written = [self._encode(f"{result}\n") for _, result in operations]
        before = accumulate(
            (a + w for a, w in zip(asked, written, strict=True)), initial=list[int]()
        )
        return [
            Pair([*context, *left], result)
            for context, left, result in zip(before, asked, written, strict=False)
        ]

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


def held_out(tokenizer: PreTrainedTokenizerFast, *, seed: int, count: int = 24) -> list[Shown]:
    """Problems of every kind and the budgets that matter, and how they are to be solved."""
    rng = random.Random(seed)
    budgets = {"pair": (4,), "chain": (0, 8), "whole": (0, 2, 4, 8), "wide": (8,)}
    scripts = [
        from_demonstration(
            demonstrate(format_question(KINDS[kind](rng)), budget),
            ThreadWeaver(),
            merge="conclusions",
        )
        for kind in budgets
        for budget in budgets[kind]
        for _ in range(count)
    ]
    played = asyncio.run(rehearse(scripts, tokenizer))
    return [Shown(script, run) for script, (run, _) in zip(scripts, played, strict=True) if run]


def export(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Save the model as it ships, weights in bfloat16."""
    shipped = build_model(tokenizer)
    shipped.load_state_dict(model.state_dict())
    shipped.generation_config = GenerationConfig.from_model_config(shipped.config)
    Policy(shipped.bfloat16(), tokenizer).save(directory)


def main(
    directory: Annotated[Path, typer.Option(help="Checkpoints and log.")] = Path("runs/bundled"),
    output: Annotated[Path, typer.Option(help="Where the model is saved.")] = BUNDLED,
    tokens: Annotated[int, typer.Option(help="Tokens to train on.")] = TOKENS,
    seed: Annotated[int, typer.Option(help="Of weights and data.")] = 0,
    weights: Annotated[Path | None, typer.Option(help="A saved model to go on from.")] = None,
) -> None:
    """Train the bundled model, or go on with a run that was stopped, and save it."""
    with together():
        torch.manual_seed(seed)
        tokenizer = build_tokenizer()
        model = build_model(tokenizer)
        choose_attention(model)
        policy = Policy(model, tokenizer)
        mixture = Mixture(tokenizer, seed=seed, easy=0.15 if weights is None else 0.0)
        how = FROM_SCRATCH
        if weights is not None:
            saved = LlamaForCausalLM.from_pretrained(weights, dtype=torch.float32)
            model.load_state_dict(saved.state_dict())
            how = replace(how, matrix_rate=0.009, decay=0.97)
        settings = {"tokens": tokens, "seed": seed, "weights": weights, "how": asdict(how)}
        learner = Learner(model, directory, how, settings)
        loop = SFT(learner, mixture, tokens=tokens, save_every=SAVE_EVERY)
        problems = held_out(tokenizer, seed=1)
        started, first = time.monotonic(), loop.tokens

        def report(step: int, measured: dict[str, float]) -> None:
            if position()[0] > 0 or step % SAVE_EVERY:
                return
            speed = (loop.tokens - first) / (time.monotonic() - started)
            left = (tokens - loop.tokens) / speed / 60
            found = evaluate(policy, problems, micro_tokens=4096, precision=how.precision)
            assert learner.log is not None
            learner.log.write(step, found)
            print(
                f"{loop.tokens:,} of {tokens:,} tokens, loss {measured['loss']:.4f}, "
                f"{speed:,.0f} tokens/s, {left:.0f} minutes left\n"
                f"  {', '.join(f'{name} {share:.3f}' for name, share in found.items())}",
                flush=True,
            )

        loop.run(report)
        if position()[0] == 0:
            export(model, tokenizer, output)


if __name__ == "__main__":
    typer.run(main)
