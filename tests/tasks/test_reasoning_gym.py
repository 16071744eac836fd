"""reasoning-gym's data sets: all can be had, and a good answer is told from a bad one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from apr_agents.tasks.base import Problem, Task
from apr_agents.tasks.reasoning_gym import datasets
from apr_agents.tasks.registry import resolve

SAMPLE = [
    "ab", "basic_arithmetic", "countdown", "fraction_simplification", "game_of_life_halting",
    "gsm_symbolic", "isomorphic_strings", "knights_knaves", "letter_jumble", "mini_sudoku",
    "n_queens", "number_sorting", "polynomial_multiplication", "puzzle24", "rotate_matrix",
    "simple_equations", "simple_integration", "sokoban", "spell_backward", "spiral_matrix",
    "string_insertion", "time_intervals", "tower_of_hanoi", "word_sorting",
]  # fmt: skip


def drawn(dataset: str, count: int = 4) -> tuple[Task, list[Problem]]:
    task = resolve(f"reasoning_gym:{dataset}")
    return task, [problem for problem in task.problems(count, seed=3) if problem.answer]


def test_all_data_sets_have_names() -> None:
    assert len(datasets()) >= 105
    assert {"countdown", "sudoku", "zebra_puzzles"} <= set(datasets())


@pytest.mark.parametrize("dataset", SAMPLE)
def test_its_own_answer_is_right_and_others_are_wrong(dataset: str) -> None:
    task, problems = drawn(dataset)
    assert problems
    for problem in problems:
        right = problem.answer
        wrong = next((each.answer for each in problems if each.answer != right), "banana")
        for said in (right, f"I see.\n\n<answer>\n{right}\n</answer>"):
            assert task.verify(problem, said), said
        for said in (None, "", "junk", f"{wrong} or {right}", f"{right}, {wrong}", wrong):
            assert not task.verify(problem, said), said


def test_a_list_of_candidates_is_wrong_where_the_scorer_takes_its_beginning() -> None:
    for dataset in ("gsm_symbolic", "letter_jumble", "spell_backward", "time_intervals",
                    "fraction_simplification", "word_sorting", "advanced_geometry"):  # fmt: skip
        task, problems = drawn(dataset)
        for problem in problems:
            for said in (f"{problem.answer} or 7", f"{problem.answer}, 7", f"{problem.answer} 7"):
                assert not task.verify(problem, said), said


def test_another_puzzle_s_numbers_do_not_solve_this_one() -> None:
    task, [first, second, *_] = drawn("puzzle24")
    assert task.verify(first, first.answer)
    assert not task.verify(first, second.answer)


def test_options_of_a_data_set_follow_its_name() -> None:
    task = resolve("reasoning_gym:countdown,min_numbers=3,max_numbers=3")
    assert task.name == "reasoning_gym:countdown,min_numbers=3,max_numbers=3"
    assert resolve(task.name) == task
    for problem in task.problems(5, seed=0):
        assert problem.answer.count("+") + problem.answer.count("-") <= 2


def test_the_same_seed_gives_the_same_problems_in_every_process() -> None:
    """These draw from sets, whose order differs from process to process."""
    names = ["isomorphic_strings", "ransom_note", "word_ladder"]
    code = (
        "import sys\nfrom apr_agents.tasks.registry import resolve\n"
        "for name in sys.argv[1:]: print(resolve(f'reasoning_gym:{name}').problems(3, seed=1))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *names], capture_output=True, text=True, check=True
    )
    here = [str(resolve(f"reasoning_gym:{name}").problems(3, seed=1)) for name in names]
    assert done.stdout.splitlines() == here


@pytest.mark.parametrize("dataset", ["countdown", "puzzle24", "string_insertion", "n_queens"])
def test_answers_are_not_run_as_programs(dataset: str, tmp_path: Path) -> None:
    task, [problem, *_] = drawn(dataset)
    written = tmp_path / "written"
    for said in (
        f"__import__('pathlib').Path({str(written)!r}).touch()",
        f"[].__class__.__base__.__subclasses__() or open({str(written)!r}, 'w')",
        f"eval(\"open({str(written)!r}, 'w')\")",
    ):
        assert not task.verify(problem, said)
    assert not written.exists()


def test_answers_that_would_take_forever_are_wrong() -> None:
    task, [problem, *_] = drawn("countdown")
    for said in ("9" * 1_000_000, "(" * 3000, "factorial(10**9)", "1" + "+1" * 2000):
        assert not task.verify(problem, said)
