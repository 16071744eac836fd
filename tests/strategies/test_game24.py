"""Game of 24 with an oracle that errs: what a search over thoughts and a vote are worth.

The oracle knows the game. Thinking in a chain, it takes a wrong turn at the given rate at each
of the three steps; judging a state, it is wrong at that rate, except on a last one, where there
is nothing left to foresee. Its errors are drawn from what it is asked, so every run is the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import cache
from hashlib import sha256
from itertools import combinations
from math import sqrt
from typing import Any

import pytest

from apr_agents import (
    Limits,
    SelfConsistency,
    ThoughtPrompts,
    TreeOfThoughts,
    create_parallel_agent,
)
from apr_agents.backends.base import Request
from apr_agents.backends.scripted import ScriptedBackend
from apr_agents.tasks.game24 import by_difficulty
from apr_agents.types import ThreadResult
from tests.strategies.conftest import Rule, Solve, drive

Numbers = tuple[Fraction, ...]

ONE_LANE = Limits(max_threads=9, max_concurrency=1)
PUZZLES = [" ".join(map(str, puzzle)) for puzzle in by_difficulty()[900:1000]]


# --- the game --------------------------------------------------------------------------


def read(numbers: str) -> Numbers:
    return tuple(sorted(map(Fraction, numbers.split())))


def show(numbers: Numbers) -> str:
    return " ".join(map(str, numbers))


@cache
def moves(numbers: Numbers) -> list[Numbers]:
    """What may be left after one step."""

    def left() -> Iterator[Numbers]:
        for i, j in combinations(range(len(numbers)), 2):
            a, b = numbers[i], numbers[j]
            others = [n for place, n in enumerate(numbers) if place not in (i, j)]
            results = [a + b, a - b, b - a, a * b]
            results += [a / b] if b else []
            results += [b / a] if a else []
            yield from (tuple(sorted([*others, result])) for result in results)

    return list(dict.fromkeys(left()))


@cache
def solvable(numbers: Numbers) -> bool:
    if len(numbers) == 1:
        return numbers[0] == 24
    return any(map(solvable, moves(numbers)))


# --- the oracle ------------------------------------------------------------------------


def chance(*what: object) -> float:
    """A number from 0 to 1 that depends on ``what`` alone."""
    digest = sha256(repr(what).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def chain(numbers: Numbers, rate: float, *sample: object) -> str:
    """What the oracle comes to when it thinks straight on."""
    while len(numbers) > 1:
        errs = chance("chain", numbers, *sample) < rate
        ways = [left for left in moves(numbers) if solvable(left) is not errs]
        ways = ways or moves(numbers)
        numbers = ways[int(chance("way", numbers, *sample) * len(ways))]
    return show(numbers)


def judged(numbers: Numbers, rate: float, time: int) -> bool:
    """Whether the oracle thinks, when it is asked once more, that these numbers can make 24."""
    errs = len(numbers) > 1 and chance("judge", numbers, time) < rate
    return solvable(numbers) is not errs


class Prompts(ThoughtPrompts):
    """A thought is what is left after a step."""

    def propose(self, question: str, thoughts: Sequence[str], count: int) -> str:
        return f"steps from {[question, *thoughts][-1]}"

    def value(self, question: str, thoughts: Sequence[str]) -> str:
        return f"judge {thoughts[-1]}"

    def worth(self, text: str) -> float:
        return {"sure": 20, "impossible": 0.001}[text]

    def answer(self, question: str, thoughts: Sequence[str]) -> str:
        return f"state {[question, *thoughts][-1]}"


def oracle(rate: float) -> Rule:
    times: Counter[str] = Counter()

    def rule(prompt: str) -> str:
        asked, _, numbers = prompt.rpartition(" from ")
        if asked == "steps":
            return "\n".join(map(show, moves(read(numbers))))
        asked, _, numbers = prompt.partition(" ")
        if asked == "judge":
            times[numbers] += 1
            return "sure" if judged(read(numbers), rate, times[numbers]) else "impossible"
        return numbers if asked == "state" else chain(read(prompt), rate)

    return rule


# --- tree of thoughts and a chain --------------------------------------------------------

TREE = TreeOfThoughts(depth=3, branch=100, width=5, evaluations=3, prompts=Prompts())


def by_the_paper(numbers: Numbers, rate: float) -> str:
    """Breadth-first search as its algorithm says, on the oracle itself."""
    level = [numbers]
    for _ in range(3):
        grown = [left for state in level for left in moves(state)]
        level = sorted(grown, key=lambda left: -sum(judged(left, rate, i) for i in (1, 2, 3)))[:5]
    return show(level[0])


def solved(answer: Callable[[str], Any]) -> set[str]:
    return {puzzle for puzzle in PUZZLES if answer(puzzle) == "24"}


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.2, 0.3])
def test_the_tree_makes_good_what_the_error_rate_costs_a_chain(rate: float) -> None:
    """A chain is right when none of its three steps is wrong, which is a matter of the rate. A
    tree fails only where errors of the judge push all right states of a level out of the best
    five, and three judgements of each make that rare.
    """
    tree = solved(lambda puzzle: drive(TREE, oracle(rate), puzzle)[1])
    alone = solved(lambda puzzle: oracle(rate)(puzzle))

    assert tree == solved(lambda puzzle: by_the_paper(read(puzzle), rate))
    right = (1 - rate) ** 3
    spread = 3 * sqrt(right * (1 - right) / len(PUZZLES))
    assert abs(len(alone) / len(PUZZLES) - right) <= spread
    assert (len(tree) - len(alone)) / len(PUZZLES) >= 0.95 * (1 - right) - spread


async def test_a_tree_is_the_same_on_a_graph(solve: Solve) -> None:
    for puzzle in PUZZLES[:3]:
        asked, answer = drive(TREE, oracle(0.2), puzzle)
        run = await solve(TREE, oracle(0.2), puzzle)
        assert run.asked == asked
        assert run.answer == answer


# --- a vote ----------------------------------------------------------------------------


class Patient(SelfConsistency):
    """Waits for all samples, though nothing can change any more."""

    def settled(self, finished: Sequence[ThreadResult], threads: int) -> bool:
        return len(finished) >= threads


async def test_a_vote_stops_early_with_the_same_answer_and_beats_the_chain(ask: Any) -> None:
    rate, n = 0.2, 9

    def script(request: Request) -> str:
        return chain(read(request.prompt.partition("\n")[0]), rate, request.key)

    async def vote(strategy: SelfConsistency, puzzle: str) -> tuple[str, int]:
        agent = create_parallel_agent(ScriptedBackend(script), strategy=strategy, limits=ONE_LANE)
        trajectory = await ask(agent, puzzle)
        done = [t for t in trajectory.root.blocks[0].threads if t.status == "done"]
        return trajectory.answer, len(done)

    puzzles = PUZZLES[::4]
    votes = [await vote(SelfConsistency(n=n), puzzle) for puzzle in puzzles]
    waited = [await vote(Patient(n=n), puzzle) for puzzle in puzzles]
    assert [answer for answer, _ in votes] == [answer for answer, _ in waited]
    assert {samples for _, samples in waited} == {n}
    assert sum(samples for _, samples in votes) < 0.8 * n * len(puzzles)
    # Wrong answers seldom agree, so the vote is right far more often than one sample.
    assert sum(answer == "24" for answer, _ in votes) / len(puzzles) > (1 - rate) ** 3 + 0.4
