"""How far a run may go, and how that allowance is handed down from thread to thread.

An `Allowance` is plain data that a thread carries: what it may still spend. A parent that
spawns keeps a reserve for its own answer and gives each child an equal share of the rest,
so limits hold for the whole tree without shared counters, whatever finishes first, and
across a restart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Literal

from apr_agents.errors import InvalidOption

RESERVE = 0.25
"""Share of its remaining tokens and time that a parent keeps back for after the join."""

MOST_THREADS = 8
"""Threads in one block, where nothing else is known."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on one run. Exceeding one never raises: the thread ends with a status.

    Attributes:
        max_depth: levels of threads below the root; 0 forbids spawning.
        max_threads: threads in one parallel block. With ``"auto"``, as many as the model has
            free lanes for when it is asked, and ``max_concurrency`` at most; 8 for a model
            that does not tell.
        max_total_threads: threads in the whole run.
        max_concurrency: model calls in flight at once, over all runs of one agent.
        requests_per_second: model calls started per second; ``None`` for no bound.
        max_calls_per_thread: model calls that one thread may make, its children not counted.
        max_tokens_per_thread: tokens that one thread may generate, its children not counted.
        max_total_tokens: tokens that all threads together may generate.
        max_join_tokens: tokens that one join may add to the parent's context.
        max_tool_tokens: tokens that the result of one tool call may add to its thread's context.
        thread_timeout: seconds that a thread may take, its children included.
        timeout: seconds that the whole run may take.
    """

    max_depth: int = 2
    max_threads: int | Literal["auto"] = MOST_THREADS
    max_total_threads: int = 64
    max_concurrency: int = 8
    requests_per_second: float | None = None
    max_calls_per_thread: int = 64
    max_tokens_per_thread: int = 4096
    max_total_tokens: int = 65536
    max_join_tokens: int = 4096
    max_tool_tokens: int = 4096
    thread_timeout: float = 300.0
    timeout: float = 600.0

    def __post_init__(self) -> None:
        least = {"max_depth": 0, "max_threads": 0, "max_total_threads": 0}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("requests_per_second", "thread_timeout", "timeout"):
                unbounded = value is None and field.default is None
                if not unbounded and not (_is_number(value) and value > 0):
                    raise InvalidOption(field.name, value, "a positive number")
            elif not (field.name == "max_threads" and value == "auto"):
                smallest = least.get(field.name, 1)
                if type(value) is not int or value < smallest:
                    or_auto = " or 'auto'" if field.name == "max_threads" else ""
                    expected = f"a whole number of at least {smallest}{or_auto}"
                    raise InvalidOption(field.name, value, expected)

    def block_size(self, lanes: int | None) -> int:
        """Threads that one block may have, where ``lanes`` lanes are free, if that is known."""
        if self.max_threads != "auto":
            return self.max_threads
        return MOST_THREADS if lanes is None else min(lanes, self.max_concurrency)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What one thread may still spend.

    Attributes:
        depth: levels of threads it may still open below itself.
        threads: threads that may still start below it, over all its blocks.
        calls: model calls it may make itself.
        own_tokens: tokens it may generate itself.
        tokens: tokens it and everything below it may generate.
        seconds: time left to it and everything below it.
        lanes: lanes of the model that were free for it and everything below it when it
            started; ``None`` where the limits do not ask for them or the model does not tell.
    """

    depth: int
    threads: int
    calls: int
    own_tokens: int
    tokens: int
    seconds: float
    lanes: int | None = None

    @classmethod
    def of(cls, limits: Limits, lanes: int | None = None) -> Allowance:
        """The root's allowance."""
        return cls(
            depth=limits.max_depth,
            threads=limits.max_total_threads,
            calls=limits.max_calls_per_thread,
            own_tokens=limits.max_tokens_per_thread,
            tokens=limits.max_total_tokens,
            seconds=limits.timeout,
            lanes=lanes,
        )

    @property
    def next_call(self) -> int:
        """Tokens that the thread's next model call may generate."""
        return max(0, min(self.own_tokens, self.tokens)) if self.calls > 0 else 0

    def block_size(self, limits: Limits) -> int:
        """Threads that the thread's next block may have."""
        return min(limits.block_size(self.lanes), self.threads) if self.depth > 0 else 0

    def share(self, children: int, limits: Limits, lanes: int | None = None) -> Allowance:
        """What each of ``children`` threads of a new block may spend.

        Args:
            lanes: that are free now, for all of them. A thread that waits for its own threads
                leaves its lane to them.
        """
        spendable = int(self.tokens * (1 - RESERVE))
        return Allowance(
            depth=self.depth - 1,
            threads=max(0, self.threads - children) // children,
            calls=limits.max_calls_per_thread,
            own_tokens=limits.max_tokens_per_thread,
            tokens=spendable // children,
            seconds=min(limits.thread_timeout, self.seconds * (1 - RESERVE)),
            lanes=None if lanes is None else lanes // children,
        )

    def less(self, *, tokens: int = 0, threads: int = 0, seconds: float = 0.0) -> Allowance:
        """What is left after spending this much."""
        return replace(
            self,
            tokens=max(0, self.tokens - tokens),
            threads=max(0, self.threads - threads),
            seconds=max(0.0, self.seconds - seconds),
        )

    def less_own(self, *, tokens: int, seconds: float) -> Allowance:
        """What is left after a model call of its own that generated ``tokens``."""
        return Allowance(  # many times faster than replace(), and there is one for each call
            depth=self.depth,
            threads=self.threads,
            calls=self.calls - 1,
            own_tokens=max(0, self.own_tokens - tokens),
            tokens=max(0, self.tokens - tokens),
            seconds=max(0.0, self.seconds - seconds),
            lanes=self.lanes,
        )
