r"""Where a text says its final answer, and what that answer is as a number, a list, a calculation.

The rule, for every task. The final answer is what stands in ``\boxed{…}``; without a box, between
``<answer>`` and ``</answer>``; without those, after ``Answer:``, to the end of the paragraph;
without that, after ``the answer is``, to the end of the line; without any of these, it is the whole
text. A text that says it more than once in the same way must say the same each time: one that
offers several candidates has no final answer. Nothing is ever searched for inside an answer.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from apr_agents.boxes import boxed

REQUEST = "End with a line that says 'Answer:' and the answer alone."
"""How a question asks for what `final_answer` reads."""

LONGEST_TEXT, LONGEST_ANSWER, LONGEST_CALCULATION = 10_000_000, 100_000, 300
"""Characters. What is longer is no answer; all reading takes time linear in the length."""

MOST_LAYERS = 3
"""Decorations around each other that are taken off."""

_LABELLED = re.compile(
    r"\banswer[*_]{0,3}\s{0,3}[:=][*_]{0,4}\s*(.*?)(?=\n[^\S\n]*\n|\Z)", re.IGNORECASE | re.DOTALL
)
_STATED = re.compile(r"\banswer\s{1,3}is\b[:*_]{0,4}\s*([^\n]*)", re.IGNORECASE)
_DECORATED = re.compile(
    r"```\w*\n(.*)\n```|\*\*(.*)\*\*|\$\$(.*)\$\$|\$(.*)\$|`(.*)`|\\\((.*)\\\)|\\text\{(.*)\}",
    re.DOTALL,
)
_NUMBER = re.compile(
    r"[+-]?(?=\.?[0-9])(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,9})?"
)
_BRACKETED = re.compile(r"\[(.*)\]|\((.*)\)|\{(.*)\}", re.DOTALL)
_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-"})
_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: Fraction.__add__,
    ast.Sub: Fraction.__sub__,
    ast.Mult: Fraction.__mul__,
    ast.Div: Fraction.__truediv__,
}


def final_answer(text: str | None) -> str | None:
    """The one answer that ``text`` gives, bare of decoration; ``None`` if it gives none or several.

    The rule is at the head of this module. An answer that is marked may be empty.
    """
    if text is None or len(text) > LONGEST_TEXT or not text.strip():
        return None
    for find in (boxed, _tagged, _labelled, _stated):
        if found := set(map(_bare, find(text))):
            break
    else:
        found = {_bare(text)}
    answer, *others = found
    return answer if not others and len(answer) <= LONGEST_ANSWER else None


def _tagged(text: str) -> Iterator[str]:
    opening, closing = "<answer>", "</answer>"
    start = text.find(opening)
    while start >= 0 and (end := text.find(closing, start)) >= 0:
        yield text[start + len(opening) : end]
        start = text.find(opening, end)


def _labelled(text: str) -> Iterator[str]:
    for label in _LABELLED.finditer(text):
        yield _unembraced(label[1])


def _stated(text: str) -> Iterator[str]:
    for statement in _STATED.finditer(text):
        yield _unembraced(statement[1]).removesuffix(".")


def _unembraced(text: str) -> str:
    """The text without the end of bold type that began before it."""
    text = text.strip()
    return text.removesuffix("**") if text.count("**") == 1 else text


def _bare(text: str) -> str:
    """The text without Markdown's or LaTeX's decoration around it."""
    text = text.strip()
    for _ in range(MOST_LAYERS):
        if decorated := _DECORATED.fullmatch(text):
            text = decorated[decorated.lastindex or 0].strip()
    return text


def number(text: str) -> Decimal | None:
    """The number that ``text`` is, exactly; ``1,000``, ``1000.0`` and ``+1e3`` are the same one."""
    text = text.translate(_SIGNS).replace("{,}", ",")
    return Decimal(text.replace(",", "")) if _NUMBER.fullmatch(text) else None


def items(text: str) -> list[str]:
    """The items of a list that is separated by commas or, without any, by white space.

    One pair of brackets around it and quotes around an item do not count.
    """
    if bracketed := _BRACKETED.fullmatch(text):
        text = bracketed[bracketed.lastindex or 0]
    return [item.strip(" \n\t'\"") for item in (text.split(",") if "," in text else text.split())]


class Calculation(NamedTuple):
    """What a calculation comes to, and the numbers in it, in order."""

    value: Fraction
    numbers: list[int]


def calculation(text: str) -> Calculation | None:
    """``text`` as whole numbers joined by ``+ - * /`` and parentheses, calculated exactly.

    A result may follow: ``(1+2)*8 = 24``. ``None`` if it is anything else, if the result
    is not what comes out, or if it divides by 0.
    """
    text, equals, result = text.translate(_SIGNS).partition("=")
    if not re.fullmatch(rf"[0-9+\-*/() ]{{1,{LONGEST_CALCULATION}}}", text):
        return None
    numbers: list[int] = []
    try:
        value = _calculate(ast.parse(text.strip(), mode="eval").body, numbers)
    except (SyntaxError, ValueError, ZeroDivisionError, MemoryError, RecursionError):
        return None
    if equals and number(result.strip()) != value:
        return None
    return Calculation(value, numbers)


def _calculate(node: ast.expr, numbers: list[int]) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        numbers.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        left, right = _calculate(node.left, numbers), _calculate(node.right, numbers)
        return _OPERATIONS[type(node.op)](left, right)
    raise ValueError("not a calculation with + - * /")
