"""What runs in the process of `WORKER`: reasoning-gym and math-verify.

reasoning-gym's scorers pass some answers to ``eval`` and to sympy's parser, which evaluates too.
Here they get Python's literals and formulas only.
"""

from __future__ import annotations

import ast
import re
import sys
from contextlib import suppress
from copy import deepcopy
from functools import lru_cache
from importlib import import_module
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from apr_agents.tasks.answers import calculation
from apr_agents.tasks.isolated import Worker, serve

WORKER = Worker("apr_agents.tasks.judges", seconds=10)

SIZE = 1_000
"""Size of every data set: some problems depend on it."""

EVALUATING = ("string_insertion", "spiral_matrix", "binary_matrix", "n_queens")
"""Data sets whose scorers pass answers to ``eval``."""

INDULGENT = (
    "advanced_geometry", "fraction_simplification", "game_of_life_halting", "gsm_symbolic",
    "letter_jumble", "spell_backward", "time_intervals", "word_sorting",
)  # fmt: skip
"""Data sets whose scorers give the whole point to a list of candidates, or to anything at all.

Here the answer has to be the reference answer.
"""

PARSING = (
    "simple_integration", "intermediate_integration", "polynomial_multiplication",
    "puzzle24", "countdown",
)  # fmt: skip
"""Data sets whose scorers pass answers to sympy's parser."""

_FUNCTIONS = (
    "exp|log|ln|sqrt|a?sinh?|a?cosh?|a?tanh?|cot|sec|csc|arcsin|arccos|arctan|Abs|pi|[A-Za-z]"
)
_FORMULA = re.compile(rf"(?:\b(?:{_FUNCTIONS})\b|[0-9+\-*/^(),.\s])*")


def datasets() -> list[str]:
    """All names of reasoning-gym, but for the one that is made of others."""
    from reasoning_gym.factory import DATASETS

    return sorted(DATASETS.keys() - {"composite"})


def options(name: str) -> list[str]:
    """The options of a data set."""
    return [option for option in _types(name) if option not in ("seed", "size")]


def objection(name: str, config: dict[str, str]) -> str | None:
    """What is wrong with the values of these options, if anything."""
    try:
        _dataset(name, tuple(config.items()), 0)
    except ValidationError as error:
        return str(error.errors()[0]["msg"])
    except (AssertionError, ValueError) as error:
        return str(error)
    return None


def draw(name: str, config: dict[str, str], seed: int, index: int) -> dict[str, Any]:
    """Question and answer of one problem; the answer may be missing."""
    entry = _entry(name, tuple(config.items()), seed, index)
    return {"question": entry["question"], "answer": entry["answer"]}


def score(name: str, config: dict[str, str], seed: int, index: int, answer: str) -> float:
    """What the data set's own scorer gives for ``answer``, from 0 to 1."""
    if name in PARSING and not _FORMULA.fullmatch(answer):
        return 0.0
    entry = deepcopy(_entry(name, tuple(config.items()), seed, index))  # scorers may change it
    if name in INDULGENT:
        return float(_plain(answer) == _plain(entry["answer"]))
    if name == "puzzle24" and not _uses(answer, entry["metadata"]["numbers"]):
        return 0.0  # the scorer does not ask which numbers these are
    if name == "sokoban" and not re.fullmatch("[UDLR]+", answer):
        return 0.0  # the scorer passes over what is no move
    return float(_dataset(name, tuple(config.items()), seed).score_answer(answer, entry))


def same_mathematics(answer: str, expected: str) -> bool:
    """Whether two answers in LaTeX or plain notation are the same to math-verify."""
    from math_verify import parse, verify

    def read(text: str) -> Any:
        # No time limits of its own: they do not stop what never returns to Python.
        return parse(f"${text}$", parsing_timeout=None)

    return bool(verify(read(expected), read(answer), timeout_seconds=None))


@lru_cache(maxsize=16)
def _dataset(name: str, config: tuple[tuple[str, str], ...], seed: int) -> Any:
    import reasoning_gym

    types = _types(name)
    read = {option: TypeAdapter(types[option]).validate_python(value) for option, value in config}
    dataset = reasoning_gym.create_dataset(name, seed=seed, size=SIZE, **read)
    module = sys.modules[type(dataset).__module__]
    if name in EVALUATING:
        vars(module)["eval"] = ast.literal_eval
    return dataset


@lru_cache(maxsize=4096)
def _entry(name: str, config: tuple[tuple[str, str], ...], seed: int, index: int) -> Any:
    return _dataset(name, config, seed)[index]


def _plain(text: str) -> str:
    """The text with case, white space, degrees and LaTeX's fractions levelled."""
    text = re.sub(r"\\d?frac\{(\d+)\}\{(\d+)\}", r"\1/\2", text.strip("$° \n"))
    return ", ".join(" ".join(item.split()) for item in text.lower().split(","))


def _uses(answer: str, numbers: list[int]) -> bool:
    made = calculation(answer)
    return made is not None and sorted(made.numbers) == sorted(numbers)


def _types(name: str) -> dict[str, Any]:
    from reasoning_gym.factory import DATASETS

    return get_type_hints(DATASETS[name][1])


if __name__ == "__main__":
    for package in ("reasoning_gym", "math_verify"):  # before the clock of the first call runs
        with suppress(ImportError):
            import_module(package)
    serve(datasets, options, objection, draw, score, same_mathematics)
