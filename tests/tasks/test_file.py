"""Problems from a file."""

from pathlib import Path

import pytest

from apr_agents.errors import InvalidProblem, UnusableFile
from apr_agents.tasks.base import Problem
from apr_agents.tasks.file import FileTask


@pytest.fixture
def write(tmp_path: Path):
    def write(content: str | bytes) -> FileTask:
        path = tmp_path / "problems.jsonl"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return FileTask(path)

    return write


def test_reads_questions_and_answers_as_they_were_typed(write):
    task = write(
        '\ufeff{"question": "1+1", "answer": "2"}\r\n\n'
        '{"question": "π?", "answer": 3.140, "id": 7}\n'
    )
    assert task.problems() == [Problem("1+1", "2"), Problem("π?", "3.140")]
    assert task.name == "problems.jsonl"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"question":', "it is not JSON: Expecting value at column 13"),
        (b"[1]", "it is not an object with 'question' and 'answer'"),
        (b'{"answer": 1}', "it has no 'question'"),
        (b'{"question": "x"}', "it has no 'answer'"),
        (b'{"question": " ", "answer": 1}', "its 'question' is not a text or a number"),
        (b'{"question": "x", "answer": null}', "its 'answer' is not a text or a number"),
        (b'{"question": "\\ud800", "answer": 1}', "its 'question' has half of a character"),
        (b"\xff", "it is not UTF-8"),
        (b"[" * 100_000, "it is nested too deeply"),
    ],
)
def test_a_broken_line_is_named_with_its_number(write, line: bytes, why: str):
    task = write(b'{"question": "1", "answer": "1"}\n\n' + line + b"\n")
    with pytest.raises(InvalidProblem) as raised:
        task.problems()
    assert f"problems.jsonl, line 3: {why}" in str(raised.value)


def test_files_without_problems_are_refused(write, tmp_path: Path):
    for task in (
        write("\n\n"),
        FileTask(tmp_path),
        FileTask(tmp_path / "none"),
        FileTask(Path("a\0")),
    ):
        with pytest.raises(UnusableFile):
            task.problems()


def test_a_seed_draws_some_of_them_in_the_order_of_the_file(write):
    task = write("\n".join(f'{{"question": "{i}", "answer": {i}}}' for i in range(50)))
    drawn = [int(problem.question) for problem in task.problems(10, seed=1)]
    assert drawn == sorted(drawn)
    assert len(set(drawn)) == 10
    assert drawn == [int(problem.question) for problem in task.problems(10, seed=1)]
    assert drawn != [int(problem.question) for problem in task.problems(10, seed=2)]
    assert len(task.problems(99)) == 50


@pytest.mark.parametrize(
    ("expected", "predicted"),
    [
        ("1000", "1,000"),
        ("1,000", "1000.0"),
        ("1000", " +1e3\n"),
        ("-0.5", "-.50"),
        ("−3", "-3"),
        ("42", r"The answer is $\boxed{42}$."),
        ("42", "The answer is 42."),
        ("42", "6*7\n\nAnswer: 42"),
        (r"\boxed{\frac{1}{2}}", r"first 3, no: \boxed{\frac{1}{2}}"),
        ("yes", " yes "),
        ("9" * 5000, "9" * 5000 + ".0"),
    ],
)
def test_equal_answers(write, expected: str, predicted: str):
    assert write("").verify(Problem("q", expected), predicted)


@pytest.mark.parametrize(
    ("expected", "predicted"),
    [
        ("42", None),
        ("42", ""),
        ("42", "142"),
        ("42", "I think that it is 42"),
        ("42", r"\boxed{41} or \boxed{42}"),
        ("1000", "1,00,0"),
        ("yes", "Yes"),
        ("0.1", "0.10000000000000000001"),
        ("5", r"\boxed{5"),
        ("1", "e1"),
        ("1", "1e"),
        ("0", "."),
        ("0", "nan"),
        ("1", "１"),
        ("1", "1e999999999"),
    ],
)
def test_different_answers(write, expected: str, predicted: str | None):
    assert not write("").verify(Problem("q", expected), predicted)
