"""Aggregation: the answer follows from the document alone."""

from __future__ import annotations

import re

import pytest

from apr_agents.errors import InvalidOption
from apr_agents.tasks.aggregation import AggregationTask
from apr_agents.tasks.registry import resolve

RECORD = re.compile(
    r"Record (?P<number>\d+): sender \w+, warehouse (?P<warehouse>\w+), goods (?P<goods>\w+), "
    r"units (?P<units>\d+), returned \d+\.(?: Note: .+)?"
)
QUERY = re.compile(
    r"(?P<what>How many records have|What is the sum of the units of all records with) "
    r"(?P<field>warehouse|goods) (?P<wanted>\w+)\?"
)


def work_out(question: str) -> int:
    document, query = question.split("\n\n")
    records = [RECORD.fullmatch(line) for line in document.splitlines()]
    asked = QUERY.match(query)
    assert asked is not None
    assert all(records)
    chosen = [each for each in records if each and each[asked["field"]] == asked["wanted"]]
    return len(chosen) if asked["what"].startswith("How") else sum(int(e["units"]) for e in chosen)


@pytest.mark.parametrize(
    "options", ["", ":records=5,tokens=0", ":records=300,tokens=16000", ":kind=count", ":kind=sum"]
)
def test_the_answer_follows_from_the_document(options: str) -> None:
    for problem in resolve(f"aggregation{options}").problems(60, seed=0):
        assert int(problem.answer) == work_out(problem.question) > 0


@pytest.mark.parametrize(("records", "tokens"), [(64, 4000), (64, 64_000), (1000, 64_000)])
def test_documents_have_about_the_length_asked_for(records: int, tokens: int) -> None:
    for problem in AggregationTask(records=records, tokens=tokens).problems(5, seed=0):
        document = problem.question.split("\n\n")[0]
        assert document.count("\n") == records - 1
        assert len(document) / 4 == pytest.approx(tokens, rel=0.05)
        assert problem.parts == records


def test_both_kinds_of_question_are_asked_unless_one_is_chosen() -> None:
    def asked(task: AggregationTask) -> set[str]:
        return {each.facts["query"].kind for each in task.problems(40, seed=0)}

    assert asked(AggregationTask()) == {"count", "sum"}
    assert asked(AggregationTask(kind="sum")) == {"sum"}


def test_records_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidOption, match="at least 2560 for 64 records"):
        resolve("aggregation:records=64,tokens=100")
