"""Which sequences compute what in the next step. Knows ids and slots; never tensors."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from apr_agents.engine.pool import Pool, Run, append, length_of, split
from apr_agents.engine.request import Generate
from apr_agents.engine.tree import Match, Node, Tree, common

GROWTH = 32
"""Slots that a sequence reserves at least while it generates, and that are kept free for it."""

ALIKE = 16
"""Tokens that a prompt must share with one under way to wait for it rather than repeat it."""


@dataclass(eq=False)
class Sequence:
    """A request at work.

    Attributes:
        number: requests that came before.
        ids: prompt and generated tokens.
        computed: how many of them have keys and values.
        furthest: how many ever had; more than ``computed`` after it had to make way.
        rooted: how many have theirs in the tree.
        node: what it holds there; ``None`` while it waits and when it has ended.
        own: slots of the others that are computed.
        spare: slots that it has reserved for its next tokens.
        due: how many of those the present step uses.
        cached: tokens of its prompt that were computed before it came.
        leader: who is about to compute the first ``alike`` tokens, for it to wait for.
    """

    request: Generate
    number: int
    ids: list[int]
    computed: int = 0
    furthest: int = 0
    rooted: int = 0
    node: Node | None = None
    own: list[Run] = field(default_factory=list)
    spare: list[Run] = field(default_factory=list)
    due: int = 0
    cached: int | None = None
    leader: Sequence | None = None
    alike: int = 0
    _shared: tuple[int, list[list[Run]]] = (-1, [])

    @property
    def program(self) -> str | int:
        """Its program; a request without one is a program of its own."""
        return self.request.program or self.number

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

    @property
    def wanted(self) -> int:
        """Slots it soon needs besides those it has: for its prompt and its next tokens."""
        soon = len(self.ids) - 1 + min(GROWTH, self.left)
        return max(0, soon - self.computed - length_of(self.spare))

    def root(self, node: Node, length: int) -> None:
        """Have its context begin with the ``length`` tokens that end with ``node``."""
        self.node, self.rooted, self.own, self._shared = node, length, [], (-1, [])

    def context(self, tree: Tree) -> list[list[Run]]:
        """Slots of what is computed: a list for each node of the tree, and one for its own."""
        if self._shared[0] != tree.version:
            assert self.node is not None
            self._shared = (tree.version, [node.runs for node in self.node.path()])
        shared = self._shared[1]
        return [*shared, [*self.own]] if self.own else shared


@dataclass(frozen=True)
class Work:
    """The part of a step that belongs to one sequence: its next ``count`` tokens.

    Attributes:
        context: slots of all tokens before them, a list for each stretch that sequences share.
        own: their slots.
    """

    sequence: Sequence
    count: int
    context: list[list[Run]]
    own: list[Run]

    @property
    def samples(self) -> bool:
        """Whether a new token follows."""
        return self.sequence.computed + self.count == len(self.sequence.ids)

    @property
    def prefilled(self) -> int:
        """How many of the tokens belong to the prompt or are computed once more."""
        known = max(len(self.sequence.request.ids), self.sequence.furthest)
        return max(0, min(self.count, known - self.sequence.computed))


class Scheduler:
    """Continuous batching over one tree.

    Args:
        most_running: sequences that compute in one step.
        most_tokens: tokens that one step computes, as far as prompts are concerned.

    Attributes:
        waiting: sequences that wait for their turn, by number.
        running: sequences that are computed, likewise.
    """

    def __init__(self, pool: Pool, *, most_running: int, most_tokens: int) -> None:
        self.pool, self.tree = pool, Tree(pool)
        self.most_running, self.most_tokens = most_running, most_tokens
        self.waiting: dict[int, Sequence] = {}
        self.running: dict[int, Sequence] = {}
        self._news = False  # whether anything has happened that might let somebody in
        self._promised = 0  # slots that those who run soon need, while others are let in

    def add(self, request: Generate, number: int) -> Sequence:
        """Have a request wait for its turn; its ids and what it generates must fit the pool."""
        sequence = Sequence(request, number, list(request.ids))
        self.waiting[number] = sequence
        self._news = True
        return sequence

    def next(self) -> list[Work]:
        """What to compute now: something, as long as there are sequences."""
        self._admit()
        order = self._in_order()
        work: list[Work] = []
        room = self.most_tokens
        for place, sequence in enumerate(order):
            pending = len(sequence.ids) - sequence.computed
            count = pending if pending == 1 else min(pending, room)
            if sequence.node is None or count < 1:
                continue
            sequence.due = count
            while not self._reserve(sequence, count):
                later = [other for other in order[place + 1 :] if other.node is not None]
                if not later:
                    break
                self._preempt(later[-1])
            else:
                room -= count if pending > 1 else 0
                own, _ = split(sequence.spare, count)
                work.append(Work(sequence, count, sequence.context(self.tree), own))
        assert work or not (self.waiting or self.running)
        return work

    def computed(self, work: Work) -> None:
        """The work is done: others can see the keys and values of its prompt tokens."""
        sequence = work.sequence
        done, sequence.spare = split(sequence.spare, work.count)
        append(sequence.own, done)
        sequence.due = 0
        sequence.computed += work.count
        sequence.furthest = max(sequence.furthest, sequence.computed)
        if work.count > 1 or sequence.computed == len(sequence.request.ids):
            self._publish(sequence)
            self._news = True

    def finish(self, sequence: Sequence) -> None:
        """The sequence has ended; what it has computed stays in the tree."""
        self._news = True
        self.waiting.pop(sequence.number, None)
        if self.running.pop(sequence.number, None) is not None:
            self._leave(sequence)

    # --- who runs ----------------------------------------------------------------

    def _in_order(self) -> list[Sequence]:
        """Who runs, the most urgent first.

        Decoding comes first: it is what others wait for. Then it goes round the programs.
        """
        before: Counter[str | int] = Counter()
        keyed = []
        for number in sorted(self.running):
            sequence = self.running[number]
            keyed.append((sequence.is_prefilling, before[sequence.program], number))
            before[sequence.program] += 1
        return [self.running[number] for *_, number in sorted(keyed)]

    def _admit(self) -> None:
        """Let waiting sequences in: programs in turn, the longest critical path first."""
        if not (self.waiting and self._news):
            return
        self._news = False
        self._promised = sum(sequence.wanted for sequence in self.running.values())
        busy = Counter(sequence.program for sequence in self.running.values())
        queues: defaultdict[str | int, list[Sequence]] = defaultdict(list)
        for sequence in sorted(self.waiting.values(), key=lambda s: (s.left, -s.number)):
            queues[sequence.program].append(sequence)
        turns = [(busy[program], queue[-1].number, program) for program, queue in queues.items()]
        heapq.heapify(turns)
        leaders = [sequence for sequence in self.running.values() if sequence.is_prefilling]
        while turns:
            _, _, program = heapq.heappop(turns)
            queue = queues[program]
            sequence = queue.pop()
            if not self._follows(sequence, leaders):
                if not self._enter(sequence):
                    break
                busy[program] += 1
                leaders.append(sequence)
            if queue:
                heapq.heappush(turns, (busy[program], queue[-1].number, program))

    def _follows(self, sequence: Sequence, leaders: list[Sequence]) -> bool:
        """Whether one of ``leaders`` is about to compute much of what ``sequence`` needs."""
        leader = sequence.leader
        if leader is not None and leader.node is not None and leader.rooted < sequence.alike:
            return True
        sequence.leader = None
        known = self.tree.match(sequence.ids).length if leaders else 0
        coming = sequence.ids[known : known + ALIKE]
        for other in leaders:
            if other.ids[known : known + ALIKE] == coming and other.node is not None:
                alike = min(common(sequence.ids, other.ids), len(sequence.ids) - 1)
                if alike >= known + ALIKE:
                    sequence.leader, sequence.alike = other, alike
                    return True
        return False

    def _enter(self, sequence: Sequence) -> bool:
        """Have ``sequence`` run, if there is room for it or its program has fewer than others."""
        match = self.tree.match(sequence.ids[:-1])
        self._hold(sequence, match)
        crowd = len(self.running) + 1 - self.most_running
        short = sequence.wanted + self._promised - self.pool.free - self.tree.loose
        yielding, rivals = [], self._rivals(sequence.program)
        while self.running and (crowd > 0 or short > 0):
            other = next(rivals, None)
            if other is None:
                self._let_go(sequence)
                return False
            yielding.append(other)
            crowd -= 1
            short -= other.wanted + self._alone(other)
        for other in yielding:
            self._promised -= other.wanted
            self._preempt(other)
        self._promised += sequence.wanted
        if sequence.cached is None:
            sequence.cached = match.length
        del self.waiting[sequence.number]
        self.running[sequence.number] = sequence
        return True

    def _rivals(self, program: str | int) -> Iterator[Sequence]:
        """Who should make way for one more of ``program``: the latest of whoever runs the most."""
        shares: defaultdict[str | int, list[Sequence]] = defaultdict(list)
        for number in sorted(self.running):
            sequence = self.running[number]
            shares[sequence.program].append(sequence)
        fewer = len(shares[program]) + 1
        while (largest := max(shares.values(), key=len)) and len(largest) > fewer:
            yield largest.pop()

    def _alone(self, sequence: Sequence) -> int:
        """Slots that would be free or loose without ``sequence``."""
        assert sequence.node is not None
        in_tree = sum(len(node.ids) for node in sequence.node.upwards() if node.holders == 1)
        return in_tree + length_of(sequence.own) + length_of(sequence.spare)

    def _preempt(self, sequence: Sequence) -> None:
        """Send a sequence back to wait; it keeps its tokens, and the tree what it computed."""
        self._news = True
        del self.running[sequence.number]
        self._leave(sequence)
        self.waiting[sequence.number] = sequence

    # --- slots -------------------------------------------------------------------

    def _reserve(self, sequence: Sequence, count: int) -> bool:
        """Have slots for the next ``count`` tokens, and while it generates, for some more."""
        missing = count - length_of(sequence.spare)
        if missing <= 0:
            return True
        wanted = missing
        if count == 1:
            ahead = max(GROWTH, sequence.generated)  # so that its runs are few
            share = (self.pool.free + self.tree.loose) // len(self.running)
            wanted = max(missing, min(ahead, share, sequence.left))
        if self._free_for(wanted) < missing:
            self._trim()
        if self.pool.free < missing:
            return False
        wanted = min(wanted, self.pool.free)
        assert sequence.node is not None
        while wanted > 0:
            behind = sequence.spare or sequence.own or sequence.node.runs
            run = self.pool.take(wanted, after=behind[-1].end if behind else None)
            assert run is not None
            wanted -= run.length
            append(sequence.spare, [run])
        return True

    def _free_for(self, needed: int) -> int:
        """Free slots after evicting what is needed."""
        if self.pool.free < needed and self.tree.loose:
            self.tree.evict(max(needed - self.pool.free, self.pool.slots // 16))
        return self.pool.free

    def _trim(self) -> None:
        """Free the slots that sequences have reserved and do not use in this step."""
        for sequence in self.running.values():
            sequence.spare, unused = split(sequence.spare, sequence.due)
            self._give_back(unused)

    def _give_back(self, runs: list[Run]) -> None:
        for run in runs:
            self.pool.give_back(run)

    def _hold(self, sequence: Sequence, match: Match) -> None:
        sequence.root(self.tree.hold(match), match.length)
        sequence.computed = match.length

    def _publish(self, sequence: Sequence) -> None:
        """Put what the sequence has computed into the tree."""
        assert sequence.node is not None
        ids = sequence.ids[sequence.rooted : sequence.computed]
        sequence.root(self.tree.insert(sequence.node, ids, sequence.own), sequence.computed)

    def _let_go(self, sequence: Sequence) -> None:
        """The opposite of `_hold`."""
        assert sequence.node is not None
        self.tree.let_go(sequence.node)
        sequence.node, sequence.computed, sequence.rooted = None, 0, 0

    def _leave(self, sequence: Sequence) -> None:
        """Give up all slots; the tree keeps what was computed."""
        self._publish(sequence)
        self._give_back(sequence.spare)
        sequence.spare, sequence.due = [], 0
        self._let_go(sequence)
