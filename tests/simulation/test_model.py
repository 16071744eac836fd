from __future__ import annotations

from typing import Any

import pytest

from apr_agents.backends.base import Request
from apr_agents.errors import InvalidOption
from apr_agents.protocols.base import Spawn
from apr_agents.protocols.threadweaver import ThreadWeaver
from apr_agents.simulation.model import IdealModel
from apr_agents.simulation.scenario import Workload


def ask(prompt: str, key: str = "0/0", context: int = 0, **work: Any) -> str:
    model = IdealModel(Workload(tokens=4, **work))
    return model.reply(Request(prompt=prompt, max_tokens=99, key=key), context)


def asked(budget: int, share: str = "7: parts 1-8") -> str:
    return f"{share}\n...\nThreads: {budget}\n<think>\n"


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (2, ["7: parts 1-4 apart", "7: parts 5-8 apart"]),
        (3, ["7: parts 1-2 apart", "7: parts 3-5 apart", "7: parts 6-8 apart"]),
        (99, [f"7: parts {i}-{i} apart" for i in range(1, 9)]),
    ],
)
def test_it_splits_into_as_many_runs_as_it_may_use_and_has_parts(
    budget: int, expected: list[str]
) -> None:
    decision = ThreadWeaver().parser(thread=False, written="").feed(ask(asked(budget)))
    assert isinstance(decision, Spawn)
    assert [outline.text for outline in decision.outlines] == expected


@pytest.mark.parametrize(
    ("budget", "share", "work"),
    [(0, "7: parts 1-8", {}), (1, "7: parts 1-8", {}), (8, "7: parts 3-3", {}),
     (8, "7: parts 1-8", {"share": 0.0})],
)  # fmt: skip
def test_it_does_not_split_what_is_forbidden_single_or_a_chain(
    budget: int, share: str, work: dict[str, Any]
) -> None:
    parts = 1 if "3-3" in share else 8
    said = ask(asked(budget, share), **work)
    assert said == "." * (4 * parts) + f"\n</think>\n{parts}"


def test_a_thread_does_the_part_of_its_outline_that_can_be_done_apart() -> None:
    prompt = asked(2) + ask(asked(2), share=0.75) + "\n<Thread>\n2:"
    assert ask(prompt, "0.2/0", share=0.75) == "." * (3 * 4) + "\n4</Thread>"


def test_a_thread_that_is_asked_like_a_root_may_split_again() -> None:
    assert "7: parts 3-3 apart" in ask(asked(2, "7: parts 3-4 apart"))
    assert ask(asked(0, "7: parts 3-4 apart"), share=0.5) == "." * 4 + "\n</think>\n2"


def test_what_has_to_wait_is_done_behind_the_join_and_then_added_up() -> None:
    prompt = asked(2) + ask(asked(2))
    joined = prompt + "\n<Thread>\n1: 4</Thread><Thread>\n2:....\n40</Thread>"
    assert ask(joined, share=0.75) == f"\n</Parallel>\n{'.' * 8}\n4+40\n</think>\n44"


def test_a_thread_that_came_to_nothing_counts_nothing() -> None:
    joined = (
        asked(2) + ask(asked(2)) + "\n<Thread>\n1: 4</Thread><Thread>\n2: (timed_out: x)</Thread>"
    )
    assert ask(joined).endswith("\n4+0\n</think>\n4")


def test_where_no_thread_was_allowed_it_goes_on_alone() -> None:
    assert ask(asked(2) + ask(asked(2)) + "\n</Parallel>\n").endswith("." * 32 + "\n</think>\n8")


def test_a_token_goes_wrong_the_more_often_the_longer_its_context() -> None:
    work = Workload(error=0.001, rot=1000)
    assert [work.wrong(context) for context in (0, 1000, 4000)] == pytest.approx(
        [0.001, 0.002, 0.005]
    )
    assert Workload(error=0.001).wrong(10**9) == 0.001
    assert Workload(error=0.5, rot=1).wrong(100) == 1.0


def test_a_part_is_right_as_often_as_the_formula_says() -> None:
    # 4 tokens that end at 1004 tokens of context.
    expected = (1 - 0.01 * (1 + 1004 / 100)) ** 4
    right = sum(
        ask(asked(0, f"{user}: parts 1-1"), context=1000, error=0.01, rot=100.0).endswith("\n1")
        for user in range(4000)
    )
    assert right / 4000 == pytest.approx(expected, abs=0.024)  # three standard deviations


def test_the_same_call_errs_in_the_same_way_and_another_one_differently() -> None:
    said = [ask(asked(0), key, error=1.0) for key in ("0.1/0", "0.1/0", "0.2/0")]
    assert said[0] == said[1] != said[2]


@pytest.mark.parametrize(
    "option",
    [{"parts": 0}, {"tokens": 0}, {"prompt": -1}, {"share": 1.5}, {"error": float("nan")},
     {"rot": 0.0}, {"rot": float("inf")}],
)  # fmt: skip
def test_work_that_cannot_be_is_refused(option: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match=next(iter(option))):
        Workload(**option)
