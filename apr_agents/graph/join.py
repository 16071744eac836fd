"""How many results a parent waits for, and what ends the threads it no longer needs."""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from apr_agents.errors import InvalidOption
from apr_agents.graph.state import Thread
from apr_agents.strategies.base import Strategy
from apr_agents.types import ThreadResult

NOT_NEEDED = "the other threads had decided"

MOST_BLOCKS = 1000
"""Blocks that are watched at once. Those of a run that was broken off are never joined: the oldest
are forgotten."""


class JoinPolicy(ABC):
    """Decides when a block is settled, though some of its threads still run.

    A policy that raises decides nothing: the block goes on as if it were not settled and had
    no verdict, and a note says so. A thread that had asked a human, by ``interrupt()``, before
    its block was settled still holds the run up; resumed with an answer or with ``None``, it
    is cancelled. (In a process that did not see the block settled, it goes on instead.)
    """

    name: str

    @abstractmethod
    def settled(self, finished: Sequence[ThreadResult], threads: int) -> bool:
        """Whether the results that are in settle a block of so many threads."""

    def verdict(self, results: Sequence[ThreadResult]) -> str | None:
        """One line that stands for all results; ``None``: the merge policy shows them."""
        return None


class All(JoinPolicy):
    """Every thread."""

    name = "all"

    def settled(self, finished: Sequence[ThreadResult], threads: int) -> bool:
        return len(finished) >= threads


@dataclass(frozen=True)
class FirstSuccess(JoinPolicy):
    """The first thread whose result is accepted.

    Args:
        accept: a predicate or verifier; by default any thread that is done. One that raises
            accepts nothing.
    """

    accept: Callable[[ThreadResult], bool] = lambda result: True
    name: str = "first_success"

    def settled(self, finished: Sequence[ThreadResult], threads: int) -> bool:
        return len(finished) >= threads or any(map(self._accepts, finished[-1:]))

    def verdict(self, results: Sequence[ThreadResult]) -> str | None:
        winner = next((result for result in results if self._accepts(result)), None)
        if winner is None:
            return None
        return f"success of thread {winner.id}: {winner.conclusion}"

    def _accepts(self, result: ThreadResult) -> bool:
        try:
            return result.status == "done" and bool(self.accept(result))
        except Exception:
            return False


@dataclass(frozen=True)
class KOfN(JoinPolicy):
    """The first ``k`` threads that are done."""

    k: int = 1

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InvalidOption("k", self.k, "a whole number of at least 1")

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.k}_of_n"

    def settled(self, finished: Sequence[ThreadResult], threads: int) -> bool:
        done = sum(result.status == "done" for result in finished)
        return done >= self.k or len(finished) >= threads


@dataclass(frozen=True)
class Vote(JoinPolicy):
    """What most threads say; settled once no other answer can overtake.

    Args:
        ballot: what of a conclusion is counted; by default its text, spaces and case aside.
            A conclusion on which it raises has no vote.
    """

    ballot: Callable[[str], str] = lambda conclusion: " ".join(conclusion.split()).casefold()
    name: str = "vote"

    def settled(self, finished: Sequence[ThreadResult], threads: int) -> bool:
        open_votes = threads - len(finished)
        votes = [count for _, count in self._tally(finished).most_common(2)]
        leading, second = [*votes, 0, 0][:2]
        return open_votes == 0 or leading > second + open_votes

    def verdict(self, results: Sequence[ThreadResult]) -> str | None:
        tally = self._tally(results)
        if not tally:
            return None
        ballots = self._ballots(results)
        said = {ballots[r.id]: r.conclusion for r in reversed(results) if r.id in ballots}
        counts = "; ".join(f"{count} × {said[vote]}" for vote, count in tally.most_common())
        return f"vote of {tally.total()} threads: {counts}"

    def _tally(self, results: Sequence[ThreadResult]) -> Counter[str]:
        return Counter(self._ballots(results).values())

    def _ballots(self, results: Sequence[ThreadResult]) -> dict[str, str]:
        """What each thread that is done votes for, by its id."""
        ballots = {}
        for result in results:
            # A conclusion on which the user's function raises is no vote.
            with suppress(Exception):
                if result.status == "done":
                    ballots[result.id] = str(self.ballot(result.conclusion))
        return ballots


