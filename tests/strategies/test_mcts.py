"""Monte Carlo tree search: which states are selected, expanded, rolled out, and how often.

A few runs are written out by hand; the others are held against a plain search that is written
here from the formulas, without threads.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_agents import Limits, MonteCarloTreeSearch
from apr_agents.backends.scripted import Reply
from apr_agents.errors import InvalidOption
from apr_agents.strategies.scores import judge_prompt
from tests.strategies.conftest import Rule, Solve, Terse, drive


def mcts(**options: Any) -> MonteCarloTreeSearch:
    return MonteCarloTreeSearch(
        **{"prompts": Terse(), "parallel": 1, "branch": 2, "depth": 2, "exploration": 1, **options}
    )


def game(tree: dict[str, str]) -> Rule:
    """What is proposed in each state; an answer names the state it came from."""

    def rule(prompt: str) -> str:
        asked, _, state = prompt.partition(" ")
        return "\n".join(tree.get(state, "").split()) if asked == "propose" else f"from {state}"

    return rule


def worth(rewards: dict[str, float]) -> Any:
    return lambda question, answer: rewards.get(answer.removeprefix("from "), 0.0)


TREE = {"": "a b", "a": "c d", "b": "e f"}


# --- one after another -----------------------------------------------------------------


async def test_a_simulation_selects_expands_rolls_out_and_backpropagates(solve: Solve) -> None:
    """a is the first child and gets 0.2, b gets 0.6; UCT then leads to b until a is due again."""
    rewards = {"a": 0.2, "b": 0.6, "b>e": 0.1, "b>f": 0.4}
    run = await solve(mcts(simulations=4, reward=worth(rewards)), game(TREE))
    assert run.asked == [
        ["propose "], ["answer a"],
        ["answer b"],
        ["propose b"], ["answer b>e"],
        # b: (0.6 + 0.1) / 2 + sqrt(ln 3 / 2) = 1.09; a: 0.2 + sqrt(ln 3) = 1.25
        ["propose a"], ["answer a>c"],
    ]  # fmt: skip
    assert run.answer == "from b"


async def test_the_exploration_constant_weighs_what_is_little_known(solve: Solve) -> None:
    rewards = {"a": 0.9, "a>c": 0.8, "a>d": 0.8}

    async def visits(exploration: float) -> Counter[str]:
        strategy = mcts(simulations=12, exploration=exploration, reward=worth(rewards))
        run = await solve(strategy, game(TREE))
        ends = [asked for block in run.asked for asked in block if asked.startswith("answer")]
        return Counter(end.removeprefix("answer ")[0] for end in ends)

    assert await visits(0) == {"a": 11, "b": 1}
    assert await visits(100) == {"a": 6, "b": 6}


async def test_the_model_rates_answers_and_each_answer_once(solve: Solve) -> None:
    def rule(prompt: str) -> str:
        if prompt.startswith("Q\n"):
            return "7" if "from b" in prompt else "4"
        return "from b" if prompt == "answer b>f" else str(game(TREE)(prompt))

    run = await solve(mcts(simulations=6), rule)
    judged = [asked for block in run.asked for asked in block if asked.startswith("Q")]
    assert len(judged) == len(set(judged))
    assert judge_prompt("Q", "from b") in judged
    assert run.answer == "from b"


async def test_a_perfect_answer_ends_the_search(solve: Solve) -> None:
    strategy = mcts(simulations=50, reward=lambda question, answer: answer == "from b")
    run = await solve(strategy, game(TREE))
    assert run.asked == [["propose "], ["answer a"], ["answer b"]]
    assert run.answer == "from b"


async def test_complete_states_and_those_at_full_depth_get_no_children(solve: Solve) -> None:
    class Solved(Terse):
        def is_complete(self, question: str, thoughts: Any) -> bool:
            return thoughts == ("a",)

    run = await solve(mcts(simulations=8, prompts=Solved(), reward=worth({"a": 0.5})), game(TREE))
    proposed = {asked for block in run.asked for asked in block if asked.startswith("propose")}
    assert proposed == {"propose ", "propose b"}


# --- at once ---------------------------------------------------------------------------


async def test_simulations_at_once_go_different_ways_under_virtual_loss(solve: Solve) -> None:
    run = await solve(mcts(simulations=4, parallel=4, reward=worth({})), game(TREE))
    # Without a visit that counts before its reward is in, all four would have gone to a.
    assert run.asked == [["propose "], ["answer a", "answer b", "answer a", "answer b"]]


async def test_a_batch_expands_all_its_leaves_in_one_block(solve: Solve) -> None:
    strategy = mcts(simulations=6, parallel=2, reward=worth({"a": 0.3, "b": 0.3}))
    run = await solve(strategy, game(TREE))
    assert run.asked == [
        ["propose "], ["answer a", "answer b"],
        ["propose a", "propose b"], ["answer a>c", "answer b>e"],
        ["answer a>d", "answer b>f"],
    ]  # fmt: skip


async def test_a_last_batch_is_as_small_as_it_has_to_be(solve: Solve) -> None:
    run = await solve(mcts(simulations=5, parallel=3, reward=worth({})), game(TREE))
    rollouts = [len(block) for block in run.asked if block[0].startswith("answer")]
    assert rollouts == [3, 2]


# --- against a plain search --------------------------------------------------------------


@dataclass(eq=False)
class Plain:
    state: str
    above: Plain | None = None
    below: list[Plain] = field(default_factory=list)
    n: int = 0
    w: float = 0.0


def plain_search(
    tree: dict[str, str], rewards: dict[str, float], simulations: int, parallel: int, c: float
) -> tuple[list[list[str]], dict[str, tuple[int, float]]]:
    """The rollouts of each batch, and visits and total reward of every state."""
    root = Plain("")

    def enter(node: Plain) -> Plain:
        fresh = [child for child in node.below if child.n == 0]
        scores = [
            child.w / child.n + c * math.sqrt(math.log(node.n) / child.n) if child.n else math.inf
            for child in node.below
        ]
        child = fresh[0] if fresh else node.below[scores.index(max(scores))]
        child.n += 1
        return child

    batches, done = [], 0
    while done < simulations:
        leaves = []
        for _ in range(min(parallel, simulations - done)):
            root.n += 1
            node, new = root, False
            while node.below and not new:
                node = enter(node)
                new = node.n == 1
            leaves.append((node, new))
        for leaf, new in leaves:
            if not new and not leaf.below:
                names = tree.get(leaf.state, "").split()
                leaf.below = [Plain(f"{leaf.state}>{name}".lstrip(">"), leaf) for name in names]
        ends = [leaf if new or not leaf.below else enter(leaf) for leaf, new in leaves]
        for end in ends:
            node = end
            while node is not None:
                node.w += rewards.get(end.state, 0.0)
                node = node.above
        batches.append([end.state for end in ends])
        done += len(ends)

    def walk(node: Plain) -> list[Plain]:
        return [node, *(one for child in node.below for one in walk(child))]

    return batches, {node.state: (node.n, node.w) for node in walk(root)}


STATES = ["", "a", "b", "c", *(f"{x}>{y}" for x in "abc" for y in "xyz")]


@given(
    names=st.lists(st.sampled_from(["a b c", "a b", "a"]), min_size=1, max_size=1),
    below=st.tuples(*[st.sampled_from(["x y z", "x", ""])] * 3),
    rewards=st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9]), min_size=13, max_size=13),
    simulations=st.integers(1, 40),
    parallel=st.integers(1, 6),
    c=st.sampled_from([0.0, 0.5, math.sqrt(2), 5.0]),
)
@settings(max_examples=150)
def test_every_selection_is_that_of_the_formulas(
    names: list[str],
    below: Sequence[str],
    rewards: list[float],
    simulations: int,
    parallel: int,
    c: float,
) -> None:
    tree = {"": names[0], **dict(zip("abc", below, strict=True))}
    worths = dict(zip(STATES, rewards, strict=True))
    strategy = mcts(
        simulations=simulations, parallel=parallel, exploration=c, branch=3, reward=worth(worths)
    )
    expected, nodes = plain_search(tree, worths, simulations, parallel, c)
    asked, answer = drive(strategy, game(tree))
    rollouts = [
        [end.removeprefix("answer ") for end in block]
        for block in asked
        if block[0].startswith("answer")
    ]
    assert rollouts == expected
    assert nodes[""][0] == simulations
    seen = [state for batch in rollouts for state in batch]
    assert answer == f"from {max(seen, key=lambda state: worths[state])}"


# --- what goes wrong -------------------------------------------------------------------


async def test_a_rollout_that_fails_counts_as_one_without_reward(solve: Solve) -> None:
    def rule(prompt: str) -> Reply | str:
        if prompt == "answer a":
            return Reply("", fails=RuntimeError("gone"))
        return game(TREE)(prompt)

    run = await solve(mcts(simulations=3, reward=worth({"b": 0.1})), rule)
    assert run.asked == [
        ["propose "], ["answer a"], ["answer b"], ["propose b"], ["answer b>e"],
    ]  # fmt: skip
    assert run.answer == "from b"


async def test_a_reward_that_raises_is_none_and_the_run_says_so(solve: Solve) -> None:
    def reward(question: str, answer: str) -> float:
        return {"from b": 0.5}[answer]

    run = await solve(mcts(simulations=2, reward=reward), game(TREE))
    assert run.answer == "from b"
    assert run.notes == ["reward raised KeyError: 'from a'"]


async def test_limits_end_the_search_with_the_best_answer_so_far(solve: Solve) -> None:
    strategy = mcts(simulations=40, reward=worth({"b": 0.5}))
    run = await solve(strategy, game(TREE), limits=Limits(max_total_threads=5))
    assert run.answer == "from b"
    assert run.trajectory.root.status == "done"


async def test_an_answer_that_nobody_could_judge_any_more_is_better_than_none(
    solve: Solve,
) -> None:
    run = await solve(mcts(), game(TREE), limits=Limits(max_total_threads=2))
    assert run.answer == "from a"


@pytest.mark.parametrize(
    "wrong",
    [{"simulations": 0}, {"parallel": 0}, {"branch": 0}, {"depth": 0}, {"exploration": -1}],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match=next(iter(wrong))):
        MonteCarloTreeSearch(**wrong)
