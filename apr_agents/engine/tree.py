"""What is computed already: a radix tree of token ids over slots. Never sees a tensor.

A node is a stretch of tokens whose slots lie side by side. The context of a sequence is the
path from the root to the node it holds, and what it has computed since. Forks share the
path, so nothing is ever copied. What nobody holds stays until its slots are needed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from apr_agents.engine.pool import Pool, Run


class Node:
    """A stretch of tokens.

    Attributes:
        ids: its tokens.
        start: slot of the first; the others follow.
        holders: sequences whose context runs through it.
        used: when it was last held or let go.
    """

    __slots__ = ("children", "holders", "ids", "parent", "start", "used")

    def __init__(self, parent: Node | None, ids: Sequence[int], start: int) -> None:
        self.parent, self.ids, self.start = parent, list(ids), start
        self.children: dict[int, Node] = {}
        self.holders = self.used = 0

    @property
    def run(self) -> Run:
        return Run(self.start, len(self.ids))

    def path(self) -> list[Node]:
        """The nodes from below the root to this one."""
        nodes: list[Node] = []
        node = self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


class Match(NamedTuple):
    """The longest computed prefix of some ids: where it ends, and its length."""

    node: Node
    length: int


class Tree:
    """The cache of one engine.

    Attributes:
        version: changes whenever a path may be made of other nodes than before.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool, self.version = pool, 0
        self.root = Node(None, (), 0)
        self._clock = itertools.count(1)

    def match(self, ids: Sequence[int], *, below: Node | None = None) -> Match:
        """The longest computed prefix of ``ids``; a node that they leave half way is split."""
        node, length = below or self.root, 0
        while length < len(ids):
            child = node.children.get(ids[length])
            if child is None:
                break
            common = _common(child.ids, ids, length)
            length += common
            if common < len(child.ids):
                return Match(self._split(child, common), length)
            node = child
        return Match(node, length)

    def insert(self, node: Node, ids: Sequence[int], runs: Sequence[Run]) -> Node:
        """Add what a sequence that holds ``node`` has computed behind it; it then holds the result.

        Where another sequence has added the same tokens before, its slots stay and these are
        given back.
        """
        known, length = self.match(ids, below=node)
        position, last = 0, known
        for run in runs:
            pieces = self._divide(run, min(max(length - position, 0), run.length))
            self.pool.give_back(pieces[0])
            if pieces[1].length:
                first = position + pieces[0].length
                child = Node(last, ids[first : position + run.length], pieces[1].start)
                last.children[child.ids[0]] = child
                last = child
            position += run.length
        for held in last.path()[len(node.path()) :]:
            held.holders += 1
            held.used = next(self._clock)
        self.version += 1
        return last

    def hold(self, node: Node) -> None:
        """Keep ``node`` and everything above it."""
        self._count(node, 1)

    def let_go(self, node: Node) -> None:
        """The opposite of `hold`: what nobody holds may be evicted."""
        self._count(node, -1)

    def _count(self, node: Node, change: int) -> None:
        now = next(self._clock)
        for held in node.path():
            held.holders += change
            held.used = now

    def evict(self, slots: int) -> int:
        """Free at least so many slots, the longest unused first; how many it were."""
        freed = 0
        leaves = sorted(self._loose(), key=lambda node: node.used, reverse=True)
        while freed < slots and leaves:
            node = leaves.pop()
            parent = node.parent
            assert parent is not None
            del parent.children[node.ids[0]]
            self.pool.give_back(node.run)
            freed += len(node.ids)
            if parent.parent is not None and not parent.children and not parent.holders:
                # A parent was used no earlier than its children.
                position = next(
                    (i for i, other in enumerate(leaves) if other.used < parent.used), len(leaves)
                )
                leaves.insert(position, parent)
        return freed

    def _loose(self) -> list[Node]:
        """Nodes without children that nobody holds."""
        found, waiting = [], list(self.root.children.values())
        while waiting:
            node = waiting.pop()
            waiting += node.children.values()
            if not node.children and not node.holders:
                found.append(node)
        return found

    def _split(self, node: Node, length: int) -> Node:
        """A new node for the first ``length`` tokens of ``node``, which keeps the rest."""
        assert node.parent is not None
        upper = Node(node.parent, node.ids[:length], node.start)
        upper.holders, upper.used = node.holders, node.used
        node.parent.children[upper.ids[0]] = upper
        node.parent, node.ids, node.start = upper, node.ids[length:], node.start + length
        upper.children[node.ids[0]] = node
        self.version += 1
        return upper

    @staticmethod
    def _divide(run: Run, length: int) -> tuple[Run, Run]:
        return Run(run.start, length), Run(run.start + length, run.length - length)


def _common(stretch: Sequence[int], ids: Sequence[int], start: int) -> int:
    """How many tokens of ``stretch`` are those of ``ids`` from ``start`` on."""
    length = min(len(stretch), len(ids) - start)
    if list(stretch[:length]) == list(ids[start : start + length]):
        return length
    return next(i for i in range(length) if stretch[i] != ids[start + i])
