"""Where a text says its final answer, and what that answer is."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_agents.tasks.answers import (
    LONGEST_ANSWER,
    Calculation,
    calculation,
    final_answer,
    items,
    number,
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("42", "42"),
        (" 42\n", "42"),
        ("The answer is 42.", "42"),
        ("So the answer is: 42", "42"),
        ("the answer is **42**.", "42"),
        ("**The answer is 42.**", "42"),
        ("ANSWER: 42", "42"),
        ("Answer = 42", "42"),
        ("**Answer:** 42", "42"),
        ("**Final Answer**: 42", "42"),
        ("**Answer: 42**", "42"),
        ("12+30=42\n\nAnswer: 42\n\nThat was easy.", "42"),
        ("Answer:\n\n1 2\n3 4\n", "1 2\n3 4"),
        ("Answer:\n```\n1 2\n3 4\n```", "1 2\n3 4"),
        ("The answer is 42.\nIt is even.", "42"),
        ("Answer: 1,000.5", "1,000.5"),
        ("Answer: `x`", "x"),
        ("Answer: $x$", "x"),
        (r"so \(x\)", r"so \(x\)"),
        (r"\(x\)", "x"),
        (r"It is \boxed{42}.", "42"),
        (r"\boxed{42}, as I said: \boxed{ 42 }", "42"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\text{yes}}", "yes"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"Answer: 41. No: \boxed{42}", "42"),
        ("<answer>1 2\n\n3 4</answer>", "1 2\n\n3 4"),
        ("The answer is 1.\n<answer>2</answer>", "2"),
        ("The answer is not 41.\n\nAnswer: 42", "42"),
        ("The answer is:\n\n42", "42"),
        ("Answer:", ""),
        (r"\boxed{5", r"\boxed{5"),
        ("42 or 43", "42 or 43"),
        ("the answers are 42", "the answers are 42"),
    ],
)
def test_the_final_answer_is_what_is_marked_or_else_everything(text: str, answer: str) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        " \n",
        r"\boxed{42} or \boxed{43}",
        "The answer is 42.\nThe answer is 43.",
        "Answer: 42\n\nAnswer: 43",
        "<answer>42</answer><answer>43</answer>",
        "x" * (LONGEST_ANSWER + 1),
    ],
)
def test_no_answer_or_several_candidates_are_no_final_answer(text: str | None) -> None:
    assert final_answer(text) is None


HOSTILE = [
    "answer:" * 150_000,
    "answer is " * 100_000,
    "answer:\n" * 125_000,
    "answer:" + "\n " * 500_000,
    "<answer>" * 125_000,
    "</answer>" * 110_000,
    r"\boxed{" * 140_000,
    r"\boxed{" * 70_000 + "}" * 70_000,
    "{}" * 500_000,
    "*" * 1_000_000,
    "`" * 1_000_000,
    "$" * 99_999,
    "```\n" * 250_000,
    "\\" * 1_000_000,
    "\n" * 1_000_000 + "x",
    "[" * 90_000,
    "(" * 90_000 + ")" * 9_000,
    "9" * 100_000,
    "9," * 50_000,
    "1,000" * 20_000,
    "1e999999999",
    "1e-999999999",
    "10**10**10",
    "9**9**9**9**9",
    "1/0",
    "0/0 = 24",
    "(1+2)*8 = 1e999999999",
    "\0\ud800\u202e",
    "٣",
    "１",
]
"""What takes forever where time grows faster than length."""


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_are_read_like_any_other(text: str) -> None:
    answer = final_answer(text)
    if answer is not None:
        number(answer)
        items(answer)
        calculation(answer)


words = st.sampled_from(
    ["answer", "Answer:", "answer is ", r"\boxed{", "{", "}", "\\", "<answer>", "</answer>", "**",
     "`", "$", "42", "4,2", ".", "\n", "\n\n", " ", "(", ")", "+", "/", "=", "-", "e", "é", "\0"]
)  # fmt: skip


@given(st.one_of(st.text(), st.lists(words).map("".join)))
def test_reading_never_raises(text: str) -> None:
    for part in (text, final_answer(text) or ""):
        number(part)
        items(part)
        calculation(part)


@given(st.lists(words).map("".join), st.integers(), st.integers())
def test_two_boxes_that_differ_are_no_answer_whatever_is_around_them(
    around: str, first: int, second: int
) -> None:
    inert = around.replace("{", "").replace("}", "").replace("\\", "")
    text = rf"{inert} \boxed{{{first}}} {inert} \boxed{{{second}}} {inert}"
    assert final_answer(text) == (str(first) if first == second else None)


@given(st.integers(-(10**30), 10**30))
def test_a_number_is_one_however_it_is_written(value: int) -> None:
    for text in (f"{value}", f"{value:,}", f"{value}.0", f"{value}e0", f"{value:,}.000"):
        assert number(text) == value
        assert number(text.replace("-", "−")) == value
        assert number(text) != value + 1


@pytest.mark.parametrize(
    "text",
    ["", ".", "e5", "1e", "1,00", "1,0000", "42 apples", "42 or 43", "4 2", "=42", "nan", "0x1f",
     "1_000", "--1", "42!", "42%", "$42", "1/2", "１", "inf", "1e9999999999"],
)  # fmt: skip
def test_what_is_not_exactly_a_number_is_none(text: str) -> None:
    assert number(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1, 2, 3", ["1", "2", "3"]),
        ("1 2\n3", ["1", "2", "3"]),
        ("[1, 2, 3]", ["1", "2", "3"]),
        ("(1,2,3)", ["1", "2", "3"]),
        ("['a', \"b\"]", ["a", "b"]),
        ("a, b and c", ["a", "b and c"]),
        ("1, 2, ", ["1", "2", ""]),
        ("", []),
    ],
)
def test_items_of_a_list(text: str, expected: list[str]) -> None:
    assert items(text) == expected


@pytest.mark.parametrize(
    ("text", "value", "numbers"),
    [
        ("1+2*3", 7, [1, 2, 3]),
        ("(1 + 2) * 8 = 24", 24, [1, 2, 8]),
        ("8/(3-8/3)", 24, [8, 3, 8, 3]),
        ("6 × 8 ÷ 2 − 0", 24, [6, 8, 2, 0]),
        ("1/3", Fraction(1, 3), [1, 3]),
        ("5", 5, [5]),
    ],
)
def test_calculations_are_exact(text: str, value: Fraction, numbers: list[int]) -> None:
    assert calculation(text) == Calculation(value, numbers)


@pytest.mark.parametrize(
    "text",
    ["", "()", "1+", "2**3", "7//2", "7%2", "-3", "-(1+2)", "1.5*2", "1_0+2", "012", "1 2", "2(3)",
     "1/0", "1/(2-2)", "1+2=4", "1+2=3=3", "3=1+2", "1+2 or 3", "a+b", "1+2,", "[1]", "1<2",
     "(" * 100 + "1" + ")" * 100 + "x", "1" + "+1" * 200, "[1+2]", "f(2)", "1+2;3"],
)  # fmt: skip
def test_what_is_not_a_calculation_is_none(text: str) -> None:
    assert calculation(text) is None


@given(st.text(alphabet="0123456789+-*/() ", max_size=40))
def test_a_calculation_comes_to_what_python_makes_of_it(text: str) -> None:
    made = calculation(text)
    if made is not None:
        assert float(made.value) == pytest.approx(eval(text))
