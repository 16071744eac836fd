"""Needles: what is asked for is in the text, once."""

from __future__ import annotations

import re

import pytest

from apr_agents.errors import InvalidOption
from apr_agents.tasks.needles import NeedlesTask
from apr_agents.tasks.registry import resolve


def test_the_answer_follows_from_the_text() -> None:
    for problem in NeedlesTask().problems(100, seed=0):
        text, question = problem.question.split("\n\n")
        codes = dict(re.findall(r"The code of the (\w+ \w+) is (\d+)\.", text))
        assert len(codes) == len(set(codes.values())) == text.count("The code of") == 16
        asked = re.search(r"in this order: (.*?)\?", question)
        assert asked is not None
        assert problem.answer == ", ".join(codes[name] for name in asked[1].split(", "))


@pytest.mark.parametrize("tokens", [4000, 64_000])
def test_texts_have_about_the_length_asked_for(tokens: int) -> None:
    for problem in NeedlesTask(tokens=tokens).problems(5, seed=0):
        text = problem.question.split("\n\n")[0]
        assert len(text) / 4 == pytest.approx(tokens, rel=0.05)
        assert problem.parts == text.count(".")


def test_needles_lie_all_over_the_text() -> None:
    places = []
    for problem in NeedlesTask(needles=4).problems(50, seed=0):
        text = problem.question.split("\n\n")[0]
        places += [found.start() / len(text) for found in re.finditer("The code of", text)]
    assert 0.4 < sum(places) / len(places) < 0.6
    assert min(places) < 0.05
    assert max(places) > 0.95


def test_more_than_there_is_cannot_be_asked_for() -> None:
    with pytest.raises(InvalidOption, match="asked is 4, but must be at most"):
        resolve("needles:needles=2")
