"""Trie packing: one run, every token once (ThreadWeaver, section on training).

The model calls of a parallel run share prefixes. Their union is a trie: flatten it
depth-first, give every token its depth as position, and let it attend to its ancestors
only. The loss over the packed trie then equals the loss over the separate (context,
completion) pairs that inference meets. What was joined is context only, so it is no target.

Knows token ids; never text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from apr_agents.engine.tree import common


class Pair(NamedTuple):
    """One model call, as token ids: what the model read and what it wrote."""

    context: Sequence[int]
    completion: Sequence[int]


class Trie(NamedTuple):
    """Pairs laid flat: ``T`` tokens, depth-first; ``S`` of them to be learned.

    A token that several pairs wrote in the same context is learned as often as it was written.
    """

    ids_T: Tensor
    positions_T: Tensor
    """Depth of the token: its position in the contexts that inference sees."""
    ends_T: Tensor
    """Where its descendants end: query sees key if ``key <= query < ends_T[key]``."""
    sources_S: Tensor
    """Index of the token whose logits predict the target."""
    targets_S: Tensor

    def __len__(self) -> int:
        return len(self.ids_T)


class Batch(NamedTuple):
    """``B`` tries, padded to ``T`` tokens; ``S`` targets in all, row by row."""

    ids_BT: Tensor
    positions_BT: Tensor
    ends_BT: Tensor
    rows_S: Tensor
    """The row of each target."""
    sources_S: Tensor
    """Index in that row of the token whose logits predict it."""
    targets_S: Tensor
    tokens: int
    """Tokens without padding."""

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        moved = {name: x.to(device) for name, x in self._asdict().items() if name != "tokens"}
        return self._replace(**moved)


class _Node:
    """A stretch of tokens up to where contexts part."""

    __slots__ = ("children", "ids", "start")

    def __init__(self, ids: list[int]) -> None:
        self.ids, self.start = ids, 0
        self.children: dict[int, _Node] = {}

    def insert(self, path: list[int]) -> None:
        """Add a path that begins below this node."""
        node, at = self, 0
        while at < len(path):
            child = node.children.get(path[at])
            if child is None:
                node.children[path[at]] = _Node(path[at:])
                return
            shared = common(child.ids, path, at)
            if shared < len(child.ids):
                child.split(shared)
            node, at = child, at + shared

    def split(self, length: int) -> None:
        """Leave the first ``length`` tokens here and move the others into a child."""
        below = _Node(self.ids[length:])
        below.children = self.children
        self.ids, self.children = self.ids[:length], {below.ids[0]: below}

    def walk(self, depth: int = 0) -> Iterator[tuple[_Node, int]]:
        """This node and all below it, depth-first, each with its depth."""
        yield self, depth
        for child in self.children.values():
            yield from child.walk(depth + len(self.ids))

    def places(self, path: list[int]) -> list[int]:
        """Where the tokens of a path below this node lie flat."""
        node, places = self, list[int]()
        while len(places) < len(path):
            node = node.children[path[len(places)]]
            places += range(node.start, node.start + len(node.ids))
        return places[: len(path)]


def pack(pairs: Iterable[Pair]) -> Trie:
    """Lay pairs flat. Those without a common prefix become tries side by side."""
    paths = [(len(pair.context), [*pair.context, *pair.completion]) for pair in pairs]
    root = _Node([])
    for _, path in paths:
        root.insert(path)
    ids: list[int] = []
    positions: list[int] = []
    nodes = list(root.walk())
    for node, depth in nodes:
        node.start = len(ids)
        ids += node.ids
        positions += range(depth, depth + len(node.ids))
    ends = [0] * len(ids)
    for node, _ in reversed(nodes):
        below = [*node.children.values()]
        end = ends[below[-1].start] if below else node.start + len(node.ids)
        ends[node.start : node.start + len(node.ids)] = [end] * len(node.ids)
    sources: list[int] = []
    targets: list[int] = []
    for read, path in paths:
        places = root.places(path)
        first = max(read, 1)  # nothing predicts the first token of all
        sources += places[first - 1 : -1]
        targets += path[first:]
    return Trie(*map(_integers, (ids, positions, ends, sources, targets)))


def _integers(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.long)


def collate(tries: Sequence[Trie], *, multiple: int = 1) -> Batch:
    """Pad tries to a common length, rounded up to ``multiple``."""
    width = -(-max(map(len, tries)) // multiple) * multiple
    ids_BT = torch.zeros(len(tries), width, dtype=torch.long)
    positions_BT = torch.zeros_like(ids_BT)
    # Padding sees itself only, and nothing sees it.
    ends_BT = torch.arange(1, width + 1).repeat(len(tries), 1)
    for row, trie in enumerate(tries):
        ids_BT[row, : len(trie)] = trie.ids_T
        positions_BT[row, : len(trie)] = trie.positions_T
        ends_BT[row, : len(trie)] = trie.ends_T
    return Batch(
        ids_BT,
        positions_BT,
        ends_BT,
        torch.cat([torch.full_like(trie.sources_S, row) for row, trie in enumerate(tries)]),
        torch.cat([trie.sources_S for trie in tries]),
        torch.cat([trie.targets_S for trie in tries]),
        sum(map(len, tries)),
    )


def by_length(tries: Sequence[Trie], most_tokens: int) -> Iterator[list[int]]:
    """Indices of tries of similar length that fit, padded, into ``most_tokens``.

    The longest come first, so that what does not fit into memory fails at once. A trie that is
    longer than that is alone.
    """
    order = sorted(range(len(tries)), key=lambda i: -len(tries[i]))
    while order:
        rows = max(1, most_tokens // max(1, len(tries[order[0]])))
        yield order[:rows]
        order = order[rows:]
