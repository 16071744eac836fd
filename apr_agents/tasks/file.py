"""Problems from a file of JSON lines: ``{"question": …, "answer": …}``.

Answers are compared exactly, numbers as numbers: ``1,000`` and ``1000.0`` are one answer.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from apr_agents.errors import InvalidProblem, UnusableFile
from apr_agents.tasks.answers import final_answer, number
from apr_agents.tasks.base import Problem


@dataclass(frozen=True)
class FileTask:
    """The problems of one file; a line may have more keys than ``question`` and ``answer``."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def problems(self, count: int | None = None, seed: int = 0) -> list[Problem]:
        """All problems, or ``count`` of them drawn by ``seed``; always in the file's order.

        Raises:
            UnusableFile: the file cannot be read or has no problems.
            InvalidProblem: a line is no problem.
        """
        try:
            lines = self.path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise UnusableFile(str(self.path), why) from error
        problems = [
            self._problem(number, line) for number, line in enumerate(lines, 1) if line.strip()
        ]
        if not problems:
            raise UnusableFile(str(self.path), "it has no problems")
        if count is None or count >= len(problems):
            return problems
        chosen = sorted(random.Random(seed).sample(range(len(problems)), count))
        return [problems[index] for index in chosen]

    def verify(self, problem: Problem, predicted: str | None) -> bool:
        """Whether the final answer in ``predicted`` is the reference answer."""
        answer = final_answer(predicted)
        return answer is not None and _same(answer, final_answer(problem.answer) or problem.answer)

    def _problem(self, number: int, line: bytes) -> Problem:
        def wrong(why: str) -> InvalidProblem:
            return InvalidProblem(str(self.path), number, why)

        try:
            # Numbers stay as they were typed: 0.10 is not rounded, 10**5000 is not refused.
            data = json.loads(line.decode(), parse_int=str, parse_float=str)
        except UnicodeDecodeError as error:
            raise wrong("it is not UTF-8") from error
        except json.JSONDecodeError as error:
            raise wrong(f"it is not JSON: {error.msg} at column {error.colno}") from error
        except RecursionError as error:
            raise wrong("it is nested too deeply") from error
        if not isinstance(data, dict):
            raise wrong("it is not an object with 'question' and 'answer'")
        for key in ("question", "answer"):
            if key not in data:
                raise wrong(f"it has no {key!r}")
            if not isinstance(data[key], str) or not data[key].strip():
                raise wrong(f"its {key!r} is not a text or a number")
            if not _is_unicode(data[key]):
                raise wrong(f"its {key!r} has half of a character (a lone surrogate)")
        return Problem(data["question"], data["answer"])


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _same(answer: str, expected: str) -> bool:
    numbers = number(answer), number(expected)
    return numbers[0] == numbers[1] if None not in numbers else answer == expected
