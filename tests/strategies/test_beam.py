"""Beam over thoughts: the capacity stays, the worst line gives way to the best."""

from __future__ import annotations

from typing import Any

import pytest

from apr_agents import Beam, Limits
from apr_agents.backends.scripted import Reply
from apr_agents.errors import InvalidOption
from tests.strategies.conftest import Rule, Solve, Terse


def beam(**options: Any) -> Beam:
    return Beam(**{"prompts": Terse(), "capacity": 3, "depth": 2, **options})


def sampling(thoughts: str, values: dict[str, float]) -> Rule:
    """Samples are these thoughts, one after the other."""
    told = iter(thoughts)

    def rule(prompt: str) -> str:
        asked, _, state = prompt.partition(" ")
        if asked == "sample":
            return next(told)
        return str(values.get(state, 1)) if asked == "value" else f"answer of {state}"

    return rule


async def test_after_each_step_the_worst_line_becomes_a_copy_of_the_best(solve: Solve) -> None:
    values = {"a": 2.0, "b": 9.0, "c": 1.0, "b>e": 3.0, "b>f": 7.0}
    run = await solve(beam(), sampling("abcdef", values))
    assert run.asked == [
        ["sample "] * 3,
        ["value a", "value b", "value c"],
        ["sample a", "sample b", "sample b"],  # c gave way
        ["value a>d", "value b>e", "value b>f"],
        ["answer b>f"],
    ]
    assert run.calls == 2 * (3 + 3) + 1


async def test_equal_lines_are_not_swapped(solve: Solve) -> None:
    run = await solve(beam(), sampling("abcdef", {}))
    assert run.asked[2] == ["sample a", "sample b", "sample c"]
    assert run.asked[-1] == ["answer a>d"]


async def test_several_swaps_take_the_best_for_the_worst_in_turn(solve: Solve) -> None:
    values = {"a": 1.0, "b": 8.0, "c": 2.0, "d": 9.0}
    run = await solve(beam(capacity=4, swaps=2), sampling("abcdefgh", values))
    # a is the worst and gets d; c is the second worst and gets b
    assert run.asked[2] == ["sample d", "sample b", "sample b", "sample d"]


async def test_without_swaps_lines_stay_on_their_own(solve: Solve) -> None:
    run = await solve(beam(swaps=0), sampling("abcdef", {"b": 9}))
    assert run.asked[2] == ["sample a", "sample b", "sample c"]


async def test_a_function_may_score_in_the_place_of_the_model(solve: Solve) -> None:
    def alphabet(question: str, thoughts: tuple[str, ...]) -> float:
        assert question == "Q"
        return ord(thoughts[-1])

    run = await solve(beam(score=alphabet), sampling("cabxyz", {}))
    assert run.asked == [
        ["sample "] * 3,
        ["sample c", "sample c", "sample b"],
        ["answer b>z"],
    ]


async def test_a_line_that_cannot_be_scored_comes_last(solve: Solve) -> None:
    def picky(question: str, thoughts: tuple[str, ...]) -> float:
        return {"a": 1.0, "b": 2.0}[thoughts[0]]

    run = await solve(beam(depth=1, score=picky), sampling("abx", {}))
    assert run.answer == "answer of b"
    assert run.notes == ["picky raised KeyError: 'x'"]


async def test_equal_lines_are_valued_once(solve: Solve) -> None:
    run = await solve(beam(depth=1), sampling("aab", {}))
    assert run.asked[1] == ["value a", "value b"]


async def test_a_line_whose_thread_failed_stays_where_it_is(solve: Solve) -> None:
    told = iter("ab?cde")

    def rule(prompt: str) -> Reply | str:
        if prompt.startswith("sample") and (thought := next(told)) == "?":
            return Reply("", fails=RuntimeError("gone"))
        return thought if prompt.startswith("sample") else "1"

    run = await solve(beam(), rule)
    assert run.asked[:3] == [
        ["sample "] * 3,
        ["value a", "value b", "value "],
        ["sample a", "sample b", "sample "],
    ]


async def test_a_complete_line_grows_no_more(solve: Solve) -> None:
    class Short(Terse):
        def is_complete(self, question: str, thoughts: Any) -> bool:
            return thoughts == ("a",)

    run = await solve(beam(prompts=Short()), sampling("abcde", {"a": 5, "b": 5}))
    assert run.asked[2] == ["sample b"]


async def test_limits_end_it_with_the_best_line_so_far(solve: Solve) -> None:
    run = await solve(
        beam(), sampling("abc", {"b": 9}), limits=Limits(max_total_threads=6, max_threads=6)
    )
    assert run.answer == "b"


@pytest.mark.parametrize("wrong", [{"capacity": 0}, {"swaps": 2}, {"swaps": -1}, {"depth": 0}])
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match=next(iter(wrong))):
        beam(**wrong)
