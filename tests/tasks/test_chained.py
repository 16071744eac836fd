"""Chained controls: the answer follows step by step, and only so."""

from __future__ import annotations

import random
import re
from itertools import pairwise

from apr_agents.tasks.chained import RULES, ChainedTask, draw_rules


def obey(rule: str, value: int) -> int:
    """What a reader makes of a rule's words."""
    numbers = list(map(int, re.findall(r"\d+", rule)))
    if rule.startswith("if it is even"):
        return value + numbers[0] if value % 2 else value // 2
    if rule.startswith("if it is above"):
        return value - numbers[1] if value > numbers[0] else value * 2
    if rule.startswith("add"):
        return int(str(value + numbers[0])[::-1])
    assert rule.startswith("multiply")
    return value * numbers[0] % numbers[1]


def test_the_answer_follows_from_the_words_of_the_rules() -> None:
    for problem in ChainedTask(steps=30).problems(200, seed=0):
        start, *rules = problem.question.splitlines()[:-1]
        told = re.search(r"\d+", start)
        assert told is not None
        value = int(told[0])
        assert len(rules) == 30
        for rule in rules:
            value = obey(rule.partition(". ")[2], value)
            assert value >= 0
        assert int(problem.answer) == value


def test_the_answer_follows_from_turning_the_pages() -> None:
    for problem in ChainedTask(kind="pages", steps=9).problems(200, seed=0):
        following = dict(re.findall(r"Page (\d+) says: turn to page (\d+)\.", problem.question))
        told = re.search(r"Start on page (\d+) and turn 9 times", problem.question)
        assert told is not None
        visited = [told[1]]
        for _ in range(9):
            visited.append(following[visited[-1]])
        assert problem.answer == visited[-1]
        assert len(set(visited)) == 10


def test_no_rule_is_followed_by_one_of_its_kind() -> None:
    for seed in range(50):
        kinds = [re.sub(r"\d+", "", rule.text) for rule in draw_rules(random.Random(seed), 40)]
        assert all(before != after for before, after in pairwise(kinds))
        assert len(set(kinds)) == len(RULES)


def test_the_start_matters_to_the_end() -> None:
    """Or a thread could begin in the middle."""
    rules = draw_rules(random.Random(0), 12)
    ends = set()
    for start in range(1, 1000):
        value = start
        for rule in rules:
            value = rule.apply(value)
        ends.add(value)
    assert len(ends) > 100
