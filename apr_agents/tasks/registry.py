"""All tasks by name, and how a name is read: ``aggregation:records=64,tokens=16000``."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from apr_agents.errors import InvalidOption
from apr_agents.tasks.aggregation import AggregationTask
from apr_agents.tasks.arithmetic import ArithmeticTask
from apr_agents.tasks.base import Task
from apr_agents.tasks.chained import ChainedTask
from apr_agents.tasks.countdown import CountdownTask
from apr_agents.tasks.file import FileTask
from apr_agents.tasks.game24 import Game24Task
from apr_agents.tasks.mathematics import MathTask
from apr_agents.tasks.merge_sort import MergeSortTask
from apr_agents.tasks.needles import NeedlesTask
from apr_agents.tasks.products import ProductsTask
from apr_agents.tasks.reasoning_gym import ReasoningGymTask
from apr_agents.tasks.variable_tracking import VariableTrackingTask


class Entry(NamedTuple):
    """What there is to say about a task.

    Attributes:
        task: its class, a dataclass: the fields are the options.
        asks: what its problems ask for.
        parallel: which part of the work can be done at once.
        verifier: what an answer has to be.
    """

    task: type[Any]
    asks: str
    parallel: str
    verifier: str


INTEGER, LIST = "the exact integer", "the exact list"
CALCULATION = "one that comes to it exactly"

TASKS: dict[str, Entry] = {
    "arithmetic": Entry(
        ArithmeticTask, "a sum of chains of +, - and *", "all chains, not their sum", INTEGER
    ),
    "products": Entry(
        ProductsTask,
        "the product of 5 to 8 numbers, or of two long ones",
        "both halves of the factors; of two long ones, all rows but not their sum",
        INTEGER,
    ),
    "countdown": Entry(
        CountdownTask, "a calculation with a given result", "all first steps", CALCULATION
    ),
    "game24": Entry(
        Game24Task, "a calculation that makes 24 of four numbers", "all first steps", CALCULATION
    ),
    "aggregation": Entry(
        AggregationTask, "a count or a sum over a document's records", "all records", INTEGER
    ),
    "needles": Entry(NeedlesTask, "facts hidden in a long text", "all sentences", LIST),
    "variable_tracking": Entry(
        VariableTrackingTask,
        "all variables that have a value, if through others",
        "all sentences, not the links of the chain",
        "the exact set",
    ),
    "merge_sort": Entry(MergeSortTask, "numbers in order", "both halves, not the last merge", LIST),
    "chained": Entry(
        ChainedTask, "the end of a chain of steps", "nothing: every step needs the last", INTEGER
    ),
    "reasoning_gym": Entry(
        ReasoningGymTask,
        "what one of the data sets of reasoning-gym asks for",
        "unknown",
        "one that the data set's scorer gives the whole point",
    ),
    "file": Entry(
        FileTask, "what a file asks for", "unknown", "the same number, or else the same text"
    ),
    "math": Entry(MathTask, "what a file asks for", "unknown", "the same to math-verify"),
}


def resolve(name: str) -> Task:
    """The task that ``name`` describes.

    A name is a family, and after a colon the options that differ from their defaults, separated
    by commas: ``aggregation:records=64,tokens=16000``. The first may be given without its name:
    ``arithmetic:wide``, ``file:problems.jsonl``, ``reasoning_gym:countdown``.

    Raises:
        InvalidOption: there is no such task or option, or the option cannot have this value.
        MissingExtra: the task needs packages that are not installed.
    """
    family, _, options = name.partition(":")
    if family not in TASKS:
        raise InvalidOption("the task", name, f"one of {', '.join(TASKS)}; options follow a colon")
    task = TASKS[family].task
    try:
        made: Task = TypeAdapter(task).validate_python(_read(options, task))
    except ValidationError as error:
        raise _told(error.errors()[0], name) from error
    return made


def _read(options: str, task: type[Any]) -> dict[str, Any]:
    """The options as texts by name; those of a configuration that the task hands on, apart."""
    names = [each.name for each in fields(task)]
    given: dict[str, Any] = {}
    others: dict[str, str] = {}
    written = options.split(",") if len(names) > 1 else [options]
    for index, item in enumerate(written if options else ()):
        name, equals, value = item.partition("=")
        if not equals and not index:
            name, value = names[0], item
        elif not equals:
            raise InvalidOption("an option", item, "written as name=value")
        (given if name in names else others)[name] = value
    if others and "config" not in names:
        raise InvalidOption("an option", next(iter(others)), f"one of {', '.join(names)}")
    return given | ({"config": others} if others else {})


def _told(error: Any, name: str) -> InvalidOption:
    """One of pydantic's errors in this package's words."""
    option = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return InvalidOption("the task", name, f"followed by its {option}, after a colon")
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, InvalidOption):
        return cause
    expected = error["msg"].removeprefix("Input should be ").partition(", unable")[0]
    return InvalidOption(option, error["input"], expected)