@dataclass(frozen=True)
class AsPlanned(JoinPolicy):
    """What a strategy needs of its own blocks."""

    strategy: Strategy

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.strategy.name

    def settled(self, finished: Sequence[ThreadResult], threads: int) -> bool:
        return self.strategy.settled(finished, threads)


STANDARD: dict[str, JoinPolicy] = {
    policy.name: policy for policy in (All(), FirstSuccess(), Vote())
}


def resolve_join(join: str | JoinPolicy) -> JoinPolicy:
    """The policy called ``join``: ``all``, ``first_success``, ``vote``, or such as ``2_of_n``.

    Raises:
        InvalidOption: no policy has that name.
    """
    if isinstance(join, JoinPolicy):
        return join
    if join in STANDARD:
        return STANDARD[join]
    if counted := re.fullmatch(r"([1-9][0-9]{0,5})_of_n", join):
        return KOfN(int(counted[1]))
    raise InvalidOption("join", join, "'all', 'first_success', 'vote' or such as '2_of_n'")


@dataclass
class _Block:
    """A block at work: results by thread, in the order in which they came."""

    finished: dict[str, ThreadResult] = field(default_factory=dict)
    lanes: set[str] = field(default_factory=set)
    settled: bool = False
    fault: Exception | None = None

    def settle(self, policy: JoinPolicy, threads: int) -> bool:
        """Whether its results settle it now, if they did not before."""
        if self.settled:
            return False
        try:
            self.settled = bool(policy.settled(list(self.finished.values()), threads))
        except Exception as error:
            self.fault = error
        return self.settled

    def is_without(self, thread_id: str) -> bool:
        """Whether it is settled, and this thread not needed. A lane always is: it is the parent."""
        return self.settled and thread_id not in self.finished and thread_id not in self.lanes


class Races:
    """The blocks whose threads run in this process; ends a block's losers once it is settled.

    Live and only an optimization: after a restart a block that was settled in another process
    just runs to its end.
    """

    def __init__(self) -> None:
        self._running: dict[asyncio.Timeout, tuple[str, str]] = {}
        self._blocks: dict[tuple[str, str], _Block] = {}

    @contextmanager
    def running(self, thread: Thread, deadline: asyncio.Timeout) -> Iterator[None]:
        """While this holds, losing a race ends what ``deadline`` guards."""
        if thread.outline is not None and thread.outline.is_lane:
            self._block(thread.run, thread.id).lanes.add(thread.id)
        if self.lost(thread.run, thread.id):
            deadline.reschedule(0)
        self._running[deadline] = (thread.run, thread.id)
        try:
            yield
        finally:
            del self._running[deadline]

    def finished(self, run: str, result: ThreadResult, policy: JoinPolicy, threads: int) -> None:
        """A thread of a block of so many has ended; if that settles it, the others end too."""
        if isinstance(policy, All):
            return
        block = self._block(run, result.id)
        block.finished.pop(result.id, None)  # after a restart it is told once more
        block.finished[result.id] = result
        if not block.settle(policy, threads):
            return
        for deadline, (other, thread) in list(self._running.items()):
            if other == run and self.lost(run, thread) and not deadline.expired():
                deadline.reschedule(0)

    def lost(self, run: str, thread_id: str) -> bool:
        """Whether the thread, or one above it, belongs to a block that is settled without it."""
        path = thread_id
        while "." in path:
            parent = path.rpartition(".")[0]
            block = self._blocks.get((run, parent))
            if block is not None and block.is_without(path):
                return True
            path = parent
        return False

    def joined(self, thread: Thread) -> Exception | None:
        """The block that ``thread`` waited for is over: forget it. What its policy raised."""
        block = self._blocks.pop((thread.run, thread.id), None)
        return block.fault if block is not None else None

    def _block(self, run: str, thread_id: str) -> _Block:
        key = (run, thread_id.rpartition(".")[0])
        if key not in self._blocks and len(self._blocks) >= MOST_BLOCKS:
            self._blocks.pop(next(iter(self._blocks)))
        return self._blocks.setdefault(key, _Block())
