"""What ``import apr_agents`` offers, and what it costs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import apr_agents

MEASURE = """
import json, sys, time
started = time.perf_counter()
import apr_agents
seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "modules": sorted(sys.modules)}))
"""


def import_afresh() -> tuple[float, set[str]]:
    """Seconds that the import takes in a new interpreter, and the modules it leaves behind."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True
    )
    measured = json.loads(done.stdout)
    return measured["seconds"], set(measured["modules"])


def test_every_public_name_has_a_home_and_every_home_is_public() -> None:
    assert sorted(apr_agents.__all__) == sorted(apr_agents._HOMES)


def test_type_checkers_see_the_same_names_at_the_same_homes() -> None:
    tree = ast.parse(Path(apr_agents.__file__).read_text(encoding="utf-8"))
    seen = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("apr_agents.")
        for alias in node.names
    }

    assert seen == {name: f"apr_agents.{home}" for name, home in apr_agents._HOMES.items()}


@pytest.mark.parametrize("name", apr_agents.__all__)
def test_a_public_name_resolves_and_says_what_it_is(name: str) -> None:
    value = getattr(apr_agents, name)

    assert value.__name__ == name
    assert value.__doc__
    # A dataclass without a docstring gets its signature for one.
    assert not value.__doc__.startswith(f"{name}(")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = apr_agents.nonsense


def test_importing_the_package_is_light_and_quick() -> None:
    runs = [import_afresh() for _ in range(3)]

    assert min(seconds for seconds, _ in runs) < 1.0
    assert not runs[0][1] & {"torch", "transformers", "langgraph", "langchain_core", "pydantic"}
