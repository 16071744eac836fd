"""Trie packing: one run, every token once (ThreadWeaver, section on training).

The model calls of a parallel run share prefixes. Their union is a trie: flatten it
depth-first, give every token its depth as position id, and let it attend to its
ancestors only. The loss over the packed trie then equals the loss over the separate
(context, completion) pairs that inference meets.

Knows token ids; never text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """A run of tokens without a branch; ``supervised`` when the model is to learn to write it."""

    ids: tuple[int, ...]
    supervised: bool
    children: tuple[Segment, ...] = field(default=())

    def __len__(self) -> int:
        """Tokens in this segment and everything below it."""
        return len(self.ids) + sum(map(len, self.children))


class PackedTrie(NamedTuple):
    """A trie laid flat. ``T`` tokens, depth-first."""

    ids_T: Tensor
    positions_T: Tensor
    """Depth of the token: its position in the context that inference would see."""
    parents_T: Tensor
    """Index of the preceding token of the same branch, which predicts this one; -1 at the root."""
    supervised_T: Tensor
    allowed_TT: Tensor
    """``allowed[query, key]``: whether key is query itself or one of its ancestors."""


class Batch(NamedTuple):
    """``B`` packed tries, padded to ``T`` tokens; ``S`` supervised tokens in all."""

    ids_BT: Tensor
    positions_BT: Tensor
    allowed_B1TT: Tensor
    sources_S: Tensor
    """Flat index into ``B*T`` of the token whose logits predict the target."""
    targets_S: Tensor
    tokens: int
    """Tokens without padding."""


def pack(root: Segment) -> PackedTrie:
    """Lay a trie flat, depth-first."""
    total = len(root)
    ids: list[int] = []
    positions: list[int] = []
    parents: list[int] = []
    supervised: list[bool] = []
    allowed_TT = torch.zeros(total, total, dtype=torch.bool)

    def place(segment: Segment, depth: int, parent: int, ancestors: list[slice]) -> None:
        start, count = len(ids), len(segment.ids)
        own = slice(start, start + count)
        ids.extend(segment.ids)
        positions.extend(range(depth, depth + count))
        parents.extend([parent, *range(start, start + count - 1)] if count else [])
        supervised.extend([segment.supervised] * count)
        for ancestor in ancestors:
            allowed_TT[own, ancestor] = True
        allowed_TT[own, own] = torch.ones(count, count, dtype=torch.bool).tril()
        last = start + count - 1 if count else parent
        for child in segment.children:
            place(child, depth + count, last, [*ancestors, own])

    place(root, 0, -1, [])
    return PackedTrie(
        torch.tensor(ids),
        torch.tensor(positions),
        torch.tensor(parents),
        torch.tensor(supervised),
        allowed_TT,
    )


def branches(root: Segment) -> Iterator[tuple[list[int], list[int]]]:
    """The separate (context, completion) pairs of a trie: one for each supervised segment."""

    def walk(segment: Segment, context: list[int]) -> Iterator[tuple[list[int], list[int]]]:
        if segment.supervised:
            yield context, list(segment.ids)
        for child in segment.children:
            yield from walk(child, context + list(segment.ids))

    return walk(root, [])


def collate(tries: Sequence[PackedTrie], *, multiple: int = 1) -> Batch:
    """Pad tries to a common length, rounded up to ``multiple``."""
    rows = len(tries)
    longest = max(len(trie.ids_T) for trie in tries)
    width = -(-longest // multiple) * multiple
    ids_BT = torch.zeros(rows, width, dtype=torch.long)
    positions_BT = torch.zeros(rows, width, dtype=torch.long)
    # Padding sees itself only: a row without any key would give NaN.
    allowed_BTT = torch.eye(width, dtype=torch.bool).repeat(rows, 1, 1)
    sources, targets = [], []
    for row, trie in enumerate(tries):
        length = len(trie.ids_T)
        ids_BT[row, :length] = trie.ids_T
        positions_BT[row, :length] = trie.positions_T
        allowed_BTT[row, :length, :length] = trie.allowed_TT
        learned = trie.supervised_T & (trie.parents_T >= 0)
        sources.append(trie.parents_T[learned] + row * width)
        targets.append(trie.ids_T[learned])
    return Batch(
        ids_BT,
        positions_BT,
        allowed_BTT.unsqueeze(1),
        torch.cat(sources),
        torch.cat(targets),
        sum(len(trie.ids_T) for trie in tries),
    )
