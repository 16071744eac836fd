"""Mathematical answers: the same value counts, several candidates do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from apr_agents.tasks.base import Problem
from apr_agents.tasks.mathematics import MathTask
from apr_agents.tasks.registry import resolve

TASK = MathTask(Path("problems.jsonl"))


@pytest.mark.parametrize(
    ("expected", "predicted"),
    [
        (r"\frac{1}{2}", "0.5"),
        (r"\frac{1}{2}", r"The answer is $\boxed{\frac12}$."),
        ("x^2+1", "Answer: $1+x^2$"),
        (r"2\sqrt{2}", r"\sqrt{8}"),
        ("(1,2)", "(1, 2)"),
        (r"\{1,2\}", r"\{2,1\}"),
        ("1,000", "1000.0"),
        (r"\text{B}", "B"),
    ],
)
def test_equal_answers(expected: str, predicted: str) -> None:
    assert TASK.verify(Problem("q", expected), predicted)


@pytest.mark.parametrize(
    ("expected", "predicted"),
    [
        ("42", None),
        ("42", ""),
        ("42", "42 or 43"),
        ("43", "42 or 43"),
        ("42", "42, 43"),
        ("42", "$42$ or $43$"),
        ("42", r"\boxed{42} \boxed{43}"),
        ("42", "142"),
        (r"\frac{1}{2}", r"\frac{1}{3}"),
        ("(1,2)", "(2,1)"),
        ("x", "10^{10^{10}}"),
        ("x", "9!!!!!!"),
        ("x", r"\sum_{i=1}^{10^{12}} i^3"),
        ("x", "x" * 1_000_000),
        ("1", "\0\ud800"),
    ],
)
def test_different_answers(expected: str, predicted: str | None) -> None:
    assert not TASK.verify(Problem("q", expected), predicted)


def test_problems_come_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text('{"question": "Half?", "answer": "\\\\frac{1}{2}"}\n', encoding="utf-8")
    task = resolve(f"math:{path}")
    [problem] = task.problems(5, seed=0)
    assert task.verify(problem, "0.5")
    assert task.name == f"math:{path}"
