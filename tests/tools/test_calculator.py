"""The calculator agrees with Python's own arithmetic on fractions, and answers any text at once."""

from __future__ import annotations

import re
import runpy
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.tools import BaseTool
from langchain_tests.integration_tests import ToolsIntegrationTests
from langchain_tests.unit_tests import ToolsUnitTests

(CALCULATE,) = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "calculator.py"))["tools"]


class Calculator:
    @property
    def tool_constructor(self) -> BaseTool:
        return CALCULATE

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"expression": "12*7+5"}


class TestCalculatorUnit(Calculator, ToolsUnitTests):
    pass


class TestCalculatorIntegration(Calculator, ToolsIntegrationTests):
    pass


def calculate(expression: str) -> str:
    answer = CALCULATE.invoke({"expression": expression})
    assert isinstance(answer, str)
    assert answer
    assert "\n" not in answer
    return answer


def fails(expression: str) -> bool:
    call = {"name": "calculate", "args": {"expression": expression}, "id": "1", "type": "tool_call"}
    return bool(CALCULATE.invoke(call).status == "error")


def expressions(numbers: st.SearchStrategy[str], operators: str) -> st.SearchStrategy[str]:
    """Texts that Python can evaluate, with parentheses here and there; powers stay small."""

    def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        closed = st.one_of(numbers, inner.map(lambda text: f"({text})"))
        return st.one_of(
            closed,
            st.builds("{}{}{}".format, inner, st.sampled_from(operators.split()), inner),
            st.builds("{} {} {}".format, closed, st.sampled_from(operators.split()), closed),
            st.builds("{}{}".format, st.sampled_from("+-"), inner),
            st.builds("{}**{}".format, closed, st.integers(0, 3)),
        )

    return st.recursive(numbers, larger, max_leaves=12)


WHOLE = st.integers(0, 200).map(str)
DECIMAL = st.from_regex(r"(0|[1-9][0-9]{0,2})(\.[0-9]{0,3})?|\.[0-9]{1,3}", fullmatch=True)


@given(expressions(DECIMAL, "+ - * / // %"))
def test_it_agrees_with_python_on_fractions(expression: str) -> None:
    exact = re.sub(r"\d+\.?\d*|\.\d+", lambda number: f"F('{number[0]}')", expression)
    exact = re.sub(r"\*\*F\('(\d)'\)", r"**\1", exact)
    try:
        expected = eval(exact, {"F": Fraction})
    except ZeroDivisionError:
        assert calculate(expression) == "division by zero"
        return

    number, _, about = calculate(expression).partition(" (about ")

    assert Fraction(number) == expected
    if about:
        assert float(about.removesuffix(")")) == pytest.approx(float(expected), rel=1e-12)


@given(expressions(WHOLE, "+ - * // %"))
def test_it_agrees_with_python_on_whole_numbers(expression: str) -> None:
    try:
        expected = str(eval(expression))
    except ZeroDivisionError:
        expected = "division by zero"

    assert calculate(expression) == expected


@given(st.one_of(st.text(), st.text("0123456789.+-*/%() \n", max_size=40)))
def test_any_text_gets_one_line(expression: str) -> None:
    calculate(expression)


@pytest.mark.parametrize(
    ("expression", "answer"),
    [
        ("0.1 + 0.2", "0.3"),
        ("1/3*3", "1"),
        ("10/4", "2.5"),
        ("-10/4", "-2.5"),
        ("1/3", "1/3 (about 0.333333333333333)"),
        ("3.0", "3"),
        ("1.10*100", "110"),
        ("0.12345678901234567890123 * 10", "1.2345678901234567890123"),
        ("-2**2", "-4"),
        ("2**3**2", "512"),
        ("2**-3", "0.125"),
        ("2**-3 % 1.5", "0.125"),
        ("-7 // 2", "-4"),
        ("-7 % 3", "2"),
        ("7.5 // 2", "3"),
        ("--3", "3"),
        ("1 +\n 2", "3"),
        (".5 + 5.", "5.5"),
        ("0**0", "1"),
        ("1**999999999999", "1"),
        ("(-1)**1000000000001", "-1"),
        ("2**(6/2)", "8"),
        ("7**2000 % 1000", str(7**2000 % 1000)),
    ],
)
def test_an_answer_is_exact(expression: str, answer: str) -> None:
    assert calculate(expression) == answer
    assert not fails(expression)


@pytest.mark.parametrize(
    ("expression", "cause"),
    [
        ("1/0", "zero"),
        ("5 % 0", "zero"),
        ("0**-1", "zero"),
        ("2**0.5", "whole number"),
        ("9**9**9", "digits"),
        ("-9**9**9", "digits"),
        ("9**-9**9", "digits"),
        ("0.001**99999", "digits"),
        ("*".join(["9**2000"] * 50), "digits"),
        ("9" * 100_000, "2000 characters"),
        ("1" + " " * 100_000 + "+1", "2000 characters"),
        ("(" * 990 + "1" + ")" * 990, "not a complete"),
        ("", "not a complete"),
        ("()", "not a complete"),
        ("1 2", "not a complete"),
        ("(1", "not a complete"),
        ("007", "not a complete"),
        ("...", "not a complete"),
        ("1(2)", "not a complete"),
        ("2^3", "'^' is not supported"),
        ("1,000", "',' is not supported"),
        ("1e9", "'e' is not supported"),
        ("abs(1)", "'a' is not supported"),
        ("__import__", "'_' is not supported"),
        ("1\0", "is not supported"),
        ("٣", "is not supported"),
        ("\ud800", "is not supported"),
    ],
)
def test_an_error_is_one_line_that_names_the_cause(expression: str, cause: str) -> None:
    assert cause in calculate(expression)
    assert fails(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "9**9**9",
        "9" * 100_000,
        "-" * 1999 + "1",
        "1+" * 999 + "1",
        "9" * 1000 + "**" + "9" * 900,
        "*".join(["7**1100"] * 3 + ["(1/3)"] * 200),
        "1/7+" * 400 + "1/3",
    ],
)
def test_large_expressions_never_hang(expression: str) -> None:
    started = time.monotonic()
    calculate(expression)

    assert time.monotonic() - started < 5


def test_long_sums_need_no_deep_stack() -> None:
    assert calculate("+".join(["1"] * 1000)) == "1000"


@pytest.mark.parametrize("arguments", [{}, {"expression": None}, {"expression": ["1"]}, {"x": "1"}])
async def test_wrong_arguments_get_one_line_as_well(arguments: dict[str, Any]) -> None:
    assert CALCULATE.invoke(arguments) == 'calculate takes {"expression": "12*7"}'
    assert await CALCULATE.ainvoke(arguments) == 'calculate takes {"expression": "12*7"}'
