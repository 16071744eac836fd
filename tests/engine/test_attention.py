"""Attention in parts, against one softmax over everything that a token sees."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apr_agents.engine import attention, plan
from apr_agents.engine.attention import Unfit
from apr_agents.engine.plan import Gathered, Plan, Rows, Shared
from apr_agents.engine.pool import Pool, Run

CPU = torch.device("cpu")
LAYER: Any = SimpleNamespace(layer_idx=0)
GROUPS, HEADS, WIDTH = 2, 2, 8


class Forest:
    """Random sequences that share stretches of slots, in a pool that is full of noise.

    Args:
        branches: for each sequence, the stretches of its context and how many tokens it has now.
    """

    def __init__(self, branches: list[tuple[list[int], int]], lengths: list[int]) -> None:
        torch.manual_seed(0)
        self.pool = Pool(2000)
        noise = torch.randn(2000, HEADS, WIDTH)
        self.pool.store(0, torch.arange(2000), noise, noise.flip(0))
        stretches = [self.scattered(length) for length in lengths]
        self.rows: list[Rows] = []
        for names, count in branches:
            context = [stretches[name] for name in names]
            position = sum(lengths[name] for name in names)
            own = self.scattered(count)
            self.rows.append(Rows(self.tokens, count, position, context, own))

    @property
    def tokens(self) -> int:
        return sum(rows.count for rows in self.rows)

    def scattered(self, length: int) -> list[Run]:
        """Slots in several runs, with holes between them."""
        runs = []
        while length:
            run = self.pool.take(min(length, 5 + length // 2))
            assert run is not None
            self.pool.take(1)
            runs.append(run)
            length -= run.length
        return runs

    def attend(self, **options: Any) -> tuple[Tensor, Tensor]:
        """What the parts give, and what one softmax for each token gives: ``THD``."""
        torch.manual_seed(1)
        query = torch.randn(1, GROUPS * HEADS, self.tokens, WIDTH)
        key, value = torch.randn(2, 1, HEADS, self.tokens, WIDTH)
        planned = Plan(self.pool, self.rows, CPU)
        found, _ = attention._attention(LAYER, query, key, value, None, planned, **options)
        return found[0], self.reference(query[0], **options)

    def reference(
        self,
        query_HTD: Tensor,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        scaling: float = WIDTH**-0.5,
    ) -> Tensor:
        outs = []
        for rows in self.rows:
            runs = [*itertools.chain(*rows.context), *rows.own]
            slots = [slot for run in runs for slot in range(run.start, run.end)]
            for number in range(rows.count):
                seen = slots[: rows.position + number + 1]
                seen = seen[-sliding_window:] if sliding_window else seen
                key = self.pool.keys[0][seen].repeat_interleave(GROUPS, 1)
                value = self.pool.values[0][seen].repeat_interleave(GROUPS, 1)
                scores = torch.einsum("hd,shd->hs", query_HTD[:, rows.first + number], key)
                scores = scores * scaling
                if softcap is not None:
                    scores = torch.tanh(scores / softcap) * softcap
                if s_aux is not None:
                    scores = torch.cat([scores, s_aux[:, None]], 1)
                weights = scores.softmax(-1)[:, : len(seen)]
                outs.append(torch.einsum("hs,shd->hd", weights, value))
        return torch.stack(outs)


@st.composite
def forests(draw: st.DrawFn) -> Forest:
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    # As in a tree: a stretch always comes behind the same ones.
    parents = [draw(st.integers(-1, i - 1)) for i in range(len(lengths))]

    def path(name: int) -> list[int]:
        return [] if name < 0 else [*path(parents[name]), name]

    branches = draw(
        st.lists(
            st.tuples(
                st.integers(-1, len(lengths) - 1).map(path),
                st.integers(1, 4).map(lambda n: 1 if n < 3 else 3 * n),
            ),
            min_size=1,
            max_size=6,
        )
    )
    return Forest(branches, lengths)


def assert_close(pair: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-5)


@settings(max_examples=60)
@given(
    forests(),
    st.none() | st.integers(1, 60),
    st.none() | st.floats(0.5, 30),
    st.booleans(),
    st.sampled_from([1, 1 << 11, 1 << 40]),
)
def test_the_parts_together_are_one_softmax_over_all_that_a_token_sees(
    forest: Forest, window: int | None, cap: float | None, sinks: bool, worthwhile: int
) -> None:
    sink_H = torch.linspace(-1, 2, GROUPS * HEADS) if sinks else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "WORTHWHILE", worthwhile)
        assert_close(forest.attend(sliding_window=window, softcap=cap, s_aux=sink_H))


@pytest.mark.parametrize("most", [1, 700, 1 << 26])
def test_scores_that_do_not_fit_are_computed_a_few_rows_at_a_time(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "MOST_SCORES", most)
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 3, 9, 8)
    bias = torch.zeros(9, 9).masked_fill(~torch.ones(9, 9).tril().bool(), float("-inf"))
    capped = attention._attend(query, key, value, bias, 0.3, 1e7)  # so high that it does nothing
    plain = attention._attend(query, key, value, bias, 0.3, None)
    torch.testing.assert_close(capped[0], plain[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(capped[1], plain[1], rtol=1e-3, atol=1e-4)


def test_siblings_meet_their_common_prefix_in_one_product_without_copying_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "WORTHWHILE", 1 << 10)
    forest = Forest([], [])
    prefix = [Run(100, 300)]
    rows = [Rows(i, 1, 305, [prefix, [Run(10 * i, 5)]], [Run(10 * i + 5, 1)]) for i in range(8)]
    parts = Plan(forest.pool, rows, CPU).parts(0, None, GROUPS)
    shared = [part for part in parts if isinstance(part, Shared)]
    assert [(part.rows, part.slots, part.bias_QS) for part in shared] == [
        (slice(0, 8), slice(100, 400), None)
    ]
    (gathered,) = (part for part in parts if isinstance(part, Gathered))
    assert gathered.slots_RS.shape == (8, 6)


def test_many_short_runs_are_copied_for_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "WORTHWHILE", 64 * 128)
    forest = Forest([], [])
    prefix = [*(Run(10 * i, 4) for i in range(30)), Run(400, 200)]
    rows = [Rows(i, 1, 320, [prefix], [Run(1000 + i, 1)]) for i in range(4)]
    parts = Plan(forest.pool, rows, CPU).parts(0, None, GROUPS)
    assert next(part.slots for part in parts if isinstance(part, Shared)) == slice(400, 600)
    assert len(parts) == 3  # the long run, the short ones, and each row's own slot


def test_a_window_leaves_out_whatever_nobody_sees() -> None:
    forest = Forest([], [])
    rows = [Rows(0, 4, 500, [[Run(0, 300)], [Run(600, 200)]], [Run(900, 4)])]
    parts = Plan(forest.pool, rows, CPU).parts(0, 50, GROUPS)
    slots = [part.slots for part in parts if isinstance(part, Shared)]
    assert slots == [slice(751, 800), slice(900, 904)]


@pytest.mark.parametrize("worthwhile", [1, 1 << 40])
def test_later_tokens_see_less_of_a_stretch_than_the_first_ones(
    worthwhile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "WORTHWHILE", worthwhile)
    only_the_first = Forest([([0, 1], 5)], [10, 3])
    assert_close(only_the_first.attend(sliding_window=5))
    not_its_first_run = Forest([([0], 3)], [12])
    assert len(not_its_first_run.rows[0].context[0]) == 2
    assert_close(not_its_first_run.attend(sliding_window=3))


@pytest.mark.parametrize("other", [*attention.SPECIAL, "attention_mask"])
def test_an_argument_that_would_change_the_result_is_never_ignored(other: str) -> None:
    query = torch.zeros(1, GROUPS * HEADS, 1, WIDTH)
    planned = Plan(Pool(4), [Rows(0, 1, 0, [], [Run(0, 1)])], CPU)
    mask = query if other == "attention_mask" else None
    others = {} if mask is not None else {other: query}
    with pytest.raises(Unfit):
        attention._attention(LAYER, query, query, query, mask, planned, **others)
