"""What is computed already: a radix tree of token ids over slots. Never sees a tensor.

A node is a stretch of tokens up to where contexts part. The context of a sequence is the
path from the root to the node it holds, and what it has computed since. Forks share the
path, so nothing is ever copied. What nobody holds stays until its slots are needed.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from typing import NamedTuple

from apr_agents.engine.pool import Pool, Run, append, split


class Node:
    """A stretch of tokens.

    Attributes:
        ids: its tokens.
        runs: their slots.
        holders: sequences whose context runs through it.
        used: when it was last held or let go.
    """

    __slots__ = ("children", "holders", "ids", "parent", "runs", "used")

    def __init__(self, parent: Node | None, ids: list[int], runs: list[Run]) -> None:
        self.parent, self.ids, self.runs = parent, ids, runs
        self.children: dict[int, Node] = {}
        self.holders = self.used = 0
        if parent is not None:
            parent.children[ids[0]] = self

    def upwards(self) -> Iterator[Node]:
        """This node and those above it, without the root."""
        node = self
        while node.parent is not None:
            yield node
            node = node.parent

    def path(self) -> list[Node]:
        """The nodes from below the root to this one."""
        return [*self.upwards()][::-1]


class Match(NamedTuple):
    """The longest computed prefix of some ids.

    Attributes:
        node: where it ends.
        within: how many tokens of that node belong to it.
        length: how many tokens it has.
    """

    node: Node
    within: int
    length: int


class Tree:
    """The cache of one engine.

    Attributes:
        version: changes when a node that is held becomes two.
        slots: slots of all nodes.
        held: slots of the nodes that somebody holds.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.version = self.slots = self.held = 0
        self.root = Node(None, [], [])
        self._clock = itertools.count(1)

    @property
    def loose(self) -> int:
        """Slots that `evict` can free."""
        return self.slots - self.held

    def match(self, ids: list[int], *, below: Node | None = None) -> Match:
        """The longest computed prefix of ``ids``. Changes nothing."""
        node = below or self.root
        within, length = len(node.ids), 0
        while length < len(ids) and within == len(node.ids):
            child = node.children.get(ids[length])
            if child is None:
                break
            node, within = child, common(child.ids, ids, length)
            length += within
        return Match(node, within, length)

    def hold(self, match: Match) -> Node:
        """Keep what was matched, until `let_go` gets the node that this returns."""
        node = self._end(match)
        self._hold(node, self.root)
        return node

    def let_go(self, node: Node) -> None:
        """The opposite of `hold`: what nobody holds may be evicted."""
        now = next(self._clock)
        for held in node.upwards():
            held.holders -= 1
            held.used = now
            if not held.holders:
                self.held -= len(held.ids)

    def insert(self, node: Node, ids: list[int], runs: list[Run]) -> Node:
        """Add what a sequence that holds ``node`` has computed behind it; it then holds the result.

        Where the tree has the same tokens already, its slots stay and these are given back.
        """
        match = self.match(ids, below=node)
        last = self._end(match)
        self._hold(last, node)
        known, new = split(runs, match.length)
        for run in known:
            self.pool.give_back(run)
        if not new:
            return last
        ids = ids[match.length :]
        self.slots += len(ids)
        self.held += len(ids)
        if last.holders == 1 and not last.children:  # the sequence's own
            last.ids += ids
            append(last.runs, new)
            return last
        child = Node(last, ids, new)
        child.holders, child.used = 1, last.used
        return child

    def evict(self, slots: int) -> int:
        """Free so many slots, the longest unused first; how many it were."""
        freed = 0
        queue = [(node.used, id(node), node) for node in self._loose_leaves()]
        heapq.heapify(queue)
        while freed < slots and queue:
            _, _, node = heapq.heappop(queue)
            count = min(len(node.ids), slots - freed)
            left = len(node.ids) - count
            node.runs, loose = split(node.runs, left)
            for run in loose:
                self.pool.give_back(run)
            freed += count
            if left:
                del node.ids[left:]
                continue
            parent = node.parent
            assert parent is not None
            del parent.children[node.ids[0]]
            if parent is not self.root and not parent.children and not parent.holders:
                heapq.heappush(queue, (parent.used, id(parent), parent))
        self.slots -= freed
        return freed

    def _loose_leaves(self) -> Iterator[Node]:
        """Nodes without children that nobody holds."""
        waiting = [self.root]
        while waiting:
            node = waiting.pop()
            waiting += node.children.values()
            if not node.children and not node.holders and node is not self.root:
                yield node

    def _hold(self, node: Node, above: Node) -> None:
        """Keep ``node`` and what lies between it and ``above``."""
        now = next(self._clock)
        for held in node.upwards():
            if held is above:
                break
            if not held.holders:
                self.held += len(held.ids)
            held.holders += 1
            held.used = now

    def _end(self, match: Match) -> Node:
        """The node that ends where the match does; the one it ends in becomes two, if need be."""
        node, length = match.node, match.within
        if length == len(node.ids):
            return node
        assert node.parent is not None
        first, others = split(node.runs, length)
        upper = Node(node.parent, node.ids[:length], first)
        upper.holders, upper.used = node.holders, node.used
        node.parent, node.ids, node.runs = upper, node.ids[length:], others
        upper.children[node.ids[0]] = node
        self.version += 1
        return upper


def common(stretch: list[int], ids: list[int], start: int = 0) -> int:
    """How many tokens at the beginning of ``stretch`` are those of ``ids`` from ``start`` on."""
    low, high = 0, min(len(stretch), len(ids) - start)
    middle = high  # most often all of them
    while low < high:
        if stretch[low:middle] == ids[start + low : start + middle]:
            low = middle
        else:
            high = middle - 1
        middle = (low + high + 1) // 2
    return low
