"""Tasks by name: what names mean, and how wrong ones are refused."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_agents.errors import InvalidOption, MissingExtra
from apr_agents.tasks.aggregation import AggregationTask
from apr_agents.tasks.arithmetic import ArithmeticTask
from apr_agents.tasks.file import FileTask
from apr_agents.tasks.products import ProductsTask
from apr_agents.tasks.registry import TASKS, resolve


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("arithmetic", ArithmeticTask()),
        ("arithmetic:", ArithmeticTask()),
        ("arithmetic:wide", ArithmeticTask("wide")),
        ("arithmetic:kind=wide", ArithmeticTask("wide")),
        ("aggregation:records=64,tokens=16000", AggregationTask(64, 16_000)),
        ("aggregation:8,kind=sum,tokens=0", AggregationTask(8, 0, "sum")),
        ("products:factors=2,digits=8", ProductsTask(2, 8)),
        ("file:some/problems, new.jsonl", FileTask(Path("some/problems, new.jsonl"))),
    ],
)
def test_a_name_is_a_family_and_options(name: str, task: object) -> None:
    assert resolve(name) == task


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nonsense", "the task is 'nonsense', but must be one of arithmetic, products, "),
        ("", "the task is '', but must be one of "),
        ("Arithmetic", "the task is 'Arithmetic', but must be one of "),
        ("arithmetic:loud", "kind is 'loud', but must be 'whole', 'pair', "),
        ("arithmetic:king=wide", "an option is 'king', but must be one of kind"),
        ("aggregation:records=many", "records is 'many', but must be a valid integer"),
        ("aggregation:records=1", "records is '1', but must be greater than or equal to 2"),
        ("aggregation:records=8,9", "an option is '9', but must be written as name=value"),
        ("aggregation:records=8,,", "an option is '', but must be written as name=value"),
        ("aggregation:tokens=100", "tokens is 100, but must be 0 or at least 2560"),
        ("file", "the task is 'file', but must be followed by its path"),
        ("reasoning_gym", "the task is 'reasoning_gym', but must be followed by its dataset"),
        ("reasoning_gym:countdwn", "the data set is 'countdwn', but must be one of countdown, "),
        ("reasoning_gym:gcd,seed=1", "an option is 'seed', but must be one of min_numbers, "),
        ("reasoning_gym:gcd,min_value=x", "gcd says: Input should be a valid integer"),
        ("reasoning_gym:gcd,min_value=9,max_value=1", "gcd says: max_value must be > min_value"),
    ],
)
def test_a_wrong_name_is_refused_with_what_would_be_right(name: str, told: str) -> None:
    with pytest.raises(InvalidOption) as raised:
        resolve(name)
    assert told in str(raised.value)


@given(st.sampled_from(sorted(TASKS.keys() - {"reasoning_gym"})), st.text(max_size=30))
def test_any_other_name_is_a_task_or_an_invalid_option(family: str, options: str) -> None:
    for name in (options, f"{family}:{options}", f"{family}{options}"):
        with suppress(InvalidOption):
            assert resolve(name).name


def test_looking_tasks_up_loads_nothing_heavy() -> None:
    heavy = "reasoning_gym", "math_verify", "sympy", "torch", "numpy"
    code = (
        "import sys\nfrom apr_agents.tasks.registry import resolve\n"
        "resolve('aggregation').problems(1, 0); resolve('math:x')\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("name", "package"), [("reasoning_gym:gcd", "reasoning-gym"), ("math:x", "math-verify")]
)
def test_a_missing_package_is_named(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = package.replace("-", "_")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf"'{package}'.*apr-agents\[tasks\]"):
        resolve(name)
