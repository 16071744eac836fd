"""Game of 24: the puzzles, their order, and what counts as a solution."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations_with_replacement
from pathlib import Path

import pytest

from apr_agents.errors import InvalidOption, UnusableFile
from apr_agents.tasks.answers import calculation
from apr_agents.tasks.base import Problem
from apr_agents.tasks.game24 import Game24Task, by_difficulty, solution
from apr_agents.tasks.registry import resolve


def reaches(numbers: list[float], target: float = 24) -> bool:
    """By brute force, with decimals: an algorithm of its own."""
    if len(numbers) == 1:
        return abs(numbers[0] - target) < 1e-9
    for i in range(len(numbers)):
        for j in range(len(numbers)):
            if i != j:
                a, b = numbers[i], numbers[j]
                left = [numbers[k] for k in range(len(numbers)) if k not in (i, j)]
                results = [a + b, a - b, a * b] + ([a / b] if b else [])
                if any(reaches([result, *left], target) for result in results):
                    return True
    return False


def test_there_are_1362_puzzles_each_once_and_each_solved() -> None:
    puzzles = by_difficulty()
    assert len(set(puzzles)) == len(puzzles) == 1362
    for puzzle in puzzles:
        made = calculation(solution(puzzle) or "")
        assert made is not None
        assert made.value == 24
        assert tuple(sorted(made.numbers)) == puzzle


def test_what_is_no_puzzle_has_no_solution() -> None:
    others = set(combinations_with_replacement(range(1, 14), 4)) - set(by_difficulty())
    for numbers in sorted(others)[::12]:
        assert not reaches(list(map(float, numbers)))


def test_the_hardest_need_fractions_and_the_easiest_do_not() -> None:
    puzzles = by_difficulty()
    assert (3, 3, 8, 8) in puzzles[-20:]
    assert (1, 1, 4, 6) in puzzles[:20]


def test_puzzles_900_to_999_come_first() -> None:
    asked = [tuple(problem.facts["numbers"]) for problem in Game24Task().problems(100, seed=4)]
    assert asked == by_difficulty()[900:1000]


def test_after_the_last_puzzle_comes_the_first() -> None:
    asked = [each.facts["numbers"] for each in Game24Task(first=1361).problems(2, seed=0)]
    assert asked == [by_difficulty()[-1], by_difficulty()[0]]


@pytest.mark.parametrize("said", ["2*12*(4-3)", "12*(4-3)*2 = 24", "2/(4-3)*12", "(12/(3/(2+4)))"])
def test_all_four_numbers_used_once_are_right(said: str) -> None:
    problem = Problem("", "", facts={"numbers": (2, 3, 4, 12)})
    assert Game24Task().verify(problem, said)


@pytest.mark.parametrize(
    "said",
    ["24", "12*2", "4*3*2", "12+12", "(3-2)*4*12/2", "12*(4-2)*3/3", "12*4/2*3-48+0", "23+4-3",
     "2*12*(4-3)+1", "2*12*(4-3) = 25", "12*4-(3-2)", "2*12*4**0-3+3", "2*12*-(3-4)"],
)  # fmt: skip
def test_numbers_left_out_repeated_or_made_up_are_wrong(said: str) -> None:
    problem = Problem("", "", facts={"numbers": (2, 3, 4, 12)})
    assert not Game24Task().verify(problem, said)


@pytest.fixture
def ranked(tmp_path: Path) -> Callable[[str], str]:
    def write(content: str) -> str:
        path = tmp_path / "24.csv"
        path.write_text(content, encoding="utf-8")
        return f"game24:first=1,ranking={path}"

    return write


def test_a_ranking_of_ones_own_sets_the_order(ranked: Callable[[str], str]) -> None:
    task = resolve(ranked("\ufeffRank,Puzzles,Rate\n1,1 1 4 6,99%\n2,3 3 8 8,9%\n"))
    [hard, easy] = task.problems(2, seed=0)
    assert "3, 3, 8, 8" in hard.question
    assert "1, 1, 4, 6" in easy.question
    assert task.verify(hard, "8/(3-8/3)")


@pytest.mark.parametrize(
    "content", ["", "Rank\n1\n", "Puzzles\n", "Puzzles\n1 2 3\n", "Puzzles\na b c d\n", "\0"]
)
def test_a_ranking_without_puzzles_is_refused(ranked: Callable[[str], str], content: str) -> None:
    with pytest.raises(UnusableFile):
        resolve(ranked(content)).problems(1, seed=0)


def test_a_number_outside_the_list_is_refused() -> None:
    with pytest.raises(InvalidOption, match="first is '1362'"):
        resolve("game24:first=1362")
