"""The README says nothing that does not work."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
SAMPLES = [code for language, code in BLOCKS if language == "python"]
COMMANDS = [
    shlex.split(line, comments=True)
    for language, text in BLOCKS
    if language in ("sh", "console")
    for line in text.splitlines()
    if line.split("#")[0].strip()
]


@pytest.mark.parametrize("number", range(len(SAMPLES)))
def test_a_python_block_runs_as_it_stands_and_prints_what_it_says(
    number: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.chdir(tmp_path)

    exec(compile(SAMPLES[number], f"README.md[{number}]", "exec"), main.__dict__)

    said = re.findall(r"^print\(.*\)  # (.+)$", SAMPLES[number], re.MULTILINE)
    assert capsys.readouterr().out.splitlines()[: len(said)] == said


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_exists(command: list[str]) -> None:
    program, *arguments = command
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert arguments
        assert set(arguments) <= set(targets)
    elif program == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        extras = re.findall(r"\[(\w+)\]", " ".join(arguments))
        assert set(extras) <= set(project["optional-dependencies"])
    else:
        assert program == "apr-agents"
        assert_understood(arguments)


def assert_understood(arguments: list[str]) -> None:
    """`apr-agents` has the command that these begin with, and it has their options."""
    found = the_command()
    while hasattr(found, "commands"):
        found = found.commands[arguments.pop(0)]
    options = {name for param in found.params for name in (*param.opts, *param.secondary_opts)}
    assert {word for word in arguments if word.startswith("-")} <= options


def the_command() -> Any:
    from typer.main import get_command

    from apr_agents.cli import app

    return get_command(app)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_a_link_leads_to_a_file(target: str) -> None:
    assert (ROOT / target).exists()
