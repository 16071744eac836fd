"""``--tools FILE``: the tools of a Python file, such as tools/calculator.py."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr_agents.errors import UnusableFile

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool


def load_tools(files: Sequence[Path]) -> list[BaseTool]:
    """The tools in the lists named ``tools`` of all ``files``, which are run for that.

    Raises:
        UnusableFile: a file cannot be run, has no such list, or its list holds something else.
    """
    loaded: dict[str, BaseTool] = {}
    for file in files:
        for item in _listed(file):
            tool = _as_tool(file, item)
            if tool.name in loaded:
                raise UnusableFile(str(file), f"there is another tool called {tool.name!r}")
            loaded[tool.name] = tool
    return list(loaded.values())


def _listed(file: Path) -> Sequence[Any]:
    if not file.exists():
        raise UnusableFile(str(file), "there is no such file")
    if file.is_dir():
        raise UnusableFile(str(file), "it is a directory")
    # A loader of its own, so that the name of the file may end in anything.
    name = f"tools of {file}"
    spec = spec_from_loader(name, SourceFileLoader(name, str(file)))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UnusableFile(str(file), _one_line(error)) from error
    found = getattr(module, "tools", None)
    if not isinstance(found, list | tuple):
        raise UnusableFile(str(file), "it has no list named 'tools'")
    return found


def _as_tool(file: Path, item: Any) -> BaseTool:
    from langchain_core.tools import BaseTool, tool

    if isinstance(item, BaseTool):
        return item
    if not inspect.isfunction(item):
        raise UnusableFile(str(file), f"its 'tools' holds {item!r:.60}, which is no tool")
    try:
        return tool(item)
    except Exception as error:
        raise UnusableFile(str(file), f"{item.__name__}: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    said = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
