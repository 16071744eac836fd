"""Tree of thoughts on known search spaces: what is asked, in which order, and what is answered."""

from __future__ import annotations

from typing import Any

import pytest

from apr_agents import Limits, ThoughtPrompts, TreeOfThoughts
from apr_agents.errors import InvalidOption
from tests.strategies.conftest import Solve, Terse, space

TREE = {"": "a b c", "a": "d e", "b": "f g", "c": "h", "a>d": "x", "b>f": "y z", "b>g": "w"}


def tree(**options: Any) -> TreeOfThoughts:
    return TreeOfThoughts(**{"prompts": Terse(), "depth": 2, "width": 2, **options})


async def test_breadth_first_keeps_the_best_states_of_each_level(solve: Solve) -> None:
    values: dict[str, float | str] = {"a": 5, "b": 7, "c": 1, "a>d": 3, "b>f": 9, "b>g": 2}
    run = await solve(tree(), space(TREE, values))
    assert run.asked == [
        ["propose "],
        ["value a", "value b", "value c"],
        ["propose b", "propose a"],
        ["value b>f", "value b>g", "value a>d", "value a>e"],
        ["answer b>f"],
    ]
    assert run.answer == "answer of b>f"
    assert run.calls == 1 + 3 + 2 + 4 + 1


async def test_a_wider_beam_finds_what_a_narrow_one_loses(solve: Solve) -> None:
    """The way to the best state begins with the worst one."""
    values: dict[str, float | str] = {"a": 9, "b": 8, "c": 1, "c>h": 99}
    narrow = await solve(tree(width=2), space(TREE, values))
    wide = await solve(tree(width=3), space(TREE, values))
    assert (narrow.answer, wide.answer) == ("answer of a>d", "answer of c>h")


async def test_of_equal_states_the_first_is_kept(solve: Solve) -> None:
    run = await solve(tree(width=1), space(TREE, {}))
    assert run.answer == "answer of a>d"


async def test_any_depth(solve: Solve) -> None:
    chain = {">".join("s" * n): "s" for n in range(12)}
    run = await solve(tree(depth=12), space(chain, {}))
    assert run.answer == f"answer of {'>'.join('s' * 12)}"
    assert run.calls == 2 * 12 + 1


async def test_no_more_than_branch_proposals_count_and_equal_ones_count_once(solve: Solve) -> None:
    run = await solve(tree(depth=1, branch=2), space({"": "a a b c"}, {}))
    assert run.asked[1] == ["value a", "value b"]


async def test_each_state_is_valued_several_times_and_the_mean_counts(solve: Solve) -> None:
    told = {"a": iter("919"), "b": iter("777")}

    def rule(prompt: str) -> str:
        if prompt.startswith("value"):
            return next(told[prompt[-1]])
        return {"propose ": "a\nb"}.get(prompt, prompt)

    run = await solve(tree(depth=1, evaluations=3), rule)
    assert run.asked[1] == ["value a"] * 3 + ["value b"] * 3
    assert run.answer == "answer b"  # 7, above 19/3


async def test_states_with_the_same_prompt_are_valued_once(solve: Solve) -> None:
    class ByLastThought(Terse):
        def value(self, question: str, thoughts: Any) -> str:
            return f"value {thoughts[-1]}"

    run = await solve(tree(prompts=ByLastThought()), space({"": "a b", "a": "b c", "b": "a"}, {}))
    assert run.asked[3] == ["value c"]  # a and b are known


async def test_votes_stand_in_for_values(solve: Solve) -> None:
    ballots = iter(["2", "the best is choice 3", "3", "none", "2", "1", "2"])

    def rule(prompt: str) -> str:
        return next(ballots) if prompt.startswith("vote") else str(space(TREE, {})(prompt))

    run = await solve(tree(depth=1, width=1, evaluate="vote", evaluations=4), rule)
    assert run.asked == [["propose "], ["vote a b c"] * 4, ["answer c"]]


async def test_a_single_state_needs_no_vote(solve: Solve) -> None:
    run = await solve(tree(depth=1, evaluate="vote"), space({"": "a"}, {}))
    assert run.asked == [["propose "], ["answer a"]]


async def test_samples_are_calls_of_their_own(solve: Solve) -> None:
    said = {"sample ": iter("aba"), "sample b": iter("ccc"), "sample a": iter("dee")}

    def rule(prompt: str) -> str:
        if prompt in said:
            return next(said[prompt])
        return {"value b": "9"}.get(prompt, "1")

    run = await solve(tree(generate="sample"), rule)
    assert run.asked[:4] == [
        ["sample "] * 3,
        ["value a", "value b"],
        ["sample b"] * 3 + ["sample a"] * 3,
        ["value b>c", "value a>d", "value a>e"],
    ]


