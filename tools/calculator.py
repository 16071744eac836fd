"""Exact arithmetic on text. Knows numbers and operators; never names, calls or floats."""

import ast
import operator
import re
from decimal import Context, Decimal, Inexact
from fractions import Fraction
from typing import Any

from langchain_core.tools import BaseTool, StructuredTool, ToolException

MAX_LENGTH, MAX_BITS = 2000, 10_000  # characters; of a numerator or denominator, on the way too


def bounded(value: Fraction, times: Fraction = Fraction(1)) -> Fraction:
    """The value, if its bits ``times`` this many are few enough. 0, 1 and -1 have none."""
    bits = max(abs(value.numerator), value.denominator).bit_length() - 1
    if bits * abs(times) > MAX_BITS:
        raise ToolException("the numbers get longer than 3000 digits; use smaller ones")
    return value


def power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise ToolException("an exponent must be a whole number")
    return bounded(base, exponent) ** exponent.numerator


OPERATORS: dict[type[ast.operator], Any] = {
    **{ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Pow: power},
    **{ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod},
}


def value_of(text: str) -> Fraction:
    values: dict[ast.AST, Fraction] = {}
    tree = ast.parse(text, mode="eval").body
    for node in reversed(list(ast.walk(tree))):  # operands first, and no recursion
        match node:
            case ast.Constant(value=int() | float()):  # from its text: a float loses digits
                values[node] = Fraction(text[node.col_offset : node.end_col_offset])
            case ast.UnaryOp(sign, operand):
                values[node] = values[operand] * (-1 if isinstance(sign, ast.USub) else 1)
            case ast.BinOp(left, op, right):
                values[node] = bounded(Fraction(OPERATORS[type(op)](values[left], values[right])))
            case ast.expr():
                raise SyntaxError
    return values[tree]


def written(value: Fraction) -> str:
    """An integer, a decimal if 50 digits hold it, or else a fraction and about what it is."""
    if value.denominator == 1:
        return str(value.numerator)
    pair = Decimal(value.numerator), Decimal(value.denominator)
    try:
        return f"{Context(prec=50, traps=[Inexact]).divide(*pair):f}"
    except Inexact:
        return f"{value} (about {Context(prec=15, traps=[]).divide(*pair)})"


def calculate(expression: str) -> str:
    """Work out an arithmetic expression exactly, such as (12*7 + 5) / 4 or 2**-3 % 1.5.

    Takes integers, decimals, parentheses and + - * / // % ** (power). No names, no functions.
    """
    if len(expression) > MAX_LENGTH:
        raise ToolException(f"the expression is longer than {MAX_LENGTH} characters; split it")
    if found := re.search(r"[^0-9.+\-*/%()\s]", expression):
        raise ToolException(f"{found[0]!r} is not supported; use numbers, + - * / // % ** and ( )")
    try:
        return written(value_of(" ".join(expression.split())))
    except ZeroDivisionError:
        raise ToolException("division by zero") from None
    except (SyntaxError, RecursionError, MemoryError):
        raise ToolException("not a complete arithmetic expression") from None


tools: list[BaseTool] = [StructuredTool.from_function(calculate, handle_tool_error=True)]
tools[0].handle_validation_error = 'calculate takes {"expression": "12*7"}'
