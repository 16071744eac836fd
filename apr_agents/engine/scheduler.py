"""Which sequences compute what in the next step. Knows ids and slots; never tensors."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from apr_agents.engine.pool import Pool, Run
from apr_agents.engine.request import Generate
from apr_agents.engine.tree import Node, Tree

GROWTH = 32
"""Slots that a sequence reserves at a time while it generates."""

ALIKE = 16
"""Tokens that a prompt must share with one under way to wait for it rather than repeat it."""


@dataclass(eq=False)
class Sequence:
    """A request at work.

    Attributes:
        ids: prompt and generated tokens.
        computed: how many of them have keys and values.
        node: what it holds in the tree; ``None`` while it waits.
        own: slots behind that, computed and reserved.
        cached: tokens of its prompt that were computed before it came.
    """

    request: Generate
    number: int
    ids: list[int]
    computed: int = 0
    node: Node | None = None
    own: list[Run] = field(default_factory=list)
    cached: int | None = None
    _shared: tuple[int, list[Run]] = (-1, [])

    @property
    def generated(self) -> int:
        return len(self.ids) - len(self.request.ids)

    @property
    def left(self) -> int:
        """Tokens it may still generate: what is left of its critical path."""
        return self.request.max_tokens - self.generated

    @property
    def is_prefilling(self) -> bool:
        return self.computed < len(self.ids) - 1

    def shared(self, tree: Tree) -> list[Run]:
        """The runs of the tree that its context consists of."""
        assert self.node is not None
        if self._shared[0] != tree.version:
            self._shared = (tree.version, [node.run for node in self.node.path()])
        return self._shared[1]

    def own_slots(self, first: int, count: int) -> list[Run]:
        """The runs of ``count`` own slots from the ``first`` on."""
        runs = []
        for run in self.own:
            skipped = min(first, run.length)
            taken = min(count, run.length - skipped)
            if taken > 0:
                runs.append(Run(run.start + skipped, taken))
            first, count = first - skipped, count - taken
        return runs


@dataclass(frozen=True)
class Work:
    """The part of a step that belongs to one sequence: its next ``count`` tokens."""

    sequence: Sequence
    count: int
    context: list[Run]
    own: list[Run]

    @property
    def samples(self) -> bool:
        """Whether a new token follows."""
        return self.sequence.computed + self.count == len(self.sequence.ids)


class Scheduler:
    """Continuous batching over one tree.

    Args:
        most_running: sequences that compute in one step.
        most_tokens: tokens that one step computes, as far as prompts are concerned.
    """

    def __init__(self, pool: Pool, *, most_running: int, most_tokens: int) -> None:
        self.pool, self.tree = pool, Tree(pool)
        self.most_running, self.most_tokens = most_running, most_tokens
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._numbers = itertools.count()

    def add(self, request: Generate) -> Sequence:
        """Have a request wait for its turn."""
        sequence = Sequence(request, next(self._numbers), list(request.ids))
        self.waiting.append(sequence)
        return sequence

    def next(self) -> tuple[list[Work], list[Sequence]]:
        """What to compute now, and the sequences that can never be: the pool is too small."""
        self._admit()
        work: list[Work] = []
        impossible: list[Sequence] = []
        room = self.most_tokens
        # Decoding first: it is what others wait for.
        for sequence in sorted(self.running, key=lambda s: (s.is_prefilling, s.number)):
            if sequence not in self.running:  # preempted for one before it
                continue
            wanted = len(sequence.ids) - sequence.computed
            count = wanted if wanted == 1 else min(wanted, room)
            if count < 1:
                continue
            if not self._reserve(sequence, count, protected=[w.sequence for w in work]):
                if len(self.running) == 1:
                    impossible.append(sequence)
                continue
            room -= count if count > 1 else 0
            work.append(self._work(sequence, count))
        return work, impossible

    def _work(self, sequence: Sequence, count: int) -> Work:
        shared = sequence.shared(self.tree)
        before = sequence.computed - sum(run.length for run in shared)
        context = [*shared, *sequence.own_slots(0, before)]
        return Work(sequence, count, context, sequence.own_slots(before, count))

    def computed(self, work: Work) -> None:
        """The work is done: its tokens can be seen by others as soon as the prompt is complete."""
        sequence = work.sequence
        sequence.computed += work.count
        if sequence.computed == len(sequence.request.ids):
            self._publish(sequence)

    def finish(self, sequence: Sequence) -> None:
        """The sequence has ended; what it has computed stays in the tree."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        self._leave(sequence)

    # --- who runs ----------------------------------------------------------------

    def _admit(self) -> None:
        """Let waiting sequences in: programs in turn, the longest critical path first."""
        busy = Counter(sequence.request.program for sequence in self.running)
        passed: list[Sequence] = []
        while self.waiting and len(self.running) < self.most_running:
            chosen = min(self.waiting, key=lambda s: (busy[s.request.program], -s.left, s.number))
            self.waiting.remove(chosen)
            match = self.tree.match(chosen.ids[:-1])
            if self._is_under_way(chosen, match.length):
                passed.append(chosen)
                continue
            self.tree.hold(match.node)
            needed = len(chosen.ids) - match.length
            if self.running and self._free_for(needed) < needed:
                self.tree.let_go(match.node)
                passed.append(chosen)
                break
            chosen.node, chosen.computed, chosen.own = match.node, match.length, []
            if chosen.cached is None:
                chosen.cached = match.length
            busy[chosen.request.program] += 1
            self.running.append(chosen)
        self.waiting += passed

    def _is_under_way(self, sequence: Sequence, known: int) -> bool:
        """Whether a running prompt is about to compute much of what ``sequence`` needs."""
        for other in self.running:
            if other.is_prefilling:
                alike = _common(sequence.ids, other.ids)
                if min(alike, len(sequence.ids) - 1) >= known + ALIKE:
                    return True
        return False

    # --- slots -------------------------------------------------------------------

    def _free_for(self, needed: int) -> int:
        """Free slots after evicting what is needed."""
        if self.pool.free < needed:
            self.tree.evict(max(needed - self.pool.free, self.pool.slots // 16))
        return self.pool.free

    def _reserve(self, sequence: Sequence, count: int, *, protected: Iterable[Sequence]) -> bool:
        """Have slots for the next ``count`` tokens, if need be at the cost of later sequences."""
        used = sequence.computed - sum(run.length for run in sequence.shared(self.tree))
        missing = used + count - sum(run.length for run in sequence.own)
        if missing <= 0:
            return True
        wanted = max(missing, min(GROWTH, sequence.left)) if count == 1 else missing
        kept = {id(s) for s in protected} | {id(sequence)}
        while self._free_for(missing) < missing:
            others = [s for s in self.running if id(s) not in kept]
            if not others:
                return False
            self._preempt(max(others, key=lambda s: s.number))
        wanted = min(wanted, self.pool.free)
        while wanted > 0:
            after = sequence.own[-1].end if sequence.own else None
            run = self.pool.take(wanted, after=after)
            assert run is not None
            wanted -= run.length
            if sequence.own and sequence.own[-1].end == run.start:
                run = Run(sequence.own[-1].start, sequence.own.pop().length + run.length)
            sequence.own.append(run)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Send a sequence back to wait; it keeps its tokens, and the tree what it computed."""
        self.running.remove(sequence)
        self._leave(sequence)
        self.waiting.append(sequence)

    def _publish(self, sequence: Sequence) -> None:
        """Put what the sequence has computed into the tree, and keep what it has reserved."""
        assert sequence.node is not None
        first = sum(run.length for run in sequence.shared(self.tree))
        count = sequence.computed - first
        runs, rest = sequence.own_slots(0, count), sequence.own_slots(count, self.pool.slots)
        ids = sequence.ids[first : sequence.computed]
        sequence.node = self.tree.insert(sequence.node, ids, runs)
        sequence.own = rest

    def _leave(self, sequence: Sequence) -> None:
        assert sequence.node is not None
        self._publish(sequence)
        for run in sequence.own:
            self.pool.give_back(run)
        self.tree.let_go(sequence.node)
        sequence.node, sequence.own, sequence.computed = None, [], 0


def _common(first: list[int], second: list[int]) -> int:
    length = min(len(first), len(second))
    if first[:length] == second[:length]:
        return length
    return next(i for i in range(length) if first[i] != second[i])
