"""Untrusted Python gets an answer in bounded time and memory, and nothing of the host."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool
from langchain_tests.integration_tests import ToolsIntegrationTests
from langchain_tests.unit_tests import ToolsUnitTests

FILE = Path(__file__).parents[2] / "tools" / "python.py"
SPEC = spec_from_file_location("tool_python", FILE)
assert SPEC is not None
assert SPEC.loader is not None
MODULE: Any = module_from_spec(SPEC)
SPEC.loader.exec_module(MODULE)
(RUN,) = MODULE.tools

NOTHING = "nothing printed, no value; print it or end with an expression"


class Python:
    @property
    def tool_constructor(self) -> BaseTool:
        return RUN

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"code": "x = 12 * 7\nprint(x)\nx + 5"}


class TestPythonUnit(Python, ToolsUnitTests):
    pass


class TestPythonIntegration(Python, ToolsIntegrationTests):
    pass


def message(code: str) -> ToolMessage:
    call = {"name": "run_python", "args": {"code": code}, "id": "1", "type": "tool_call"}
    answer = RUN.invoke(call)
    assert isinstance(answer, ToolMessage)
    assert isinstance(answer.content, str)
    return answer


def run(code: str) -> str:
    """The text of a run that succeeded."""
    answer = message(code)
    assert answer.status == "success", answer.content
    return answer.text


def fail(code: str) -> str:
    """The text of a run that failed."""
    answer = message(code)
    assert answer.status == "error", answer.content
    return answer.text


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def set_limits(**limits: Any) -> None:
        monkeypatch.setattr(MODULE, "LIMITS", {**MODULE.LIMITS, **limits})

    return set_limits


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("12*7", "84"),
        ("print('a')", "a"),
        ("print('a')\n[1, 2]", "a\n[1, 2]"),
        ("print('x', end='')\n'y'", "x\n'y'"),
        ("x = 1; x + 1  # twice", "2"),
        ("(1,\n 2)  # a pair", "(1, 2)"),
        ("x = \\\n 5\r\nx", "5"),
        ("'é\\d'; 'ü'; 'é\\d'", "'é\\\\d'"),
        ("'''\n\x0c\n'''; 7", "7"),
        ("class A:\n  def __repr__(self):\n    return 'an A'\nA()", "an A"),
        ("def f(n):\n  return n if n < 2 else f(n-1) + f(n-2)\nf(15)", "610"),
        ("import math\nmath.comb(10, 3)", "120"),
        ("from decimal import Decimal\nDecimal('0.1') * 3", "Decimal('0.3')"),
        ("async def f():\n  return 5\nawait f()", "5"),
        ("x = []; x.append(x); x", "[[...]]"),
        ("print(f'{\"a\"}')", "a"),
    ],
)
def test_it_answers_what_is_printed_and_then_the_last_value(code: str, answer: str) -> None:
    assert run(code) == answer


@pytest.mark.parametrize(
    "code", ["", "# nothing", "x = 3", "None", "if 1:\n  5", "_ = 5", "for _ in range(3): pass"]
)
def test_without_output_it_says_so(code: str) -> None:
    assert run(code) == NOTHING


# A character that this Python does not know may be known to the sandbox, which then shows it.
CHARACTERS = st.characters(codec="utf-8", exclude_categories=("Cn", "Cs"))

LITERALS = st.recursive(
    st.one_of(st.integers(), st.booleans(), st.text(CHARACTERS, max_size=20)),
    lambda inner: st.one_of(st.lists(inner), st.tuples(inner, inner)),
    max_leaves=5,
)


@settings(max_examples=40)
@given(LITERALS)
def test_any_literal_is_its_own_value(value: Any) -> None:
    assert run(ascii(value)) == repr(value)


@settings(max_examples=40)
@given(st.one_of(st.text(), st.text("0123456789+-*/()[]{}'\"\\\n =:;#xf_", max_size=30)))
def test_any_text_gets_an_answer(code: str) -> None:
    assert message(code).content


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("1/0", "line 1: ZeroDivisionError: division by zero"),
        ("x = 1\n\nx.y", "line 3: AttributeError: 'int' object has no attribute 'y'"),
        ("def f():\n  return 1/0\nf()", "line 2: ZeroDivisionError: division by zero"),
        ("print(1)\nprint(2\n", "line 3: SyntaxError: unexpected EOF while parsing"),
        ("\n\nfoo", "line 3: NameError: name 'foo' is not defined"),
        ("raise ValueError('a\\nb')", "line 1: ValueError: a b"),
        ("print('before')\n1/0", "before\nline 2: ZeroDivisionError: division by zero"),
    ],
)
def test_an_error_is_one_line_after_what_was_printed(code: str, error: str) -> None:
    assert fail(code) == error


@pytest.mark.parametrize(
    "code",
    [
        f"open({str(FILE)!r}).read()",
        "open('/etc/passwd').read()",
        "open('written', 'w').write('x')",
        "import os\nos.listdir('/')",
        "import os\nos.environ['PATH']",
        "import os\nos.getenv('PATH')",
        "import os\nos.system('true')",
        "import pathlib\npathlib.Path('/etc/passwd').read_text()",
        "import subprocess",
        "import socket",
        "import urllib.request",
        "import ctypes",
        "import importlib",
        "__import__('subprocess')",
        "().__class__.__base__.__subclasses__()",
        "(lambda: 0).__globals__",
        "print.__self__",
        "input()",
    ],
)
def test_nothing_of_the_host_is_in_reach(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert "Error" in fail(code)
    assert not list(tmp_path.iterdir())


def test_each_run_starts_afresh() -> None:
    run("x = 1")

    assert "NameError" in fail("x")


def test_the_same_code_draws_the_same_random_numbers() -> None:
    draws = "import random\n[random.random(), random.randint(1, 1000)]"

    assert run(draws) == run(draws)


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "while True:\n  try:\n    while True: pass\n  except BaseException: pass",
        "import time\nwhile True: time.sleep(9)",
        "while True: print('x')",
        "class A:\n  def __repr__(self):\n    while True: pass\nA()",
        "sum(range(10**12))",
    ],
)
def test_time_is_bounded(code: str, limit: Callable[..., None]) -> None:
    limit(max_feed_duration_secs=0.2)
    started = time.monotonic()

    assert "time limit exceeded" in fail(code)
    assert time.monotonic() - started < 5


def test_a_sleep_takes_no_time() -> None:
    started = time.monotonic()

    assert run("import time\ntime.sleep(3600)\n'awake'") == "'awake'"
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "code",
    [
        "'a' * 10**10",
        "9**9**9",
        "x = []\nwhile True: x.append('a' * 10**6)",
        "[0] * 10**9",
        "x = 'a' * 6 * 10**7\n[x + 'b' for i in range(9)]",
    ],
)
def test_memory_is_bounded(code: str) -> None:
    assert "MemoryError" in fail(code)


@pytest.mark.parametrize("code", ["def f(): return f()\nf()", "(" * 10_000, "-" * 10_000 + "1"])
def test_depth_is_bounded(code: str) -> None:
    assert "Error" in fail(code)


def test_long_output_is_cut() -> None:
    lines = run("for i in range(100_000): print(i)\n'z' * 10**6").splitlines()

    assert lines[:2] == ["0", "1"]
    assert lines.count("… cut here") == 2
    assert sum(map(len, lines)) < 2 * MODULE.MAX_SHOWN + 100


def test_a_long_error_is_cut() -> None:
    assert len(fail("raise ValueError('a' * 10**6)")) < 500


def test_long_code_is_not_run() -> None:
    assert fail("x = 1\n" * 10_000) == "the code is longer than 20000 characters; make it shorter"


@pytest.mark.parametrize("code", ["{}", "return {}", "if 1:\n  return {}"])
def test_a_value_that_is_slow_to_rebuild_costs_this_process_nothing(code: str) -> None:
    started = time.monotonic()
    message(code.replace("{}", "{i * (2**61 - 1) for i in range(100_000)}"))

    assert time.monotonic() - started < 10


def test_runs_at_once_do_not_meet() -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(run, [f"x = {i}\nprint(x)\nx * x" for i in range(24)]))

    assert answers == [f"{i}\n{i * i}" for i in range(24)]


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="this Python reads all that Monty reads")
def test_syntax_newer_than_this_python_runs_but_has_no_last_value() -> None:
    assert run('print(f"{"a"}")\nf"{"b"}"') == "a"


def test_without_the_sandbox_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONTY_BIN", "/nowhere/monty")

    assert "/nowhere/monty" in fail("1")


@pytest.mark.parametrize("arguments", [{}, {"code": None}, {"code": ["1"]}, {"source": "1"}])
async def test_wrong_arguments_get_one_line(arguments: dict[str, Any]) -> None:
    assert RUN.invoke(arguments) == 'run_python takes {"code": "print(12*7)"}'
    assert await RUN.ainvoke(arguments) == 'run_python takes {"code": "print(12*7)"}'
