"""Fixed shapes of thinking, by name. `resolve_strategy` turns a name into one."""

from __future__ import annotations

from apr_agents.errors import InvalidOption
from apr_agents.strategies.base import Strategy
from apr_agents.strategies.beam import Beam
from apr_agents.strategies.best_of_n import BestOfN
from apr_agents.strategies.mcts import MonteCarloTreeSearch
from apr_agents.strategies.self_consistency import SelfConsistency
from apr_agents.strategies.skeleton_of_thought import SkeletonOfThought
from apr_agents.strategies.tree_of_thoughts import TreeOfThoughts

STRATEGIES: dict[str, type[Strategy]] = {
    strategy.name: strategy
    for strategy in (
        SelfConsistency,
        BestOfN,
        SkeletonOfThought,
        TreeOfThoughts,
        MonteCarloTreeSearch,
        Beam,
    )
}
"""By name, as they are without options."""


def resolve_strategy(strategy: str | Strategy) -> Strategy | None:
    """What decides in the model's place; ``None`` for ``adaptive`` and ``sequential``, where
    the model decides or may not split.

    Raises:
        InvalidOption: no strategy has that name.
    """
    if isinstance(strategy, Strategy):
        return strategy
    if strategy in STRATEGIES:
        return STRATEGIES[strategy]()
    if strategy in ("adaptive", "sequential"):
        return None
    names = ", ".join(("adaptive", "sequential", *STRATEGIES))
    raise InvalidOption("strategy", strategy, f"a Strategy or one of {names}")
