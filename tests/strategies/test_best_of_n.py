"""Best of N: which sample is taken, by whose word, and what that costs."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import pytest

from apr_agents import BestOfN, Limits, create_parallel_agent
from apr_agents.backends.base import Request
from apr_agents.backends.scripted import Reply, ScriptedBackend, TokenClock
from apr_agents.errors import InvalidOption
from apr_agents.strategies.scores import judge_prompt, rating
from tests.strategies.conftest import WIDE, Rule, Solve, chats


def saying(*answers: Reply | str) -> Rule:
    """Samples in this order; a judge sees their worth in their length."""
    told = iter(answers)

    def rule(prompt: str) -> Reply | str:
        if prompt == "Q":
            return next(told)
        answer = prompt.split("\n")[3]
        return f"It has flaws. {min(len(answer), 10)}/10"

    return rule


# --- the model rates -------------------------------------------------------------------


async def test_the_model_rates_each_sample_and_the_best_is_taken(solve: Solve) -> None:
    run = await solve(BestOfN(n=3), saying("one", "three", "two"))
    assert run.answer == "three"
    assert run.asked == [["Q"] * 3, [judge_prompt("Q", text) for text in ("one", "three", "two")]]
    assert run.calls == 6


async def test_of_equal_samples_the_first_is_taken(solve: Solve) -> None:
    assert (await solve(BestOfN(n=3), saying("a", "bbb", "ccc"))).answer == "bbb"


async def test_samples_that_failed_are_not_rated(solve: Solve) -> None:
    broken = Reply("x" * 10, fails=RuntimeError("gone"))
    run = await solve(BestOfN(n=3), saying("a", broken, "bb"))
    assert run.answer == "bb"
    assert run.calls == 5


async def test_a_sample_whose_rating_failed_comes_last(solve: Solve) -> None:
    def rule(prompt: str) -> Reply | str:
        if prompt == judge_prompt("Q", "long answer"):
            return Reply("", fails=RuntimeError("gone"))
        return samples(prompt)

    samples = saying("long answer", "b", "cc")
    assert (await solve(BestOfN(n=3), rule)).answer == "cc"


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("8", 0.8),
        ("8/10", 0.8),
        ("Steps 1 and 2 hold.\n7.5 out of 10", 0.75),
        ("10", 1.0),
        ("42", 1.0),
        ("Score: **3**", 0.3),
        ("none", None),
        ("", None),
    ],
)
def test_the_rating_in_a_reply(text: str, share: float | None) -> None:
    assert rating(text) == share


# --- a function scores -----------------------------------------------------------------


async def test_a_function_of_the_question_and_the_sample_scores(solve: Solve) -> None:
    seen = []

    def closeness(question: str, sample: str) -> float:
        seen.append((question, sample))
        return -abs(int(sample) - 5)

    run = await solve(BestOfN(n=3, score=closeness), saying("1", "4", "9"))
    assert run.answer == "4"
    assert run.calls == 3
    assert sorted(seen) == [("Q", "1"), ("Q", "4"), ("Q", "9")]  # once each


async def test_samples_that_have_no_score_come_last_and_the_run_says_so(solve: Solve) -> None:
    scores: dict[str, Any] = {"a": math.nan, "b": None, "d": Decimal("0.1"), "e": "good"}
    run = await solve(BestOfN(n=5, score=lambda q, s: scores[s]), saying(*"abcde"))
    assert run.answer == "d"
    assert run.notes == [
        "<lambda> raised KeyError: 'c'",
        "number raised ValueError: could not convert string to float: 'good'",
    ]


async def test_where_no_sample_has_a_score_the_first_is_taken(solve: Solve) -> None:
    run = await solve(BestOfN(n=2, score=lambda q, s: 1 / 0), saying("a", "b"))
    assert run.answer == "a"
    assert run.notes == ["<lambda> raised ZeroDivisionError: division by zero (2 times)"]


async def test_the_first_verified_sample_is_taken_and_the_others_are_stopped() -> None:
    clock = TokenClock()

    def script(request: Request) -> str:
        number = int(request.key[2])
        return "<a>" * 1000 * (number == 1) + f" {number}"

    model = ScriptedBackend(script, clock=clock)
    strategy = BestOfN(n=3, score=lambda question, sample: sample.strip() == "3")
    agent = create_parallel_agent(model, strategy=strategy)
    output = await agent.ainvoke({"messages": [("user", "Q")]})
    assert output["messages"][-1].text.strip() == "3"
    threads = output["trajectory"]["root"]["steps"][0]["threads"]
    assert [thread["status"] for thread in threads] == ["cancelled", "done", "done"]
    assert clock.now < 10


async def test_a_verified_sample_ends_what_a_limit_had_cut(solve: Solve) -> None:
    strategy = BestOfN(n=6, score=lambda question, sample: sample == "b")
    run = await solve(strategy, saying("a", "b"), limits=Limits(max_threads=2))
    assert run.answer == "b"
    assert run.calls == 2


# --- log-probability -------------------------------------------------------------------


async def test_the_sample_with_the_likeliest_tokens_is_taken(ask: Any) -> None:
    """By the mean: three tokens of -1 are better than one of -2."""
    said = iter([Reply("a", logprob=-2.0), Reply("b b", logprob=-3.0), Reply("c c", logprob=-9.0)])
    model = ScriptedBackend(lambda request: next(said))
    trajectory = await ask(create_parallel_agent(model, strategy=BestOfN(n=3, score="logprob")))
    assert trajectory.answer == "b b"
    assert [t.steps[0].logprob for t in trajectory.root.blocks[0].threads] == [-2.0, -3.0, -9.0]
    assert len(model.requests) == 3


async def test_log_probabilities_are_asked_for_only_where_they_are_needed(ask: Any) -> None:
    model = ScriptedBackend(lambda request: Reply("5", logprob=-1.0))
    await ask(create_parallel_agent(model, strategy=BestOfN(n=2)))
    assert not any(request.logprobs for request in model.requests)
    await ask(create_parallel_agent(model, strategy=BestOfN(n=2, score="logprob")))
    assert all(request.logprobs for request in model.requests[4:])


async def test_a_backend_that_does_not_tell_after_all_leaves_the_first(ask: Any) -> None:
    said = iter("ab")
    model = ScriptedBackend(lambda request: next(said))
    trajectory = await ask(create_parallel_agent(model, strategy=BestOfN(n=2, score="logprob")))
    assert trajectory.answer == "a"
    assert [step.why for step in trajectory.root.steps if step.kind == "note"] == [
        "mean_logprob raised LookupError: the model told no log-probability (2 times)"
    ]


def test_a_model_that_cannot_tell_is_refused_at_once() -> None:
    with pytest.raises(InvalidOption, match="does not tell how likely its output is"):
        create_parallel_agent(chats(str), strategy=BestOfN(score="logprob"), limits=WIDE)


def test_an_unknown_score_is_refused() -> None:
    with pytest.raises(InvalidOption, match="'model', 'logprob' or a function"):
        BestOfN(score="luck")  # type: ignore[arg-type]
