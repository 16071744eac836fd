"""Variable tracking: the set follows from the text."""

from __future__ import annotations

import re

import pytest

from apr_agents.tasks.variable_tracking import VariableTrackingTask


@pytest.mark.parametrize("task", [VariableTrackingTask(), VariableTrackingTask(1, 30, 2000)])
def test_the_answer_follows_from_the_text(task: VariableTrackingTask) -> None:
    for problem in task.problems(100, seed=0):
        text, question = problem.question.split("\n\n")
        values: dict[str, str] = {}
        for name, value in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", text):
            assert name not in values
            # Every variable is assigned before it is used.
            values[name] = value if value.isdigit() else values[value]
        wanted = re.search(r"\d+", question)
        assert wanted is not None
        chosen = {name for name, value in values.items() if value == wanted[0]}
        assert chosen == set(problem.answer.split(", "))
        assert len(values) == task.chains * (task.hops + 1)
        assert len(chosen) == task.hops + 1


def test_only_the_links_of_the_chain_are_not_parallel() -> None:
    for problem in VariableTrackingTask(hops=9).problems(5, seed=0):
        sentences = problem.question.split("\n\n")[0].count(".")
        assert problem.parts == sentences
        assert problem.parallel_share == sentences / (sentences + 10)
