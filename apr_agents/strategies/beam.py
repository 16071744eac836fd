"""Beam search over thoughts at a fixed capacity: the worst line of thought gives way to the best.

Yang et al., Thought-level beam search for reasoning (2026), known as Gambit. There a small probe
of the model's hidden states scores half-written traces; here the scorer is the model itself, asked
for a value, or a function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from apr_agents.errors import InvalidOption
from apr_agents.strategies.base import Asking, Attempt, Plan, Strategy, check_counts
from apr_agents.strategies.scores import is_better, number, ranked, remembered
from apr_agents.strategies.thoughts import GENERAL, State, Thinking, ThoughtPrompts, as_text


@dataclass(frozen=True, kw_only=True)
class Beam(Strategy):
    """Grow ``capacity`` lines of thought at once, a thought at a time, then answer from the best.

    After each step, the ``swaps`` worst lines are replaced by copies of the
    ``swaps`` best ones, wherever these are better, and each copy goes its own way: so the number
    of threads stays the same while the work moves to where it is worth most. A step takes
    ``capacity`` calls, and one to value each line that is new; the answer one more. Lines of a
    model without a temperature are all the same.

    Args:
        capacity: lines of thought.
        swaps: lines replaced after each step, half of ``capacity`` at most.
        depth: thoughts of a complete line, unless ``prompts`` finds it complete before.
        score: from the question and the thoughts to how good they are; ``None``: the model
            values them. A line on which it raises comes last.
        prompts: what the model is told.

    Raises:
        InvalidOption: an option has a value it cannot have.
    """

    name: ClassVar[str] = "beam"

    capacity: int = 4
    swaps: int = 1
    depth: int = 3
    score: Callable[[str, State], float | None] | None = None
    prompts: ThoughtPrompts = GENERAL

    def __post_init__(self) -> None:
        check_counts(self, "capacity", "depth")
        if type(self.swaps) is not int or not 0 <= self.swaps <= self.capacity // 2:
            raise InvalidOption("swaps", self.swaps, f"between 0 and {self.capacity // 2}")
        if self.score is not None:
            object.__setattr__(self, "score", remembered(self.score))

    def plan(self, question: str, attempt: Attempt) -> Plan:
        thinking = Thinking(question, self.prompts, attempt)
        lines: list[State] = [()] * self.capacity
        best: State = ()
        for _ in range(self.depth):
            growing = [i for i, line in enumerate(lines) if not thinking.is_complete(line)]
            grown = yield from thinking.sampled([lines[i] for i in growing], 1, as_text(best))
            for i, states in zip(growing, grown, strict=True):
                lines[i] = states[0] if states else lines[i]
            values = yield from self._values(thinking, lines, as_text(best))
            order = ranked(range(self.capacity), values)
            best = lines[order[0]]
            for good, bad in zip(order[: self.swaps], reversed(order), strict=False):
                if is_better(values[good], values[bad]):
                    lines[bad] = lines[good]
        return (yield from thinking.answered(best))

    def _values(
        self, thinking: Thinking, lines: Sequence[State], best: str | None
    ) -> Asking[list[float | None]]:
        if self.score is None:
            return (yield from thinking.valued(lines, 1, best))
        question, attempt = thinking.question, thinking.attempt
        return [attempt(number, attempt(self.score, question, line)) for line in lines]