@pytest.mark.parametrize(
    ("text", "thoughts"),
    [
        ("1. Add them.\n2) Halve it.\n\n 3: Stop.", ["Add them.", "Halve it.", "Stop."]),
        ("Here are two:\n**1.** a\n  - 2. **b**: c \nI hope this helps.", ["a", "**b**: c"]),
        ("- one\n* two\n\n  • three", ["one", "two", "three"]),
        ("-5 + 3 = -2\n1.5 * 2 = 3", ["-5 + 3 = -2", "1.5 * 2 = 3"]),
        ("\n \n", []),
    ],
)
def test_the_proposals_in_a_reply_are_its_numbered_lines_or_else_all(
    text: str, thoughts: list[str]
) -> None:
    assert ThoughtPrompts().proposals(text) == thoughts


# --- depth first -----------------------------------------------------------------------


async def test_depth_first_goes_back_to_the_next_best_state_above(solve: Solve) -> None:
    """Below b all is pruned, below a nothing is proposed: c is what is left."""
    tree_ = {"": "a b c", "b": "f g", "a": "", "c": "h", "c>h": "i"}
    values: dict[str, float | str] = {"b": 9, "a": 5, "c": 3, "b>f": 0, "b>g": 0}
    run = await solve(tree(search="dfs", depth=3, prune=0.5), space(tree_, values))
    assert run.asked == [
        ["propose "],
        ["value a", "value b", "value c"],
        ["propose b"],
        ["value b>f", "value b>g"],
        ["propose a"],
        ["propose c"],
        ["value c>h"],
        ["propose c>h"],
        ["value c>h>i"],
        ["answer c>h>i"],
    ]


async def test_it_goes_back_over_several_levels(solve: Solve) -> None:
    tree_ = {"": "a b", "a": "c", "a>c": "d", "b": "e", "b>e": "f"}
    values: dict[str, float | str] = {"a": 2, "a>c>d": 0}
    run = await solve(tree(search="dfs", depth=3, prune=0), space(tree_, values))
    assert [asked for block in run.asked for asked in block if asked.startswith("propose")] == [
        "propose ", "propose a", "propose a>c", "propose b", "propose b>e",
    ]  # fmt: skip
    assert run.answer == "answer of b>e>f"


async def test_where_all_is_pruned_the_deepest_state_is_answered_from(solve: Solve) -> None:
    values: dict[str, float | str] = {"a>d": 0, "a>e": 0, "b": 0, "c": 0}
    run = await solve(tree(search="dfs", prune=0), space(TREE, values))
    assert run.answer == "answer of a"


async def test_a_state_may_be_complete_before_its_depth(solve: Solve) -> None:
    class Solved(Terse):
        def is_complete(self, question: str, thoughts: Any) -> bool:
            return thoughts[-1:] == ("h",)

    values: dict[str, float | str] = {"c": 9, "c>h": 9}
    for search in ("bfs", "dfs"):
        run = await solve(
            tree(search=search, depth=5, width=1, prompts=Solved()), space(TREE, values)
        )
        assert run.asked[-1] == ["answer c>h"]
        assert run.calls == 1 + 3 + 1 + 1 + 1


# --- what goes wrong -------------------------------------------------------------------


async def test_states_without_a_value_come_last_and_are_not_pruned(solve: Solve) -> None:
    values: dict[str, float | str] = {"a": "who knows", "b": 0, "c": 3}
    run = await solve(tree(width=3, prune=1), space(TREE, values))
    assert run.asked[2] == ["propose c", "propose a"]
    assert run.notes == ["worth raised ValueError: could not convert string to float: 'who knows'"]


async def test_without_proposals_the_question_itself_is_answered(solve: Solve) -> None:
    run = await solve(tree(), space({}, {}))
    assert run.asked == [["propose "], ["answer "]]


async def test_limits_end_a_search_with_the_best_state_so_far(solve: Solve) -> None:
    limits = Limits(max_threads=10, max_total_threads=6)
    run = await solve(tree(), space(TREE, {"b": 7}), limits=limits)
    assert run.asked == [
        ["propose "],
        ["value a", "value b", "value c"],
        ["propose b", "propose a"],
    ]
    assert run.answer == "b"
    assert run.trajectory.root.status == "done"
    assert run.notes == ["4 threads asked for, none allowed"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"depth": 0},
        {"branch": 1.5},
        {"width": True},
        {"evaluations": -1},
        {"search": "best"},
        {"generate": "guess"},
        {"evaluate": "feel"},
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match=next(iter(wrong))):
        TreeOfThoughts(**wrong)
