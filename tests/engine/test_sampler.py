"""The sampler, against distributions worked out by hand."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apr_agents.engine import sampler
from apr_agents.engine.request import Generate
from apr_agents.engine.sampler import Sampler
from apr_agents.errors import InvalidOption

DRAWS = 200


def random_logits(seed: int, size: int = 12) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 2


def request(**options: Any) -> Generate:
    return Generate(**{"ids": [1], "max_tokens": 10, **options})


def reference(logits: list[float], options: dict[str, Any], context: list[int]) -> list[float]:
    """The probabilities of all tokens, one rule after the other."""
    penalty = options.get("repetition_penalty", 1.0)
    logits = [
        (x / penalty if x > 0 else x * penalty) if i in context else x for i, x in enumerate(logits)
    ]
    weights = [math.exp(x / options["temperature"]) for x in logits]
    order = sorted(range(len(weights)), key=lambda i: -weights[i])
    if options.get("top_k"):
        order = order[: options["top_k"]]
    total, kept, mass = sum(weights[i] for i in order), [], 0.0
    for i in order:
        if mass >= options.get("top_p", 1.0) and kept:
            break
        kept.append(i)
        mass += weights[i] / total
    least = options.get("min_p", 0.0) * weights[kept[0]]
    kept = [i for i in kept if weights[i] >= least]
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(weights))]


@settings(max_examples=40)
@given(
    st.integers(0, 1000),
    st.fixed_dictionaries(
        {"temperature": st.floats(0.3, 3)},
        optional={
            "top_k": st.integers(1, 14),
            "top_p": st.floats(0.05, 1),
            "min_p": st.floats(0, 0.9),
            "repetition_penalty": st.floats(0.5, 2),
        },
    ),
    st.lists(st.integers(0, 11), min_size=1),
)
def test_tokens_are_drawn_as_often_as_their_probability_says(
    seed: int, options: dict[str, Any], context: list[int]
) -> None:
    logits = random_logits(seed)
    expected = reference(logits.tolist(), options, context)
    drawing = Sampler(request(ids=context, **options))
    drawn: Counter[int | None] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        for draw in range(DRAWS):  # as even as random numbers could be
            number = torch.tensor((draw + 0.5) / DRAWS, dtype=torch.float64)
            patch.setattr(torch, "rand", lambda *_, number=number, **__: number)
            drawn[drawing.choose(logits, context).id] += 1
    for token, probability in enumerate(expected):
        assert drawn[token] == pytest.approx(DRAWS * probability, abs=1.01 if probability else 0)


def test_random_numbers_are_even() -> None:
    logits = torch.tensor([0.6, 0.3, 0.1]).log()
    drawing = Sampler(request(temperature=1.0, seed=1))
    drawn = Counter(drawing.choose(logits, [1]).id for _ in range(2000))
    assert [drawn[i] / 2000 for i in range(3)] == pytest.approx([0.6, 0.3, 0.1], abs=0.03)


@pytest.mark.parametrize("top_p", [0.2, 0.9, 0.999])
def test_a_nucleus_is_the_same_whether_or_not_all_tokens_are_sorted(
    top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = random_logits(1, size=500)
    options = {"temperature": 1.0, "top_p": top_p}
    found = [Sampler(request(seed=s, **options)).choose(logits, [1]) for s in range(50)]
    monkeypatch.setattr(sampler, "LIKELIEST", 2)
    assert found == [Sampler(request(seed=s, **options)).choose(logits, [1]) for s in range(50)]


def test_the_same_seed_draws_the_same_tokens_and_another_seed_does_not() -> None:
    logits = random_logits(3)
    draws = []
    for seed in (5, 5, 6):
        one = Sampler(request(temperature=1.0, seed=seed))
        draws.append([one.choose(logits, [1]).id for _ in range(30)])
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("temperature", [1e-30, 1e-6])
def test_a_very_low_temperature_is_greedy_and_nothing_overflows(temperature: float) -> None:
    logits = random_logits(4) * 1000
    token = Sampler(request(temperature=temperature)).choose(logits, [1])
    assert token.id == int(logits.argmax())


def test_logprobs_are_those_of_the_model_itself() -> None:
    logits = random_logits(5)
    before = logits.clone()
    options = {"temperature": 0.7, "top_k": 3, "repetition_penalty": 3.0, "logprobs": 4}
    token = Sampler(request(**options)).choose(logits, [1, 2])
    expected = logits.log_softmax(-1)
    assert token.id is not None
    assert token.logprob == float(expected[token.id])
    best = expected.topk(4)
    assert token.top == tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    assert torch.equal(logits, before)


def test_logprobs_of_no_other_token_and_of_more_than_there_are() -> None:
    logits = random_logits(6)
    none = Sampler(request(logprobs=0)).choose(logits, [1])
    assert none.logprob is not None
    assert none.top == ()
    assert len(Sampler(request(logprobs=99)).choose(logits, [1]).top) == len(logits)


def test_a_repetition_counts_once_and_generated_tokens_count_too() -> None:
    logits = torch.tensor([2.0, 1.9, -1.0, 1.7])
    one = Sampler(request(ids=[0, 0], repetition_penalty=1.15))
    context = [0, 0]
    for expected in (1, 0, 0):  # 2/1.15 < 1.9, then 1.9/1.15 and 1.7 < 2/1.15
        token = one.choose(logits, context)
        assert token.id == expected
        context = [*context, token.id]


class Only:
    """A constraint to some tokens, that notes what came."""

    def __init__(self, *allowed: int) -> None:
        self.allowed, self.accepted = list(allowed), list[int]()

    def restrict(self, logits_V: Tensor) -> None:
        kept = logits_V[self.allowed].clone()
        logits_V[:] = float("-inf")
        logits_V[self.allowed] = kept

    def accept(self, token: int) -> None:
        self.accepted.append(token)


@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_a_constraint_rules_tokens_out_and_hears_of_each_that_comes(temperature: float) -> None:
    logits, only = random_logits(7), Only(2, 9)
    before = logits.clone()
    one = Sampler(request(temperature=temperature, constraint=only))
    tokens = [one.choose(logits, [1]).id for _ in range(20)]
    assert set(tokens) <= {2, 9}
    assert only.accepted == tokens
    assert torch.equal(logits, before)


def test_a_constraint_that_allows_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="No token may come next"):
        Sampler(request(constraint=Only())).choose(random_logits(8), [1])


@pytest.mark.parametrize(
    "wrong",
    [
        {"ids": []},
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"top_k": -1},
        {"top_p": 0.0},
        {"min_p": 1.0},
        {"repetition_penalty": 0.0},
        {"logprobs": -1},
        {"seed": 2**64},
    ],
    ids=str,
)
def test_an_option_that_cannot_be_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption) as caught:
        request(**wrong)
    assert caught.value.option in wrong
