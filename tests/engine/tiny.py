"""Tiny random models, what they say by themselves, and an engine run in one go."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from apr_agents.engine.engine import Engine, EngineOptions
from apr_agents.engine.request import Generate, Token

VOCABULARY = 89
CONTEXT = 256
PATIENCE = 60.0
"""Seconds after which a request counts as stuck."""

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
MIXED = ["sliding_attention", "full_attention"]

FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Llama, one key-value head for each head": {"num_key_value_heads": 4},
    "Qwen2": {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    "Qwen3": {"head_dim": 16},
    "Gemma2": {
        "head_dim": 16,
        "sliding_window": 16,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 8,
    },
    "Gemma3": {
        "head_dim": 16,
        "sliding_window": 16,
        "layer_types": MIXED,
        "query_pre_attn_scalar": 8,
    },
    "Mistral": {"sliding_window": 16},
    "Phi3": {"sliding_window": 24},
    "Olmo2": {},
    "Cohere2": {"sliding_window": 16, "layer_types": MIXED},
    "GPTNeoX": {},
    "GptOss": {
        "head_dim": 16,
        "sliding_window": 16,
        "layer_types": MIXED,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
}
"""What makes each family special; ``GptOss`` has attention sinks and experts."""


@cache
def original(family: str) -> PreTrainedModel:
    """The model as transformers has it. Never hand it to an engine."""
    torch.manual_seed(7)
    name = family.partition(",")[0]
    text = "Text" if name == "Gemma3" else ""
    config = getattr(transformers, f"{name}{text}Config")(**{**SHAPE, **FAMILIES[family]})
    model: PreTrainedModel = getattr(transformers, f"{name}ForCausalLM")(config)
    return model.float().eval()


def fresh(family: str = "Llama") -> PreTrainedModel:
    """A copy of the model for an engine to have."""
    return copy.deepcopy(original(family))


@torch.no_grad()
def generated(family: str, ids: Sequence[int], count: int) -> list[int]:
    """What transformers' own `generate` makes of a prompt, greedily."""
    output: torch.Tensor = original(family).generate(  # type: ignore[operator]
        torch.tensor([list(ids)]), max_new_tokens=count, do_sample=False
    )
    return output[0, len(ids) :].tolist()


@torch.no_grad()
def is_greedy(prompt: Sequence[int], output: Sequence[int], family: str = "Llama") -> bool:
    """Whether each token of ``output`` is the likeliest, as one plain forward pass has it."""
    ids = torch.tensor([[*prompt, *output]])
    logits = original(family)(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return bool(output) and logits.argmax(-1).tolist() == list(output)


def prompt(length: int, seed: int = 0) -> list[int]:
    """Random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (length,), generator=generator).tolist()


class Heard:
    """Everything a request has heard, and whether it has ended."""

    def __init__(self) -> None:
        self.tokens: list[Token] = []
        self.ended = threading.Event()

    def __call__(self, token: Token) -> None:
        assert not self.ended.is_set(), "a token after the last one"
        self.tokens.append(token)
        if token.finish is not None:
            self.ended.set()

    def wait(self) -> Heard:
        assert self.ended.wait(PATIENCE), "the request is stuck"
        return self

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens if token.id is not None]

    @property
    def finish(self) -> str | None:
        return self.tokens[-1].finish


def ask(engine: Engine, *requests: Generate) -> list[Heard]:
    """Ask for all at once, and wait for all."""
    answers = [Heard() for _ in requests]
    for request, answer in zip(requests, answers, strict=True):
        engine.submit(request, answer)
    return [answer.wait() for answer in answers]


@contextmanager
def running(family: str = "Llama", **options: int) -> Iterator[Engine]:
    """An engine; at the end, it must not have lost a slot."""
    engine = Engine(fresh(family), EngineOptions(**{"cache_tokens": 4096, **options}))
    try:
        yield engine
    finally:
        engine.stop()
    assert_nothing_leaks(engine)


def assert_nothing_leaks(engine: Engine) -> None:
    """Nobody holds anything any more, and what the cache holds can be freed."""
    tree, pool = engine.scheduler.tree, engine.pool
    assert engine.load == (0, 0)
    assert tree.held == 0
    assert pool.free + tree.loose == pool.slots
    tree.evict(pool.slots)
    assert pool.free == pool.slots
    assert not tree.root.children


class Steps:
    """Runs an engine step by step in the test's own thread."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        engine._thread = threading.current_thread()  # it is not to start one

    def step(self) -> None:
        self.engine._take_orders()
        self.engine._step()

    def until(self, holds: Callable[[], bool], most: int = 2000) -> int:
        """Steps until something holds; how many it took."""
        for count in range(most):
            if holds():
                return count
            self.step()
        raise AssertionError("it never came to that")
