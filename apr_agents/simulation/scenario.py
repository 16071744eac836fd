"""What is simulated: work, hardware, and users who ask. Plain options; loads nothing heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from apr_agents.errors import InvalidOption
from apr_agents.limits import Limits

STRATEGIES = ("adaptive", "sequential", "self_consistency")
"""Shapes of thinking that the simulated model knows how to take part in."""

UNBOUNDED = 10**9


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Work of ``parts * tokens`` tokens, and how reliably it is done.

    A token generated in a context of ``c`` tokens goes wrong with the probability
    ``error * (1 + c / rot)``: context-rot. A piece of work of ``n`` tokens that ends there is right
    with the probability ``(1 - error * (1 + c / rot)) ** n``. Pieces are the parts, what has to be
    done in order behind them, and adding up. No two errors agree: wrong answers gather no votes.

    Attributes:
        parts: of the work.
        tokens: that each part takes.
        share: of each part that can be done apart from all others; the rest has to be done
            behind them, in order. With 0 the work is a chain.
        prompt: tokens of the question beside its first line.
        error: probability that a token goes wrong in an empty context.
        rot: tokens of context that double it; ``None``: it never grows.
    """

    parts: int = 8
    tokens: int = 500
    share: float = 1.0
    prompt: int = 200
    error: float = 0.0
    rot: float | None = None

    def __post_init__(self) -> None:
        for name in ("parts", "tokens", "prompt"):
            least = 0 if name == "prompt" else 1
            if getattr(self, name) < least:
                raise InvalidOption(name, getattr(self, name), f"at least {least}")
        for name in ("share", "error"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidOption(name, getattr(self, name), "from 0 to 1")
        if self.rot is not None and not 0 < self.rot < math.inf:
            raise InvalidOption("rot", self.rot, "a positive number, or None")

    @property
    def apart(self) -> int:
        """Tokens of each part that can be done apart."""
        return round(self.tokens * self.share)

    @property
    def answer(self) -> str:
        """The right answer."""
        return str(self.parts)

    def wrong(self, context: int) -> float:
        """Probability that a token goes wrong in a context of so many tokens."""
        return min(1.0, self.error * (1 + (context / self.rot if self.rot else 0)))


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """How fast the server is.

    A call waits for a lane, first come, first served, and keeps it until it is over. It
    prefills the part of its prompt that is no prefix of an earlier call's context, at
    ``prefill`` tokens per second. Then it generates; while ``b`` lanes generate, each does so at
    ``decode / (1 + slowdown * (b - 1))`` tokens per second.

    Attributes:
        lanes: calls that are computed at once.
        prefill: tokens of a prompt per second, for each lane.
        decode: tokens generated per second by a lane that is alone.
        slowdown: by how much of its time without others each other lane slows a lane down; 0: not
            at all, 1: the lanes take turns.
    """

    lanes: int = 8
    prefill: float = 8000.0
    decode: float = 50.0
    slowdown: float = 0.0

    def __post_init__(self) -> None:
        if self.lanes < 1:
            raise InvalidOption("lanes", self.lanes, "at least 1")
        for name in ("prefill", "decode"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidOption(name, getattr(self, name), "a positive number")
        if not 0 <= self.slowdown < math.inf:
            raise InvalidOption("slowdown", self.slowdown, "0 or a positive number")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is simulated.

    Attributes:
        strategy: one of `STRATEGIES`.
        threads: threads of one block, or ``"auto"``: as many as lanes are free.
        samples: of self-consistency.
        max_depth: levels of threads; more than one with ``isolated`` only.
        isolated: a thread sees its own outline, and not its parent's context.
        merge: what a parent sees of its threads; a vote sees them all.
        users: who ask one question each.
        arrivals: users who come per second, at random (a Poisson process); ``None``: all at once.
        timeout: seconds that one question may take; ``None`` for no bound.
    """

    strategy: str = "adaptive"
    threads: int | Literal["auto"] = 8
    samples: int = 8
    max_depth: int = 1
    isolated: bool = False
    merge: Literal["conclusions", "full", "sum"] = "conclusions"
    users: int = 1
    arrivals: float | None = None
    timeout: float | None = None
    workload: Workload = field(default_factory=Workload)
    hardware: Hardware = field(default_factory=Hardware)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise InvalidOption("strategy", self.strategy, f"one of {', '.join(STRATEGIES)}")
        if self.users < 1:
            raise InvalidOption("users", self.users, "at least 1")
        for name in ("arrivals", "timeout"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InvalidOption(name, value, "a positive number, or None")

    @property
    def limits(self) -> Limits:
        """Nothing is bounded but threads and time."""
        width = self.samples if self.strategy == "self_consistency" else self.threads
        levels = range(1, self.max_depth + 1)
        most = self.hardware.lanes if width == "auto" else width
        return Limits(
            max_depth=self.max_depth,
            max_threads=width,
            max_total_threads=sum(most**level for level in levels),
            max_concurrency=UNBOUNDED,
            max_tokens_per_thread=UNBOUNDED,
            max_total_tokens=UNBOUNDED**2,
            max_join_tokens=UNBOUNDED,
            thread_timeout=self.timeout or UNBOUNDED,
            timeout=self.timeout or UNBOUNDED,
        )
