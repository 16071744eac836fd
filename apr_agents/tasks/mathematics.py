"""Mathematical problems from a file, their answers compared by math-verify."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from apr_agents.errors import MissingExtra
from apr_agents.tasks.answers import final_answer, number
from apr_agents.tasks.base import Problem
from apr_agents.tasks.file import FileTask
from apr_agents.tasks.isolated import CallFailed
from apr_agents.tasks.judges import WORKER

LONGEST_FORMULA = 1_000
"""Characters. A longer answer is wrong unless it is a number."""


@dataclass(frozen=True)
class MathTask(FileTask):
    r"""Problems as in `FileTask`; ``\frac{1}{2}`` and ``0.5`` are one answer.

    math-verify compares decimals to six digits and passes over units.
    """

    def __post_init__(self) -> None:
        if find_spec("math_verify") is None:
            raise MissingExtra("tasks", "math-verify")

    @property
    def name(self) -> str:
        return f"math:{self.path}"

    def verify(self, problem: Problem, predicted: str | None) -> bool:
        """Whether math-verify takes the final answer in ``predicted`` for the reference answer."""
        answer = final_answer(predicted)
        expected = final_answer(problem.answer) or problem.answer
        if answer is None:
            return False
        if None not in (numbers := (number(answer), number(expected))):
            return numbers[0] == numbers[1]
        if len(answer) > LONGEST_FORMULA or "$" in answer:  # the dollar would end the formula
            return False
        try:
            return bool(WORKER.call("same_mathematics", answer, expected))
        except CallFailed:
            return False
