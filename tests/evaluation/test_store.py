"""Results on disk: every way in which a kill can end the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from apr_agents.errors import UnusableFile
from apr_agents.evaluation.run import Case, Configuration, Key, ProblemResult
from apr_agents.evaluation.store import RunStore
from apr_agents.tasks.arithmetic import ArithmeticTask
from apr_agents.tasks.base import Problem

PROBLEMS = [Problem("1+1", "2"), Problem("2+2", "4"), Problem("1+1", "2")]


def case(problems: list[Problem] = PROBLEMS, **configured: Any) -> Case:
    return Case(Configuration(task="sums", **configured), ArithmeticTask(), problems)


def result(predicted: str = "2", error: str | None = None) -> ProblemResult:
    return ProblemResult(
        question="1+1", answer="2", predicted=predicted, correct=True, status="done", error=error
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.jsonl"


def test_what_is_added_is_there_for_the_next_one(path: Path) -> None:
    store = RunStore(path)
    for index, key in enumerate(case().keys):
        store.add(key, result(f"é\n{index}"))
    again = RunStore(path)
    assert again.results_of(case()) == store.results_of(case())
    assert [each.predicted for each in again.results_of(case())] == ["é\n0", "é\n1", "é\n2"]
    assert path.read_bytes().count(b"\n") == 3


def test_equal_problems_are_runs_of_their_own() -> None:
    store = RunStore()
    store.add(case().keys[0], result())
    assert store.missing(case()) == [1, 2]


def test_another_configuration_seed_or_problem_is_another_run() -> None:
    store = RunStore()
    for key in case().keys:
        store.add(key, result())
    assert store.missing(case()) == []
    others: list[dict[str, Any]] = [
        {"seed": 1}, {"model": "m"}, {"strategy": "sequential"}, {"protocol": "apr"},
        {"temperature": 0.0},
        {"merge": "full"}, {"join": "vote"}, {"threads": 0}, {"threads": "auto"}, {"max_depth": 1},
        {"tools": ("a.py",)},
    ]  # fmt: skip
    assert all(store.missing(case(**other)) == [0, 1, 2] for other in others)
    edited = [PROBLEMS[0], Problem("2+2", "5"), Problem("1+2", "3")]
    assert store.missing(case(edited)) == [1, 2]


def test_a_line_that_is_cut_anywhere_is_a_run_that_did_not_end(path: Path) -> None:
    first, second, _ = case().keys
    store = RunStore(path)
    store.add(first, result("first"))
    whole = path.read_bytes()
    store.add(second, result("Σ"))
    line = path.read_bytes()[len(whole) :]
    for cut in range(len(line) - 1):
        path.write_bytes(whole + line[:cut])
        again = RunStore(path)
        assert again.missing(case()) == [1, 2]
        again.add(second, result("again"))
        assert [each.predicted for each in RunStore(path).results.values()] == ["first", "again"]
    path.write_bytes(whole + line[:-1])  # all but the line break
    assert RunStore(path).missing(case()) == [2]


def test_errors_are_results_unless_they_are_to_be_retried(path: Path) -> None:
    store = RunStore(path)
    store.add(case().keys[0], result(error="it broke"))
    store.add(case().keys[1], result())
    assert store.missing(case()) == [2]
    assert store.missing(case(), retry_errors=True) == [0, 2]
    store.add(case().keys[0], result("mended"))
    assert RunStore(path).missing(case(), retry_errors=True) == [2]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"n": 1}', "line 2 is no run of this version (configuration: field required)"),
        ("[]", "line 2 is no run of this version (the line: "),
        ("7", "line 2 is no run of this version"),
    ],
)
def test_a_file_of_something_else_is_refused_and_left_alone(
    path: Path, line: str, told: str
) -> None:
    path.write_text(f"\n{line}\n")
    with pytest.raises(UnusableFile) as refused:
        RunStore(path)
    assert told in str(refused.value)
    assert path.read_text() == f"\n{line}\n"


def test_a_file_that_cannot_be_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UnusableFile, match="Is a directory"):
        RunStore(tmp_path)


def test_a_full_disk_is_an_error_of_one_line() -> None:
    store = RunStore()
    store.path = Path("/dev/full")
    with pytest.raises(UnusableFile, match="No space left"):
        store.add(case().keys[0], result())


def test_a_line_tells_what_was_run_by_name(path: Path) -> None:
    RunStore(path).add(case(threads=4).keys[1], result())
    line = json.loads(path.read_text())
    assert (line["configuration"]["threads"], line["index"]) == (4, 1)
    assert line["result"]["predicted"] == "2"
    assert isinstance(hash(case().keys[0]), int)
    assert isinstance(case().keys[0], Key)
