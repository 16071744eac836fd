"""What there is to measure. Knows names and numbers; never how they are measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from operator import mul


class System(StrEnum):
    """What fans out."""

    gather = "gather"
    apr_leaf = "apr_leaf"
    apr_subgraph = "apr_subgraph"
    send_node = "send_node"
    send_subgraph = "send_subgraph"
    create_agent = "create_agent"
    deepagents = "deepagents"


class Checkpointer(StrEnum):
    """What a system saves to."""

    none = "none"
    memory = "memory"
    sqlite = "sqlite"


BASELINE = System.gather
NEST = {System.gather, System.apr_subgraph, System.send_subgraph, System.create_agent}
"""Systems whose children can have children without being bent to it."""

PEERS: dict[System | Checkpointer, str] = {
    System.create_agent: "langchain",
    System.deepagents: "deepagents",
    Checkpointer.sqlite: "langgraph-checkpoint-sqlite",
}
"""What has to be installed for a system or a checkpointer, beside this package."""

NESTED = (8, 8, 8)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing to measure.

    Attributes:
        system: which system.
        shape: children of the root, children of each child, and so on.
        checkpointer: what the system saves to.
        latency: seconds that a model call takes.
        repeat: measured runs, of which the one with the least CPU time counts.
    """

    system: System
    shape: tuple[int, ...]
    checkpointer: Checkpointer = Checkpointer.none
    latency: float = 0.0
    repeat: int = 1

    @property
    def n(self) -> int:
        """Children on all levels: 584 for 8x8x8, of which 512 are leaves."""
        return sum(accumulate(self.shape, mul))

    @property
    def workload(self) -> str:
        return "flat" if len(self.shape) == 1 else f"nested {'x'.join(map(str, self.shape))}"

    @property
    def peers(self) -> dict[System | Checkpointer, str]:
        """Its part of `PEERS`."""
        return {name: PEERS[name] for name in (self.system, self.checkpointer) if name in PEERS}

    def __str__(self) -> str:
        of = "" if len(self.shape) == 1 else f" ({self.workload})"
        return f"{self.system}, n={self.n}{of}, {self.checkpointer}"


def cases(
    *,
    systems: Sequence[System] = tuple(System),
    shapes: Sequence[tuple[int, ...]],
    checkpointers: Sequence[Checkpointer] = tuple(Checkpointer),
    latency: float = 0.0,
    repeat: int = 1,
) -> list[Case]:
    """Every sensible combination: the baseline saves nothing, and only some systems nest."""
    return [
        Case(system=system, shape=shape, checkpointer=checkpointer, latency=latency, repeat=repeat)
        for shape in shapes
        for system in systems
        for checkpointer in ([Checkpointer.none] if system == BASELINE else checkpointers)
        if len(shape) == 1 or system in NEST
    ]
