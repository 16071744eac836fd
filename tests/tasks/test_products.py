"""Products: exact, and as many digits as asked for."""

from __future__ import annotations

import re

import pytest

from apr_agents.tasks.products import ProductsTask


def factors(question: str) -> list[int]:
    told = re.match(r"What is ([\d* ]+)\?", question)
    assert told is not None
    return list(map(int, told[1].split(" * ")))


def test_the_answer_is_the_product_of_the_factors_in_the_question() -> None:
    for task in (ProductsTask(), ProductsTask(factors=3), ProductsTask(factors=2, digits=20)):
        for problem in task.problems(200, seed=0):
            product = 1
            for factor in factors(problem.question):
                product *= factor
            assert int(problem.answer) == product


def test_without_options_there_are_five_to_eight_factors_up_to_1000() -> None:
    asked = [factors(problem.question) for problem in ProductsTask().problems(500, seed=0)]
    assert {len(each) for each in asked} == {5, 6, 7, 8}
    assert all(2 <= factor <= 1000 for each in asked for factor in each)


@pytest.mark.parametrize(("count", "digits"), [(2, 1), (2, 8), (4, 3)])
def test_factors_have_the_digits_asked_for(count: int, digits: int) -> None:
    for problem in ProductsTask(factors=count, digits=digits).problems(100, seed=0):
        asked = factors(problem.question)
        assert len(asked) == count
        assert all(len(str(factor)) == digits and factor > 1 for factor in asked)


def test_shares_count_the_products_of_digits_in_the_halves() -> None:
    def share(count: int, digits: int) -> tuple[float | None, int | None]:
        [problem] = ProductsTask(factors=count, digits=digits).problems(1, seed=0)
        return problem.parallel_share, problem.parts

    assert share(8, 3) == (2 * 6 / 28, 2)  # pairs within two halves of four, of all pairs of eight
    assert share(4, 2) == (2 / 6, 2)
    assert share(3, 2) == (0, 1)
    assert share(2, 8) == (8 / 9, 8)
    assert share(2, 1) == (0, 1)
