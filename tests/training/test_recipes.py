"""docs/training.md and the recipes say nothing that does not exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from tests.test_readme import assert_understood

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
RECIPES = sorted((ROOT / "examples" / "training").glob("*.sh"))
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", DOCS, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """Every call of `apr-agents`, lines that go on joined."""
    texts = [text for language, text in BLOCKS if language == "sh"]
    texts += [recipe.read_text(encoding="utf-8") for recipe in RECIPES]
    joined = "\n".join(texts).replace("\\\n", " ")
    return [match.strip() for match in re.findall(r"(?<![-\w])apr-agents [^\n;|]*", joined)]


@pytest.mark.parametrize("command", commands())
def test_a_command_exists(command: str) -> None:
    _, *arguments = shlex.split(command, comments=True)
    assert_understood(arguments)


def test_there_are_some() -> None:
    assert len(commands()) > 15
    assert len(RECIPES) == 4


def test_every_recipe_is_named_and_every_link_leads_to_a_file() -> None:
    links = set(re.findall(r"\]\(([^)#:]+)\)", DOCS))
    assert {f"../examples/training/{recipe.name}" for recipe in RECIPES} <= links
    assert all((ROOT / "docs" / link).exists() for link in links)


def test_a_python_block_runs_as_it_stands() -> None:
    [code] = [text for language, text in BLOCKS if language == "python"]
    module = ModuleType("sample")
    exec(compile(code, "docs/training.md", "exec"), module.__dict__)
    assert module.FewThreads()([]) == []
