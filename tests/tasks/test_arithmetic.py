"""The arithmetic family: what is generated is in the family, and the teacher is right."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_agents.tasks.arithmetic import (
    KINDS,
    MAX_GROUPS,
    MAX_STEPS,
    MAX_VALUE,
    ArithmeticTask,
    demonstrate,
    format_question,
    parse_question,
)
from apr_agents.tasks.teaching import contiguous_runs

seeds = st.integers(0, 2**32)
kinds = st.sampled_from(sorted(KINDS))


@given(seeds, kinds)
def test_generated_problems_stay_inside_the_family(seed: int, kind: str) -> None:
    groups = KINDS[kind](random.Random(seed))
    assert 1 <= len(groups) <= MAX_GROUPS
    for group in groups:
        assert 1 <= group.start <= 99
        assert 1 <= len(group.steps) <= MAX_STEPS
        assert all(0 <= value <= MAX_VALUE for value in group.values)
        for operator, operand in group.steps:
            assert 2 <= operand <= 9 if operator == "*" else 1 <= operand <= 99


@given(seeds, kinds, st.booleans())
def test_parsing_reads_back_what_was_formatted(seed: int, kind: str, spaced: bool) -> None:
    groups = KINDS[kind](random.Random(seed))
    question = format_question(groups)
    assert parse_question(question.replace("+", " + ") if spaced else question) == groups


@pytest.mark.parametrize(
    "text", ["", "7", "2**3", "1/2", "a+b", "(1+2", "2+3*4", "1+2\n3", "((1+2)*(3+4))", "9" * 2000]
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"arithmetic|chain"):
        parse_question(text)


@given(seeds, kinds, st.integers(0, 8))
def test_demonstrations_calculate_correctly(seed: int, kind: str, budget: int) -> None:
    question = format_question(KINDS[kind](random.Random(seed)))
    shown = demonstrate(question, budget)
    assert int(shown.answer) == eval(question)
    written = [shown.thinking, *(shown.block.threads if shown.block else ())]
    for line in re.split(";?\n", "\n".join(written)):
        # A line is a copy (no "="), an equation, or a chain of additions a+b=c+d=e.
        left, *rights = re.sub(r"\b0+(?=\d)", "", line).split("=")
        value = eval(left) if rights else None
        for i, right in enumerate(rights):
            result, plus, operand = right.partition("+")
            assert int(result) == value
            assert bool(plus) == (i < len(rights) - 1)
            value = int(result) + int(operand or 0)


@given(seeds, st.integers(0, 8))
def test_lines_say_whether_another_group_follows(seed: int, budget: int) -> None:
    shown = demonstrate(format_question(KINDS["whole"](random.Random(seed))), budget)
    works = shown.block.threads if shown.block else (shown.thinking,)
    for work in works:
        *before, last = re.split(r"(?<=;)\n(?=\d+[-+*]\d+(?:[-+*]\d+)*;?\n)", work)
        assert all(line.endswith(";") for group in before for line in group.split("\n"))
        assert ";" not in last


@given(seeds, st.integers(0, 8))
def test_demonstrations_use_no_more_threads_than_allowed(seed: int, budget: int) -> None:
    shown = demonstrate(format_question(KINDS["whole"](random.Random(seed))), budget)
    assert len(shown.block.outlines if shown.block else ()) <= budget


@given(seeds, st.integers(0, 8), st.sampled_from(["pair", "chain", "tiny"]))
def test_what_would_not_get_shorter_is_not_split(seed: int, budget: int, kind: str) -> None:
    question = format_question(KINDS[kind](random.Random(seed)))
    assert demonstrate(question, budget).block is None


@given(seeds, st.integers(4, 8))
def test_long_wide_problems_are_split(seed: int, budget: int) -> None:
    question = format_question(KINDS["wide"](random.Random(seed)))
    assert demonstrate(question, budget).block is not None


@given(st.lists(st.integers(), min_size=1), st.data())
def test_contiguous_runs_keep_order_and_differ_by_at_most_one(
    items: list[int], data: st.DataObject
) -> None:
    runs = contiguous_runs(items, data.draw(st.integers(1, len(items))))
    assert [item for run in runs for item in run] == items
    lengths = [len(run) for run in runs]
    assert max(lengths) - min(lengths) <= 1


def test_the_same_seed_gives_the_same_problems() -> None:
    task = ArithmeticTask()
    assert task.problems(20, seed=7) == task.problems(20, seed=7)
    assert task.problems(20, seed=7) != task.problems(20, seed=8)


def test_only_the_exact_integer_is_right() -> None:
    task = ArithmeticTask()
    [problem] = task.problems(1, seed=0)
    assert task.verify(problem, f" {problem.answer}\n")
    for wrong in (None, "", f"{problem.answer}0", f"={problem.answer}", f"{problem.answer}.5", "x"):
        assert not task.verify(problem, wrong)
