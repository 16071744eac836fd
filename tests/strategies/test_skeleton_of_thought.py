"""Skeleton of thought: the router, the skeleton, the points at once."""

from __future__ import annotations

import pytest

from apr_agents import Limits, SkeletonOfThought
from apr_agents.backends.scripted import Reply
from apr_agents.errors import InvalidOption
from apr_agents.strategies.skeleton_of_thought import (
    point_prompt,
    router_prompt,
    skeleton_prompt,
)
from tests.strategies.conftest import Rule, Solve

SKELETON = "1. Sleep well\n2. Eat well\n3. Walk"


def model(verdict: str = "LIST", skeleton: str = SKELETON) -> Rule:
    replies = {router_prompt("Q"): verdict, skeleton_prompt("Q"): skeleton, "Q": "all in one"}

    def rule(prompt: str) -> str:
        if prompt in replies:
            return replies[prompt]
        return f"More on {prompt.split('Write point ')[1][0]}."

    return rule


async def test_all_points_are_written_at_once_and_put_together_in_order(solve: Solve) -> None:
    run = await solve(SkeletonOfThought(), model())
    assert run.asked == [
        [router_prompt("Q")],
        [skeleton_prompt("Q")],
        [point_prompt("Q", SKELETON, number) for number in (1, 2, 3)],
    ]
    assert run.answer == (
        "1. Sleep well\nMore on 1.\n\n2. Eat well\nMore on 2.\n\n3. Walk\nMore on 3."
    )
    assert run.calls == 5


@pytest.mark.parametrize("verdict", ["CHAIN", "A list? No: a chain.", "I cannot tell", ""])
async def test_a_question_that_is_no_list_is_answered_in_one_piece(
    solve: Solve, verdict: str
) -> None:
    run = await solve(SkeletonOfThought(), model(verdict))
    assert run.asked == [[router_prompt("Q")], ["Q"]]
    assert run.answer == "all in one"


async def test_without_the_router_every_question_gets_a_skeleton(solve: Solve) -> None:
    run = await solve(SkeletonOfThought(router=False), model("CHAIN"))
    assert run.calls == 4


@pytest.mark.parametrize("skeleton", ["1. Only one", "no points here", "2. same\n2. number"])
async def test_a_skeleton_of_less_than_two_points_is_none(solve: Solve, skeleton: str) -> None:
    run = await solve(SkeletonOfThought(), model(skeleton=skeleton))
    assert run.asked[2:] == [["Q"]]
    assert run.answer == "all in one"


async def test_points_are_read_in_many_forms_and_numbered_anew(solve: Solve) -> None:
    skeleton = "Here it is:\n**2.** Bold\n - 3) Listed\n7: Odd\nNot a point\n8. Too many"
    run = await solve(SkeletonOfThought(points=2), model(skeleton=skeleton))
    assert run.answer == "1. Bold\nMore on 1.\n\n2. Listed\nMore on 2."


async def test_a_point_whose_thread_failed_stands_as_it_is_in_the_skeleton(solve: Solve) -> None:
    def rule(prompt: str) -> Reply | str:
        if "Write point 2" in prompt:
            return Reply("", fails=RuntimeError("gone"))
        return model()(prompt)

    run = await solve(SkeletonOfThought(), rule)
    assert run.answer == "1. Sleep well\nMore on 1.\n\n2. Eat well\n\n3. Walk\nMore on 3."


async def test_where_no_point_may_be_written_the_skeleton_is_the_answer(solve: Solve) -> None:
    run = await solve(SkeletonOfThought(), model(), limits=Limits(max_total_threads=2))
    assert run.answer == SKELETON


def test_a_number_of_points_must_be_one() -> None:
    with pytest.raises(InvalidOption, match="points"):
        SkeletonOfThought(points=0)
