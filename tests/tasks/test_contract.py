"""What every task promises, whatever it asks."""

from __future__ import annotations

import hashlib
import random
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_agents.tasks.base import Problem, Teacher
from apr_agents.tasks.registry import resolve
from apr_agents.tasks.teaching import critical_path

INTEGERS = {
    "arithmetic": "b8199b",
    "products": "40b4a4",
    "products:factors=2,digits=12": "748d16",
    "aggregation": "da6f56",
    "aggregation:records=6,tokens=0": "702b04",
    "aggregation:records=20,tokens=2000,kind=count": "97dc62",
    "chained": "ebceaf",
    "chained:kind=pages,steps=5": "bf1642",
}
LISTS = {"needles": "45a722", "merge_sort": "4f65f4", "merge_sort:numbers=2": "4c7f70"}
SETS = {"variable_tracking": "563d4f", "variable_tracking:chains=1,hops=6,tokens=500": "83be14"}
CALCULATIONS = {
    "countdown": "40ae22",
    "countdown:numbers=3": "476f5b",
    "game24": "55d93d",
    "game24:first=1300": "296b82",
}
TASKS = INTEGERS | LISTS | SETS | CALCULATIONS
"""Each with the first digits of a digest of problems, the same on every platform."""


@cache
def drawn(name: str, count: int = 200) -> tuple[Any, list[Problem]]:
    """A task and problems of it, for tests that do not ask how they come about."""
    task = resolve(name)
    return task, task.problems(count, seed=1)


every_task = pytest.mark.parametrize("name", TASKS)
seeds = st.integers(0, 2**40)


@every_task
def test_the_same_seed_gives_the_same_problems_on_every_platform(name: str) -> None:
    shown = "\n".join(
        f"{each.question}\0{each.answer}\0{each.parallel_share:.9f}\0{each.parts}"
        for each in resolve(name).problems(10, seed=3)
    )
    assert hashlib.sha256(shown.encode()).hexdigest()[:6] == TASKS[name]


@every_task
def test_more_problems_begin_with_the_same_ones(name: str) -> None:
    task = resolve(name)
    assert task.problems(8, seed=5)[:3] == task.problems(3, seed=5)


@every_task
def test_another_seed_gives_other_problems(name: str) -> None:
    task = resolve(name)
    others = task.problems(5, seed=2) != task.problems(5, seed=1)
    assert others or name.startswith("game24")  # a list in one order


@every_task
def test_a_task_can_be_made_again_from_its_name(name: str) -> None:
    task = resolve(name)
    assert task.name == name
    assert resolve(task.name) == task


@every_task
def test_the_parallel_share_fits_the_number_of_parts(name: str) -> None:
    for problem in drawn(name)[1]:
        share, parts = problem.parallel_share, problem.parts
        assert share is not None
        assert parts is not None
        assert 0 <= share < 1
        assert (share == 0) == (parts == 1)


@every_task
def test_the_right_answer_is_right_however_it_is_marked(name: str) -> None:
    task, problems = drawn(name)
    for problem in problems:
        for said in (
            problem.answer,
            f" {problem.answer}\n",
            f"Step by step.\n\nAnswer: {problem.answer}",
            f"**Answer:** {problem.answer}",
            f"The answer is {problem.answer}.",
            rf"So it is $\boxed{{{problem.answer}}}$.",
        ):
            assert task.verify(problem, said), said


@every_task
def test_no_answer_several_candidates_and_prose_are_wrong(name: str) -> None:
    task, problems = drawn(name)
    for problem, other in pairwise(problems):
        right, wrong = problem.answer, other.answer if other.answer != problem.answer else "-7"
        for said in (
            None,
            "",
            "I do not know.",
            f"{right} or {wrong}",
            f"{wrong} or {right}",
            f"{right}; {wrong}",
            f"Answer: {right} or {wrong}",
            f"Answer: {wrong}\n\nAnswer: {right}",
            rf"\boxed{{{wrong}}} \boxed{{{right}}}",
            f"not {right}",
            f"{right} apples",
            f"{right} {right}",
            f"{right}1{right}",
            f"x{right}",
            f"{right}\0",
        ):
            assert not task.verify(problem, said), said


@every_task
@settings(max_examples=40)
@given(seed=seeds, text=st.text(max_size=60))
def test_verifying_never_raises(name: str, seed: int, text: str) -> None:
    task, [problem] = drawn(name, 1)
    rng = random.Random(seed)
    place = rng.randint(0, len(problem.answer))
    broken = problem.answer[:place] + text + problem.answer[place:]
    for said in (text, broken, rf"\boxed{{{broken}}}", f"Answer: {broken}", broken * 50):
        assert task.verify(problem, said) in (True, False)


@every_task
@pytest.mark.parametrize(
    "said",
    ["9" * 1_000_000, "(" * 1_000_000, "1+" * 500_000, "10**10**10", "1e999999999", ", " * 10**6],
)
def test_junk_is_wrong(name: str, said: str) -> None:
    task, [problem] = drawn(name, 1)
    assert not task.verify(problem, said)


@pytest.mark.parametrize("name", INTEGERS)
def test_only_the_exact_integer_is_right(name: str) -> None:
    task, problems = drawn(name)
    for problem in problems:
        value = int(problem.answer)
        for said in (f"{value:,}", f"{value}.0", f"+{value}", f"Answer: {value}."):
            assert task.verify(problem, said), said
        for said in (
            f"{value + 1}",
            f"{value - 1}",
            f"{value}1",
            f"{value}.5",
            f"1{value}",
            f"{value} + 0",
            f"= {value}",
            f"{value}!",
            f"{value}%",
        ):
            assert not task.verify(problem, said), said


