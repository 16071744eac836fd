"""Sums of arithmetic chains: a generator, a symbolic teacher and a verifier.

A *chain* is a left-nested expression such as ``((12*7)+5)-2``; a problem is one
chain, or a sum of parenthesised chains (*groups*), typed as a person would.
Groups are independent of each other, the steps inside one are not: the share
that can run in parallel is whatever does not lie in the longest group.

The teacher copies a group without parentheses, then works through the copy, every number
at a fixed width (operands 2 digits, values 3, sums of groups 4), so that digits line up.
A line ends with ``;`` as long as another group follows::

    12*07+05-02;
    012*07=084;
    084+05=089;
    089-02=087;
    45-38
    045-38=007
    0087+0007=0094
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar, Literal, NamedTuple

from apr_agents.tasks.answers import number
from apr_agents.tasks.base import Block, Demonstration, Drawn, Problem
from apr_agents.tasks.teaching import SPLIT_PRICE, contiguous_runs
from apr_agents.types import Outline

MAX_GROUPS, MAX_STEPS, MAX_VALUE = 6, 8, 999

APPLY: dict[str, Callable[[int, int], int]] = {
    "+": lambda value, operand: value + operand,
    "-": lambda value, operand: value - operand,
    "*": lambda value, operand: value * operand,
}
_SYMBOLS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}


class Step(NamedTuple):
    """One operation of a chain."""

    operator: str
    operand: int

    def __str__(self) -> str:
        return f"{self.operator}{self.operand}"

    @property
    def aligned(self) -> str:
        """The step at the width of the teacher's notation."""
        return f"{self.operator}{self.operand:02}"


@dataclass(frozen=True)
class Group:
    """A left-nested chain: ``start``, then every step applied in turn."""

    start: int
    steps: tuple[Step, ...]

    @property
    def values(self) -> list[int]:
        """The start and every intermediate value, the result last."""
        return list(
            accumulate(
                self.steps,
                lambda value, step: APPLY[step.operator](value, step.operand),
                initial=self.start,
            )
        )

    @property
    def value(self) -> int:
        return self.values[-1]

    @property
    def quote(self) -> str:
        """The first operation: enough to find the group in the question."""
        return f"{self.start}{self.steps[0]}"

    def __str__(self) -> str:
        opening = "(" * (len(self.steps) - 1)
        return f"{opening}{self.start}" + ")".join(map(str, self.steps))


def format_question(groups: Sequence[Group]) -> str:
    """The groups in standard notation."""
    if len(groups) == 1:
        return str(groups[0])
    return "+".join(f"({group})" for group in groups)


def parse_question(question: str) -> list[Group]:
    """Read a question of this family; spaces are optional.

    Raises:
        ValueError: the text is not such a question.
    """
    if not re.fullmatch(r"[0-9+*()\- ]{1,1000}", question):
        raise ValueError("not an arithmetic question of this family")
    try:
        body = ast.parse(question.strip(), mode="eval").body
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"not an arithmetic question: {question[:40]!r}") from error
    return _groups(body)


def _groups(node: ast.expr) -> list[Group]:
    if (
        isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Add)
        and isinstance(node.right, ast.BinOp)
    ):
        return [*_groups(node.left), _group(node.right)]
    return [_group(node)]


def _group(node: ast.expr) -> Group:
    steps: list[Step] = []
    while isinstance(node, ast.BinOp):
        operand = node.right
        if type(node.op) not in _SYMBOLS or not isinstance(operand, ast.Constant):
            raise ValueError("not a left-nested chain of +, - and *")
        steps.append(Step(_SYMBOLS[type(node.op)], int(str(operand.value))))
        node = node.left
    if not isinstance(node, ast.Constant) or not steps:
        raise ValueError("a chain needs a number and at least one step")
    return Group(int(str(node.value)), tuple(reversed(steps)))


# --- generator -------------------------------------------------------------


