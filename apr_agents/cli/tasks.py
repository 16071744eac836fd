"""``apr-agents tasks``: the problems that can be asked, side by side."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def tasks(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="All about this one, its options too.")
    ] = None,
) -> None:
    """List the tasks: what they ask for, what can be done at once, when an answer is right."""
    if name is None:
        _list()
    else:
        _explain(name)


def _list() -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from apr_agents.tasks.registry import TASKS

    table = Table(box=box.SIMPLE_HEAD, leading=1)
    table.add_column("name", no_wrap=True)
    for heading in ("it asks for", "what can be done at once", "an answer is right if it is"):
        table.add_column(heading, overflow="fold")
    table.add_column("options", overflow="fold")
    for name, (task, asks, parallel, verifier) in TASKS.items():
        table.add_row(*map(Text, (name, asks, parallel, verifier, _options(task))))
    Console().print(table)
    Console().print(Text("Options follow a colon: --task aggregation:records=64,tokens=16000"))


def _options(task: type[Any]) -> str:
    """The options with their defaults, but for those that are handed on to something else."""
    from dataclasses import MISSING, fields

    shown = [
        each.name if each.default in (None, MISSING) else f"{each.name}={each.default}"
        for each in fields(task)
        if each.name != "config"
    ]
    return ", ".join(shown)


def _explain(name: str) -> None:
    import sys
    from inspect import cleandoc

    from apr_agents.errors import InvalidOption
    from apr_agents.tasks.reasoning_gym import ReasoningGymTask, datasets
    from apr_agents.tasks.registry import TASKS

    if name not in TASKS:
        raise InvalidOption("the task", name, f"one of {', '.join(TASKS)}")
    task = TASKS[name].task
    for text in (sys.modules[task.__module__].__doc__, task.__doc__):
        print(cleandoc(text or "").replace("``", "").replace("`", ""), end="\n\n")
    if task is ReasoningGymTask:
        print("Data sets:", ", ".join(datasets()))
