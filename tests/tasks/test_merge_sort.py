"""Merge sort: the list in the question, in order."""

from __future__ import annotations

import re

import pytest

from apr_agents.tasks.merge_sort import MergeSortTask


@pytest.mark.parametrize("numbers", [2, 5, 64, 500])
def test_the_answer_is_the_list_in_order(numbers: int) -> None:
    for problem in MergeSortTask(numbers).problems(50, seed=0):
        told = re.search(r": ([\d, ]+)\.", problem.question)
        assert told is not None
        given = list(map(int, told[1].split(", ")))
        assert len(given) == numbers
        assert list(map(int, problem.answer.split(", "))) == sorted(given)


def test_the_last_merge_is_not_parallel() -> None:
    [problem] = MergeSortTask(64).problems(1, seed=0)
    assert (problem.parallel_share, problem.parts) == (5 / 6, 2)  # five of six levels of merges
    [problem] = MergeSortTask(2).problems(1, seed=0)
    assert (problem.parallel_share, problem.parts) == (0, 1)
