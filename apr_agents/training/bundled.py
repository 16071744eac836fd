"""The recipe of the bundled model: a small Llama that splits arithmetic when it pays."""

from __future__ import annotations

import argparse
import random
import string
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from apr_agents.tasks.arithmetic import KINDS, demonstrate, format_question, random_group
from apr_agents.tasks.base import Demonstration
from apr_agents.training.demonstrations import to_trie
from apr_agents.training.sft import SFTConfig, Trainer, trie_logits
from apr_agents.training.tokenizer import build_tokenizer
from apr_agents.training.trie import Batch, PackedTrie, Segment, collate, pack

WIDTHS = (64, 96, 128, 192, 256, 384, 512, 640, 768, 896, 1024, 1280)
"""Tries are padded to one of these lengths, so that few shapes are compiled."""

BUDGETS = {0: 26, 1: 4, 2: 18, 3: 9, 4: 15, 5: 5, 6: 5, 7: 4, 8: 14}


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """About 2.2 million parameters, untrained."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=5,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


class Mixture:
    """Shards of demonstrations: every kind of problem and step gets its share."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int, tokens_per_batch: int):
        self.backend = tokenizer.backend_tokenizer
        self.eos_id = tokenizer.eos_token_id
        self.seed, self.tokens_per_batch = seed, tokens_per_batch

    def __call__(self, shard: int, progress: float) -> Iterator[Batch]:
        rng = random.Random(f"{self.seed}/{shard}")
        buckets: dict[int, list[PackedTrie]] = defaultdict(list)
        for _ in range(4000):
            trie = self.trie(rng, progress)
            if len(trie) <= WIDTHS[-1]:
                buckets[WIDTHS[bisect_left(WIDTHS, len(trie))]].append(pack(trie))
        batches = [
            (tries[start : start + rows], rows, width)
            for width, tries in sorted(buckets.items())
            if (rows := max(1, self.tokens_per_batch // width))
            for start in range(0, len(tries), rows)
        ]
        rng.shuffle(batches)
        for tries, rows, width in batches:
            yield collate(tries, multiple=width, rows=rows)

    def trie(self, rng: random.Random, progress: float = 1.0) -> Segment:
        question, budget = self.problem(rng, progress)
        if rng.random() < 0.004:
            text = junk(rng, 60)
            return self._encode(Demonstration(text, budget, thinking="", answer="?"), rng, text)
        demonstration = demonstrate(question, budget)
        text = question
        if rng.random() < 0.03:
            text = rng.choice((f"{question} {junk(rng, 30)}", f"{junk(rng, 30)} {question}"))
        return self._encode(demonstration, rng, text)

    def problem(self, rng: random.Random, progress: float) -> tuple[str, int]:
        """A question and a budget; early on the questions are short."""
        weights = (1.0, rng.uniform(0.4, 1.6), rng.uniform(0.3, 1.6))
        kind = rng.choices(
            ("pair", "chain", "tiny", "whole", "wide", "sum"), (10, 36, 8, 18, 10, 18)
        )[0]
        if progress < 0.12 and kind in ("whole", "wide"):
            kind = rng.choice(("chain", "sum"))
        if kind == "chain":
            groups = [random_group(rng, rng.randint(1, 8), weights)]
        elif kind == "sum":  # short groups: many joins for few tokens
            groups = [
                random_group(rng, rng.randint(1, 4), weights) for _ in range(rng.randint(2, 6))
            ]
        else:
            groups = KINDS[kind](rng)
        budget = rng.choices(list(BUDGETS), list(BUDGETS.values()))[0]
        question = format_question(groups)
        if len(groups) == 1 and rng.random() < 0.1:
            question = f"({question})"
        return question, budget

    def _encode(self, demonstration: Demonstration, rng: random.Random, text: str) -> Segment:
        return to_trie(
            demonstration,
            lambda s: self.backend.encode(s).ids,
            eos_id=self.eos_id,
            merge=rng.choices(("conclusions", "full", "summary"), (64, 18, 18))[0],
            summaries=rng.random() < 0.2,
            question=text,
        )


def junk(rng: random.Random, length: int) -> str:
    """Text that is no arithmetic: words, broken tags, stray digits behind letters."""
    pieces = []
    for _ in range(rng.randint(1, 6)):
        word = "".join(rng.choices(string.ascii_letters + "<>/_.;'", k=rng.randint(2, 12)))
        pieces.append(word + rng.choice(("", "", " ", "\n", ":", f" {rng.randint(0, 99)}x", "(x)")))
    return "w" + "".join(pieces)[:length] + "w"


def evaluate(
    model: PreTrainedModel, mixture: Mixture, seed: int, count: int = 48
) -> dict[str, float]:
    """Teacher-forced exactness: the share of problems of which greedy decoding gets every token."""
    rng = random.Random(seed)
    results: dict[str, float] = {}
    for kind, budget in (
        ("pair", 4), ("chain", 0), ("chain", 8), ("tiny", 8),
        ("whole", 0), ("whole", 2), ("whole", 4), ("whole", 8), ("wide", 0), ("wide", 8),
    ):  # fmt: skip
        exact = []
        for _ in range(count // 8):
            tries = [
                pack(
                    mixture._encode(
                        demonstrate(q := format_question(KINDS[kind](rng)), budget), rng, q
                    )
                )
                for _ in range(8)
            ]
            batch = collate(tries)
            eager = torch.compiler.set_stance("force_eager")
            with eager, torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                right = trie_logits(model, batch).argmax(-1) == batch.targets_S
            rows = batch.sources_S // batch.ids_BT.shape[1]
            exact += [bool(right[rows == row].all()) for row in range(8)]
        results[f"{kind}@{budget}"] = sum(exact) / len(exact)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path("runs/bundled"))
    parser.add_argument("--tokens", type=float, default=60e6)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    tokenizer = build_tokenizer()
    mixture = Mixture(tokenizer, options.seed, tokens_per_batch=8192)
    model = build_model(tokenizer)
    print(f"{model.num_parameters():,} parameters", flush=True)
    config = SFTConfig(tokens=int(options.tokens), compile=True, checkpoint_seconds=400)
    trainer = Trainer(model, mixture, options.directory, config)
    started, first = time.monotonic(), trainer.tokens

    def report(trainer: Trainer, loss: float) -> None:
        speed = (trainer.tokens - first) / (time.monotonic() - started)
        print(f"{trainer.tokens:,} tokens, loss {loss:.4f}, {speed:,.0f} tokens/s", flush=True)
        print("  ", evaluate(trainer.model, mixture, seed=1), flush=True)

    trainer.run(report)


if __name__ == "__main__":
    main()
