"""Monte Carlo tree search over thoughts, with parallel rollouts.

Hao et al., Reasoning with language model is planning with world model (RAP, 2023), section 3.3,
and Zhou et al., Language agent tree search (LATS, 2023), for thoughts as actions and the model as
judge; Kocsis and Szepesvári, Bandit based Monte-Carlo planning (2006), for UCT; Chaslot et al.,
Parallel Monte-Carlo tree search (2008), section 3.3, for the virtual loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from apr_agents.errors import InvalidOption
from apr_agents.strategies.base import Ask, Asking, Attempt, Plan, Strategy, check_counts
from apr_agents.strategies.scores import (
    Score,
    is_better,
    judged,
    ranked,
    remembered,
    scored,
)
from apr_agents.strategies.thoughts import GENERAL, State, Thinking, ThoughtPrompts


@dataclass(eq=False)
class Node:
    """A state in the tree.

    Attributes:
        visits: simulations that went through it, those under way included.
        total: rewards of those that came back.
    """

    state: State
    parent: Node | None = None
    children: list[Node] = field(default_factory=list)
    visits: int = 0
    total: float = 0.0

    def select(self, exploration: float) -> Node:
        """The child with the highest bound: one never visited, if any; the first of equals."""

        def bound(child: Node) -> float:
            if not child.visits:
                return math.inf
            spread = math.sqrt(math.log(self.visits) / child.visits)
            return child.total / child.visits + exploration * spread

        return max(self.children, key=bound)

    def backpropagate(self, reward: float) -> None:
        """Add what came of a visit here and to all states above; the visit is counted already."""
        node: Node | None = self
        while node is not None:
            node.total += reward
            node = node.parent


@dataclass(frozen=True, kw_only=True)
class MonteCarloTreeSearch(Strategy):
    """Simulate many ways to the answer, more of them where answers were good.

    A simulation walks down the tree by UCT to a state that was never visited; where it comes to
    one that was, but has no children, the model proposes them first. From there the model goes
    on to an answer (the rollout), and its reward is added to all states on the way.

    ``parallel`` simulations walk one after another, each under the virtual loss of those before
    it, which counts as a visit without reward, and then run as one block. The answer with the
    highest reward is the run's; of equal ones the first.

    A batch takes a call for each state that gets children, one for each rollout, and, where the
    model rates them, one for each new answer. A rollout that fails counts as one without reward.

    Args:
        simulations: rollouts in all.
        parallel: rollouts at once.
        exploration: weight of the bound's second term, for rewards between 0 and 1.
        branch: next thoughts of a state.
        depth: thoughts of a state that gets no children, unless ``prompts`` finds one complete
            before.
        reward: from the question and an answer to its reward; ``None``: the model rates
            answers from 0 to 1. An answer on which it raises gets none. A reward of 1 ends the
            search.
        prompts: what the model is told.

    Raises:
        InvalidOption: an option has a value it cannot have.
    """

    name: ClassVar[str] = "mcts"

    simulations: int = 12
    parallel: int = 4
    exploration: float = math.sqrt(2)
    branch: int = 3
    depth: int = 3
    reward: Score | None = None
    prompts: ThoughtPrompts = GENERAL

    def __post_init__(self) -> None:
        check_counts(self, "simulations", "parallel", "branch", "depth")
        if not 0 <= self.exploration < math.inf:
            raise InvalidOption("exploration", self.exploration, "0 or more")
        if self.reward is not None:
            object.__setattr__(self, "reward", remembered(self.reward))

    def plan(self, question: str, attempt: Attempt) -> Plan:
        thinking = Thinking(question, self.prompts, attempt)
        root = Node(())
        rewards: dict[str, float | None] = {}
        best: str | None = None
        for started in range(0, self.simulations, self.parallel):
            batch = min(self.parallel, self.simulations - started)
            walks = [self._walk(root) for _ in range(batch)]
            yield from self._expand(thinking, [leaf for leaf, is_new in walks if not is_new], best)
            ends = [
                leaf if is_new or not leaf.children else self._enter(leaf) for leaf, is_new in walks
            ]
            found = yield Ask([self.prompts.answer(question, end.state) for end in ends], best)
            answers = [thread.conclusion if thread else "" for thread in found]
            new = [answer for answer in dict.fromkeys(answers) if answer and answer not in rewards]
            judgements = yield from self._judge(thinking, new, best or next(iter(new), None))
            rewards |= zip(new, judgements, strict=True)
            for end, answer in zip(ends, answers, strict=True):
                end.backpropagate(rewards.get(answer) or 0.0)
            if rewards:
                best = ranked(list(rewards), list(rewards.values()))[0]
                if not is_better(1.0, rewards[best]):
                    break
        return best

    def _walk(self, root: Node) -> tuple[Node, bool]:
        """Down to a state without children, or one never visited, and whether it is that.

        Each state on the way gets a visit.
        """
        node, is_new = root, False
        node.visits += 1
        while node.children and not is_new:
            node = self._enter(node)
            is_new = node.visits == 1
        return node, is_new

    def _enter(self, node: Node) -> Node:
        child = node.select(self.exploration)
        child.visits += 1
        return child

    def _expand(self, thinking: Thinking, leaves: Sequence[Node], best: str | None) -> Asking[None]:
        """Give each state that may have children some."""
        growing = [
            leaf
            for leaf in dict.fromkeys(leaves)
            if len(leaf.state) < self.depth and not thinking.is_complete(leaf.state)
        ]
        grown = yield from thinking.proposed([leaf.state for leaf in growing], self.branch, best)
        for leaf, states in zip(growing, grown, strict=True):
            leaf.children = [Node(state, leaf) for state in states]

    def _judge(
        self, thinking: Thinking, answers: Sequence[str], best: str | None
    ) -> Asking[list[float | None]]:
        question, attempt = thinking.question, thinking.attempt
        if self.reward is not None:
            return scored(question, answers, attempt, self.reward)
        return (yield from judged(question, answers, attempt, best))
