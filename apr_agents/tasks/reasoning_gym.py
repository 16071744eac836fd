"""The data sets of reasoning-gym (Stojanovski et al. 2025): ``reasoning_gym:countdown``.

Problems and scorers are the package's own; an answer is right if the scorer gives it the whole
point. Options of a data set follow its name: ``reasoning_gym:countdown,min_numbers=3``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.util import find_spec

from apr_agents.errors import InvalidOption, MissingExtra, TaskFailed
from apr_agents.tasks.answers import final_answer
from apr_agents.tasks.base import Problem
from apr_agents.tasks.isolated import CallFailed
from apr_agents.tasks.judges import WORKER

REQUEST = "Put the final answer between <answer> and </answer>."
"""Answers may have several lines."""


def datasets() -> list[str]:
    """The names of all data sets.

    Raises:
        MissingExtra: reasoning-gym is not installed.
    """
    if find_spec("reasoning_gym") is None:
        raise MissingExtra("tasks", "reasoning-gym")
    names: list[str] = WORKER.call("datasets")
    return names


@dataclass(frozen=True)
class ReasoningGymTask:
    """One data set. Nobody knows which share of its work could be done at once.

    Where every solution is right, `Problem.answer` may be empty.

    Attributes:
        dataset: its name.
        config: options of the data set, as texts.
    """

    dataset: str
    config: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        names = datasets()
        if self.dataset not in names:
            nearest_first = get_close_matches(self.dataset, names, n=len(names), cutoff=0)
            raise InvalidOption("the data set", self.dataset, f"one of {', '.join(nearest_first)}")
        options: list[str] = WORKER.call("options", self.dataset)
        for option in self.config:
            if option not in options:
                raise InvalidOption("an option", option, f"one of {', '.join(options)}")
        objection = WORKER.call("objection", self.dataset, dict(self.config))
        if objection is not None:
            given = ",".join(f"{option}={value}" for option, value in self.config.items())
            raise InvalidOption(
                "the configuration", given, f"valid; {self.dataset} says: {objection}"
            )

    @property
    def name(self) -> str:
        options = [f"{option}={value}" for option, value in self.config.items()]
        return f"reasoning_gym:{','.join([self.dataset, *options])}"

    def problems(self, count: int, seed: int) -> list[Problem]:
        """``count`` problems; the same seed gives the same ones.

        Raises:
            TaskFailed: the data set could not make one.
        """
        return [self._problem(seed, index) for index in range(count)]

    def verify(self, problem: Problem, predicted: str | None) -> bool:
        """Whether the data set's scorer gives the final answer in ``predicted`` the whole point."""
        answer = final_answer(predicted)
        if answer is None:
            return False
        seed, index = problem.facts["seed"], problem.facts["index"]
        try:
            score = WORKER.call("score", self.dataset, dict(self.config), seed, index, answer)
        except CallFailed:
            return False
        return bool(score >= 1)

    def _problem(self, seed: int, index: int) -> Problem:
        try:
            drawn = WORKER.call("draw", self.dataset, dict(self.config), seed, index)
        except CallFailed as error:
            raise TaskFailed(self.name, str(error)) from error
        return Problem(
            f"{drawn['question']}\n\n{REQUEST}",
            drawn["answer"] or "",
            facts={"seed": seed, "index": index},
        )
