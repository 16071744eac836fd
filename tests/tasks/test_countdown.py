"""Countdown: what is drawn can be solved, and only true calculations count."""

from __future__ import annotations

import re
from itertools import combinations, permutations

import pytest

from apr_agents.tasks.answers import calculation
from apr_agents.tasks.base import Problem
from apr_agents.tasks.countdown import NOTHING, CountdownTask, Reached, nodes, search, steps


def read(question: str) -> tuple[int, list[int]]:
    told = re.match(r"Make (\d+) from the numbers ([\d, ]+) with", question)
    assert told is not None
    return int(told[1]), list(map(int, told[2].split(", ")))


@pytest.mark.parametrize("numbers", [2, 3, 4, 6])
def test_every_problem_has_a_solution_with_all_numbers(numbers: int) -> None:
    for problem in CountdownTask(numbers).problems(200, seed=0):
        target, given = read(problem.question)
        assert 10 <= target <= 100
        assert target not in given
        made = calculation(problem.answer)
        assert made is not None
        assert made.value == target
        assert sorted(made.numbers) == sorted(given)


def test_each_number_may_be_used_once_and_need_not_be_used() -> None:
    task = CountdownTask()
    problem = Problem("", "", facts={"numbers": [3, 3, 50, 7], "target": 56})
    for right in ("50+3+3", "(50+3)+3 = 56", "3 + 50 + 3"):
        assert task.verify(problem, right)
    for wrong in ("50 + 3*3 - 3", "50+3+3+3-3", "7*8", "56", "50+6", "53+3", "3350-3294", "50+7-1"):
        assert not task.verify(problem, wrong)


def test_fractions_on_the_way_are_allowed() -> None:
    problem = Problem("", "", facts={"numbers": [8, 3, 8, 3], "target": 24})
    assert CountdownTask().verify(problem, "8/(3-8/3)")


def brute_force(numbers: list[int]) -> set[int]:
    """Every positive whole number that comes of all or some of ``numbers``, results whole too."""
    if len(numbers) == 1:
        return set(numbers)
    reached = set(numbers)
    for first, second in permutations(range(len(numbers)), 2):
        others = [numbers[i] for i in range(len(numbers)) if i not in (first, second)]
        a, b = numbers[first], numbers[second]
        results = [a + b, a * b]
        results += [a - b] if a > b else []
        results += [a // b] if a % b == 0 else []
        for result in results:
            reached |= brute_force([result, *others])
    return reached


def test_the_search_finds_what_there_is_and_nothing_else() -> None:
    for numbers in ([2, 3, 7], [5, 5, 1], [9, 12, 40]):
        reachable = brute_force(numbers)
        first = list(steps([Reached(number, str(number)) for number in numbers]))
        for target in set(range(1, 120)) - set(numbers):
            text, found = search(first, target)
            assert (found != NOTHING) == (target in reachable)
            assert text.endswith(found)
            if found != NOTHING:
                made = calculation(found)
                assert made is not None
                assert made.value == target


def test_the_nodes_are_those_of_the_whole_tree() -> None:
    def count(left: int) -> int:
        joined = sum(6 for _ in combinations(range(left), 2))
        return 1 + joined * count(left - 1) if left > 1 else 1

    assert [nodes(numbers) for numbers in range(1, 6)] == [count(left) for left in range(1, 6)]