@pytest.mark.parametrize("name", LISTS | SETS)
def test_only_all_items_and_no_others_are_right(name: str) -> None:
    task, problems = drawn(name)
    rng = random.Random(0)
    for problem in problems:
        listed = problem.answer.split(", ")
        place = rng.randrange(len(listed))
        before, after = listed[:place], listed[place + 1 :]
        for said in (f"[{problem.answer}]", "\n".join(listed), ",".join(listed)):
            assert task.verify(problem, said), said
        for wrong in (
            [*before, *after],
            [*listed, listed[place]],
            [*before, listed[place], *listed[place:]],
            [*before, f"{listed[place]}0", *after],
            [*before, "12", *after],
            [*listed, "12"],
        ):
            assert not task.verify(problem, ", ".join(wrong)), wrong


@pytest.mark.parametrize("name", LISTS)
def test_the_order_of_a_list_counts(name: str) -> None:
    task, problems = drawn(name)
    for problem in problems:
        turned = ", ".join(reversed(problem.answer.split(", ")))
        assert task.verify(problem, turned) == (turned == problem.answer)


@pytest.mark.parametrize("name", SETS)
def test_the_order_of_a_set_does_not_count(name: str) -> None:
    task, problems = drawn(name)
    for problem in problems:
        listed = problem.answer.split(", ")
        random.Random(0).shuffle(listed)
        assert task.verify(problem, ", ".join(listed))


@pytest.mark.parametrize("name", CALCULATIONS)
def test_a_calculation_has_to_come_to_the_target_with_the_given_numbers(name: str) -> None:
    task, problems = drawn(name)
    for problem in problems:
        right, target = problem.answer, problem.facts.get("target", 24)
        given = list(problem.facts["numbers"])
        for said in (f"({right})", f"{right} = {target}", right.replace("*", "×")):
            assert task.verify(problem, said), said
        for said in (
            f"{right} = {target + 1}",
            f"{right}+1",
            f"({right})*1*1*1*1*1",
            f"{right}+{given[0]}-{given[0]}",
            f"({right})**1",
            f"({right})//1",
            f"0+{right}",
            str(target),
            f"{target}/1",
            f"{target} = {right}",
            right.replace("(", "[").replace(")", "]") + "+0",
        ):
            assert not task.verify(problem, said), said


# --- teachers ---------------------------------------------------------------------------------

TAUGHT = [
    "products", "products:factors=2,digits=4", "products:factors=2,digits=12",
    "products:factors=9,digits=1", "aggregation:records=6,tokens=0",
    "aggregation:records=40,tokens=0", "chained", "chained:kind=pages,steps=3",
    "countdown:numbers=2", "countdown:numbers=3", "countdown",
]  # fmt: skip


@pytest.mark.parametrize("name", TAUGHT)
@settings(max_examples=40)
@given(seed=seeds, budget=st.integers(0, 12))
def test_a_teacher_answers_rightly_with_no_more_threads_than_allowed(
    name: str, seed: int, budget: int
) -> None:
    task = resolve(name)
    [problem] = task.problems(1, seed)
    assert isinstance(task, Teacher)
    shown = task.demonstrate(problem, budget)
    assert (shown.question, shown.budget) == (problem.question, budget)
    assert task.verify(problem, shown.answer)
    assert shown.thinking.endswith(shown.answer)
    if shown.block is not None:
        threads = len(shown.block.outlines)
        assert 2 <= threads <= budget
        assert len(shown.block.threads) == len(shown.block.conclusions) == threads
        assert [each.number for each in shown.block.outlines] == [
            str(place) for place in range(1, threads + 1)
        ]
        for text, conclusion in zip(shown.block.threads, shown.block.conclusions, strict=True):
            assert text.endswith(conclusion)


@pytest.mark.parametrize("name", [name for name in TAUGHT if not name.startswith("countdown")])
@settings(max_examples=40)
@given(seed=seeds, budget=st.integers(0, 12))
def test_a_teacher_splits_only_where_that_shortens_the_critical_path(
    name: str, seed: int, budget: int
) -> None:
    task = resolve(name)
    [problem] = task.problems(1, seed)
    shown, alone = task.demonstrate(problem, budget), task.demonstrate(problem, 0)
    assert alone.block is None
    assert critical_path(shown) <= critical_path(alone)
    assert shown.block is None or critical_path(shown) < critical_path(alone)


@pytest.mark.parametrize(
    "name", [name for name in TAUGHT if name.startswith(("products", "countdown"))]
)
@settings(max_examples=40)
@given(seed=seeds, budget=st.integers(0, 12))
def test_every_line_of_a_teacher_is_true(name: str, seed: int, budget: int) -> None:
    task = resolve(name)
    [problem] = task.problems(1, seed)
    shown = task.demonstrate(problem, budget)
    lines = "\n".join([shown.thinking, *(shown.block.threads if shown.block else ())]).splitlines()
    for line in lines:
        left, equals, right = line.strip().partition("=")
        assert not equals or eval(left) == int(right)


def test_long_products_and_long_lists_are_split() -> None:
    for name in ("products:factors=2,digits=12", "aggregation:records=40,tokens=0", "countdown"):
        task = resolve(name)
        for problem in task.problems(20, seed=0):
            assert task.demonstrate(problem, 4).block is not None


def test_chains_are_never_split() -> None:
    for name in ("chained", "chained:kind=pages"):
        task = resolve(name)
        for problem in task.problems(50, seed=0):
            assert task.demonstrate(problem, 8).block is None
            assert (problem.parallel_share, problem.parts) == (0, 1)
