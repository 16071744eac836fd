"""A command's options out of the dataclass that configures it: names, types, defaults, help."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer

Config = TypeVar("Config")

_ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n        .*)*)", re.MULTILINE)


def configured(config: type[Config], run: Callable[[Config], None]) -> Callable[..., None]:
    """A command that runs ``run`` with what its options say.

    Args:
        config: a dataclass of plain types, tuples of them, and dataclasses of the same kind,
            whose fields become options too. Its docstring says what the fields are.
    """

    def command(**given: Any) -> None:
        run(_build(config, given))

    parameters = list(_parameters(config))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    command.__doc__ = run.__doc__
    return command


def _parameters(config: type[Any], defaults: Any = None) -> Iterator[inspect.Parameter]:
    hints, helps = get_type_hints(config), _helps(config)
    for each in fields(config):
        default = getattr(defaults, each.name, each.default)
        if default is MISSING and each.default_factory is not MISSING:
            default = each.default_factory()
        kind = hints[each.name]
        if is_dataclass(kind):
            yield from _parameters(kind, default)  # type: ignore[arg-type]
            continue
        option, told = f"--{each.name.replace('_', '-')}", helps[each.name]
        if get_origin(kind) is tuple:
            kind = list[get_args(kind)[0]]  # type: ignore[misc]
            default = default if default is MISSING else list(default)
            option, told = option.removesuffix("s"), f"{told.removesuffix('.')}; repeatable."
        yield inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if default is MISSING else default,
            annotation=Annotated[kind, typer.Option(option, help=told)],
        )


def _helps(config: type[Any]) -> dict[str, str]:
    """What the docstring says about each field, as a sentence."""
    listed = inspect.getdoc(config).partition("Attributes:\n")[2]  # type: ignore[union-attr]
    texts = {name: " ".join(text.split()) for name, text in _ATTRIBUTE.findall(listed)}
    return {name: (text[0].upper() + text[1:]).replace("`", "") for name, text in texts.items()}


def _build(config: type[Config], given: Mapping[str, Any]) -> Config:
    values: dict[str, Any] = {}
    for each in fields(config):  # type: ignore[arg-type]
        kind = get_type_hints(config)[each.name]
        if is_dataclass(kind):
            values[each.name] = _build(kind, given)  # type: ignore[arg-type]
        elif get_origin(kind) is tuple:
            values[each.name] = tuple(given[each.name])
        else:
            values[each.name] = given[each.name]
    return config(**values)