def random_step(rng: random.Random, value: int, weights: Sequence[float] = (1, 1, 1)) -> Step:
    """A step that keeps a chain at ``value`` inside the family."""
    ranges = {
        "+": (1, min(99, MAX_VALUE - value)),
        "-": (1, min(99, value)),
        "*": (2, min(9, MAX_VALUE // value if value else 9)),
    }
    valid = {op: weight for op, weight in zip("+-*", weights, strict=True) if _holds(ranges[op])}
    operator = rng.choices(list(valid), list(valid.values()))[0]
    low, high = ranges[operator]
    # The ends of the range are where borrows, carries and zeros live.
    operand = rng.choice((low, high)) if rng.random() < 0.05 else rng.randint(low, high)
    return Step(operator, operand)


def _holds(bounds: tuple[int, int]) -> bool:
    return bounds[0] <= bounds[1]


def random_group(rng: random.Random, steps: int, weights: Sequence[float] = (1, 1, 1)) -> Group:
    """A chain of ``steps`` steps; ``weights`` favour ``+``, ``-`` and ``*``."""
    value = start = rng.randint(1, 99)
    chosen: list[Step] = []
    for _ in range(steps):
        step = random_step(rng, value, weights)
        value = APPLY[step.operator](value, step.operand)
        chosen.append(step)
    return Group(start, tuple(chosen))


def _pair(rng: random.Random) -> list[Group]:
    return [random_group(rng, 1, (1, 0, 0))]


def _chain(rng: random.Random) -> list[Group]:
    return [random_group(rng, rng.randint(1, MAX_STEPS))]


def _tiny(rng: random.Random) -> list[Group]:
    return [random_group(rng, 1) for _ in range(rng.randint(2, 4))]


def _wide(rng: random.Random) -> list[Group]:
    return [random_group(rng, rng.randint(4, MAX_STEPS)) for _ in range(rng.randint(4, MAX_GROUPS))]


def _whole(rng: random.Random) -> list[Group]:
    count = rng.randint(1, MAX_GROUPS)
    return [random_group(rng, rng.randint(1, MAX_STEPS)) for _ in range(count)]


KINDS: dict[str, Callable[[random.Random], list[Group]]] = {
    "pair": _pair,
    "chain": _chain,
    "tiny": _tiny,
    "wide": _wide,
    "whole": _whole,
}
"""Parts of the family: ``a+b``, one chain, groups of one step, long and wide, everything."""


# --- teacher ---------------------------------------------------------------


def _work(groups: Sequence[Group]) -> str:
    """Copy and compute group after group, adding up on the way; the result ends the last line."""
    text = ""
    total: int | None = None
    for left, group in zip(range(len(groups), 0, -1), groups, strict=True):
        lines = [f"{group.start:02}" + "".join(step.aligned for step in group.steps)]
        values = group.values
        lines += [
            f"{before:03}{step.aligned}={after:03}"
            for before, step, after in zip(values, group.steps, values[1:], strict=False)
        ]
        if total is not None:
            lines.append(f"{total:04}+{group.value:04}={total + group.value:04}")
        total = group.value + (total or 0)
        text += (";\n" if left > 1 else "\n").join([*lines, ""])
    return text.removesuffix("\n")


def _add_up(values: Sequence[int]) -> str:
    totals = list(accumulate(values))
    return f"{values[0]:04}" + "".join(
        f"+{value:04}={total:04}" for value, total in zip(values[1:], totals[1:], strict=True)
    )


def split_saving(steps_per_group: Sequence[int], budget: int) -> int:
    """Tokens that splitting takes off the critical path, estimated from the shape alone.

    A quote counts 5 tokens with its comma, so that equal shapes get equal decisions.
    """

    def work(steps: Sequence[int]) -> int:
        copies = sum(3 + 3 * count for count in steps)
        return copies + 11 * sum(steps) + 15 * (len(steps) - 1)

    threads = min(budget, len(steps_per_group))
    if threads < 2:
        return 0
    longest = max(map(work, contiguous_runs(steps_per_group, threads)))
    outlines = 3 + 4 * threads + 5 * len(steps_per_group)
    joining = 10 * threads - 5
    return work(steps_per_group) - (outlines + longest + joining)


def demonstrate(question: str, budget: int) -> Demonstration:
    """The ideal behaviour on ``question`` when ``budget`` threads are allowed."""
    groups = parse_question(question)
    answer = str(sum(group.value for group in groups))
    if split_saving([len(group.steps) for group in groups], budget) < SPLIT_PRICE:
        return Demonstration(question, budget, thinking=_work(groups), answer=answer)
    runs = contiguous_runs(groups, min(budget, len(groups)))
    results = [sum(group.value for group in run) for run in runs]
    block = Block(
        outlines=tuple(
            Outline(str(i), ", ".join(group.quote for group in run))
            for i, run in enumerate(runs, start=1)
        ),
        threads=tuple(map(_work, runs)),
        conclusions=tuple(f"{result:04}" for result in results),
    )
    return Demonstration(question, budget, block=block, thinking=_add_up(results), answer=answer)


Kind = Literal["whole", "pair", "chain", "tiny", "wide"]


@dataclass(frozen=True)
class ArithmeticTask(Drawn):
    """Problems of this family. Work is counted in operations; the parts are the groups."""

    family: ClassVar[str] = "arithmetic"

    kind: Kind = "whole"

    def problems(self, count: int, seed: int) -> list[Problem]:
        """``count`` problems; the same seed gives the same ones."""
        rng = random.Random(seed)  # one stream: the bundled model's figures stand on these
        return [self.draw(rng, index) for index in range(count)]

    def draw(self, rng: random.Random, index: int) -> Problem:
        groups = KINDS[self.kind](rng)
        in_groups = sum(len(group.steps) for group in groups)
        parts = len(groups)
        return Problem(
            format_question(groups),
            str(sum(group.value for group in groups)),
            parallel_share=in_groups / (in_groups + parts - 1) if parts > 1 else 0.0,
            parts=parts,
        )

    def check(self, problem: Problem, answer: str) -> bool:
        return number(answer) == int(problem.answer)

    def demonstrate(self, problem: Problem, budget: int) -> Demonstration:
        """The ideal behaviour on ``problem`` when ``budget`` threads are allowed."""
        return demonstrate(problem.question, budget)
