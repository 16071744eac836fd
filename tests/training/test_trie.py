"""Packed tries: every token once, in the context that inference sees, and nothing else in it."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from apr_agents.training.forward import allowed
from apr_agents.training.trie import Pair, by_length, collate, pack
from tests.training.runs_of_calls import calls


@given(calls())
def test_every_token_sees_the_tokens_before_it_in_its_own_context_and_nothing_else(
    pairs: list[Pair],
) -> None:
    trie = pack(pairs)
    sees = allowed(collate([trie]), None)[0, 0]
    place = 0
    for context, completion in pairs:
        path = [*context, *completion]
        for length in range(max(1, len(context)), len(path)):
            source = int(trie.sources_S[place])
            assert trie.ids_T[sees[source]].tolist() == path[:length]
            assert trie.positions_T[sees[source]].tolist() == list(range(length))
            assert int(trie.targets_S[place]) == path[length]
            place += 1
    assert place == len(trie.targets_S)


@given(calls())
def test_what_contexts_share_is_laid_down_once(pairs: list[Pair]) -> None:
    prefixes = {
        tuple(path[:length])
        for path in ([*pair.context, *pair.completion] for pair in pairs)
        for length in range(1, len(path) + 1)
    }
    assert len(pack(pairs)) == len(prefixes)


def test_what_was_joined_is_no_target() -> None:
    spawned = Pair([1, 2], [3, 4])
    threads = [Pair([1, 2, 3, 4, 5], [6, 7]), Pair([1, 2, 3, 4, 8], [9])]
    joined = Pair([1, 2, 3, 4, 5, 6, 7, 8, 9], [10])
    trie = pack([spawned, *threads, joined])
    # The first thread's text is where it was; the second's stands in another context now.
    assert trie.ids_T.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 8, 9]
    assert trie.targets_S.tolist() == [3, 4, 6, 7, 9, 10]
    assert trie.sources_S.tolist() == [1, 2, 4, 5, 10, 8]


def test_a_token_that_two_calls_wrote_is_learned_twice() -> None:
    trie = pack([Pair([1], [2, 3]), Pair([1], [2, 4])])
    assert trie.ids_T.tolist() == [1, 2, 3, 4]
    assert trie.targets_S.tolist() == [2, 3, 2, 4]


@given(st.lists(calls(), min_size=1, max_size=4), st.integers(1, 16))
def test_padding_is_seen_by_nothing_and_neither_learned_nor_counted(
    runs: list[list[Pair]], multiple: int
) -> None:
    tries = [pack(pairs) for pairs in runs]
    batch = collate(tries, multiple=multiple)
    assert batch.ids_BT.shape[1] % multiple == 0
    assert batch.tokens == sum(map(len, tries))
    for row, trie in enumerate(tries):
        padding = torch.arange(batch.ids_BT.shape[1]) >= len(trie)
        assert not allowed(batch, None)[row, 0][~padding][:, padding].any()
        assert allowed(batch, None)[row, 0][padding].sum(-1).eq(1).all()
        own = batch.rows_S == row
        assert torch.equal(batch.sources_S[own], trie.sources_S)
        assert torch.equal(batch.targets_S[own], trie.targets_S)


@given(st.lists(st.integers(1, 30), max_size=12), st.integers(1, 64))
def test_tries_of_similar_length_go_together_and_fit(lengths: list[int], most: int) -> None:
    tries = [pack([Pair([], range(length))]) for length in lengths]
    groups = list(by_length(tries, most))
    assert sorted(i for group in groups for i in group) == list(range(len(tries)))
    for group in groups:
        assert len(group) * max(lengths[i] for i in group) <= most or len(group) == 1
    assert [lengths[i] for group in groups for i in group] == sorted(lengths, reverse=True)
