"""Tree of thoughts: a search over partial solutions that the model proposes and judges.

Yao et al., Tree of thoughts: deliberate problem solving with large language models (2023),
section 3: thoughts sampled or proposed, states valued or voted on, breadth-first search
(algorithm 1) and depth-first search (algorithm 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from apr_agents.errors import InvalidOption
from apr_agents.strategies.base import Asking, Attempt, Plan, Strategy, check_counts
from apr_agents.strategies.scores import ranked
from apr_agents.strategies.thoughts import GENERAL, State, Thinking, ThoughtPrompts, as_text


@dataclass(frozen=True, kw_only=True)
class TreeOfThoughts(Strategy):
    """Search for a good line of thoughts, then answer from it.

    Breadth-first, the ``width`` best states of each level are kept: a level of w states takes w
    calls to propose (``branch`` times w to sample), and ``evaluations`` calls to value each new
    state, or in all to vote. Depth-first, the best child is followed first; where all children
    are pruned or lead nowhere, the search goes back to the next best state above, and the first
    state at full depth is answered from. The answer is one more call.

    States without a value come last and are not pruned. When limits end the search early, the
    best state so far is the answer.

    Args:
        search: ``"bfs"`` or ``"dfs"``.
        depth: thoughts of a complete state, unless ``prompts`` finds it complete before.
        branch: next thoughts of a state (the paper's k).
        width: states kept of a level, breadth-first (the paper's b).
        generate: ``"propose"``: all next thoughts of a state in one call; ``"sample"``: one in
            each of ``branch`` calls, for models with a temperature.
        evaluate: ``"value"``: each state by itself; ``"vote"``: all against each other, as
            shares of the votes.
        evaluations: values of a state, of which the mean counts, or votes.
        prune: states worth no more than this are given up; ``None`` prunes none.
        prompts: what the model is told.

    Raises:
        InvalidOption: an option has a value it cannot have.
    """

    name: ClassVar[str] = "tree_of_thoughts"

    search: Literal["bfs", "dfs"] = "bfs"
    depth: int = 3
    branch: int = 3
    width: int = 3
    generate: Literal["propose", "sample"] = "propose"
    evaluate: Literal["value", "vote"] = "value"
    evaluations: int = 1
    prune: float | None = None
    prompts: ThoughtPrompts = GENERAL

    def __post_init__(self) -> None:
        check_counts(self, "depth", "branch", "width", "evaluations")
        choices = {
            "search": ("bfs", "dfs"),
            "generate": ("propose", "sample"),
            "evaluate": ("value", "vote"),
        }
        for option, known in choices.items():
            if (given := getattr(self, option)) not in known:
                raise InvalidOption(option, given, f"{known[0]!r} or {known[1]!r}")

    def plan(self, question: str, attempt: Attempt) -> Plan:
        thinking = Thinking(question, self.prompts, attempt)
        search = self._breadth_first if self.search == "bfs" else self._depth_first
        state = yield from search(thinking)
        return (yield from thinking.answered(state))

    def _breadth_first(self, thinking: Thinking) -> Asking[State]:
        level: list[State] = [()]
        while unfinished := [state for state in level if not self._is_leaf(thinking, state)]:
            best = as_text(level[0])
            finished = [state for state in level if state not in unfinished]
            children = yield from self._children(thinking, unfinished, best)
            if not children:
                break
            kept = yield from self._sorted(thinking, [*finished, *children], best)
            if not kept:
                break
            level = kept[: self.width]
        return level[0]

    def _depth_first(self, thinking: Thinking) -> Asking[State]:
        stack: list[State] = [()]
        best: State = ()
        while stack:
            state = stack.pop()
            best = max(best, state, key=len)
            if self._is_leaf(thinking, state):
                return state
            children = yield from self._children(thinking, [state], as_text(best))
            kept = yield from self._sorted(thinking, children, as_text(best))
            stack += reversed(kept)
        return best

    def _is_leaf(self, thinking: Thinking, state: State) -> bool:
        return len(state) >= self.depth or thinking.is_complete(state)

    def _children(
        self, thinking: Thinking, states: Sequence[State], best: str | None
    ) -> Asking[list[State]]:
        generate = thinking.proposed if self.generate == "propose" else thinking.sampled
        grown = yield from generate(states, self.branch, best)
        return [child for children in grown for child in children]

    def _sorted(
        self, thinking: Thinking, states: Sequence[State], best: str | None
    ) -> Asking[list[State]]:
        """The states worth going on with, the best first."""
        evaluate = thinking.valued if self.evaluate == "value" else thinking.voted
        values = yield from evaluate(states, self.evaluations, best)
        kept = [
            (state, value)
            for state, value in zip(states, values, strict=True)
            if value is None or self.prune is None or value > self.prune
        ]
        return ranked([state for state, _ in kept], [value for _, value in kept])
