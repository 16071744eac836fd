"""Who may import whom. Deferred imports and type-only ones count as well."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "apr_agents"

FLOOR = {"types", "errors"}
MODELS = FLOOR | {"json_calls", "tokens", "protocols", "backends"}
GRAPH = MODELS | {"limits", "trace", "strategies", "graph"}

MAY_IMPORT = {
    "types": set(),
    "errors": set(),
    "json_calls": {"errors"},
    "tokens": set(),
    "boxes": set(),
    "limits": {"errors"},
    "protocols": FLOOR,
    "backends": FLOOR | {"json_calls", "tokens"},
    "trace": FLOOR,
    "tasks": FLOOR | {"boxes"},
    "engine": {"errors"},
    "strategies": FLOOR | {"protocols", "boxes"},
    "graph": MODELS | {"limits", "trace", "strategies"},
    "tools": GRAPH,
    "middleware": GRAPH | {"tools"},
    "bench": GRAPH | {"engine"},
    "simulation": GRAPH,
    "evaluation": FLOOR | {"tokens", "tasks", "trace"},
    "training": GRAPH | {"engine", "tasks"},
    "server": FLOOR | {"engine", "json_calls", "tokens"},
    "ui": GRAPH | {"server"},
}
"""From each layer to the layers it may import, itself apart."""

EXCEPTIONS = {("apr_agents.backends.local", "engine")}

AT_THE_TOP = {"cli", "__init__", "__main__"}
"""They may import everything; nothing may import them."""

ONLY_IN = {
    "langgraph": {"graph", "tools", "middleware", "training", "bench", "ui", "cli"},
    "torch": {"backends", "bench", "engine", "server", "training"},
    "transformers": {"backends", "bench", "engine", "server", "training"},
    "accelerate": {"training"},
    "peft": {"training"},
    "typer": {"cli", "training"},
    "matplotlib": {"bench", "evaluation", "trace"},
    "opentelemetry": {"trace"},
    "reasoning_gym": {"tasks"},
    "math_verify": {"tasks"},
    "fastapi": {"server", "ui"},
    "starlette": {"server", "ui"},
    "sse_starlette": {"server", "ui"},
    "uvicorn": {"server", "ui"},
}
"""Third parties that are a layer's own business."""


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path) -> Iterator[str]:
    """Every module that ``path`` imports, wherever in the file it does."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}, line {node.lineno}: a relative import"
            assert node.module is not None
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in MODULES else node.module


def layer(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def test_the_walk_sees_deferred_and_type_only_imports(tmp_path: Path) -> None:
    file = tmp_path / "sample.py"
    file.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from apr_agents.types import Outline\n"
        "def late():\n    import torch.nn\n    from apr_agents import errors\n"
    )

    assert set(imports(file)) == {"typing", "apr_agents.types", "torch.nn", "apr_agents.errors"}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_the_layers_below_it(module: str) -> None:
    own = layer(module)
    if own in AT_THE_TOP:
        return
    assert own in MAY_IMPORT, f"{module} belongs to no layer; give it one here"
    wrong = {
        imported
        for imported in imports(MODULES[module])
        if imported.split(".")[0] == "apr_agents"
        and layer(imported) not in MAY_IMPORT[own] | {own}
        and (module, layer(imported)) not in EXCEPTIONS
    }

    assert not wrong


@pytest.mark.parametrize("module", MODULES)
def test_third_parties_stay_in_the_layers_that_need_them(module: str) -> None:
    wrong = {
        imported
        for imported in imports(MODULES[module])
        if layer(module) not in ONLY_IN.get(imported.split(".")[0], {layer(module)})
    }

    assert not wrong


def test_no_module_imports_itself_through_others() -> None:
    graph = {
        module: [name for name in imports(path) if name in MODULES and name != module]
        for module, path in MODULES.items()
    }

    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    "path",
    [path for folder in ("graphs", "tools", "examples") for path in ROOT.glob(f"{folder}/*.py")],
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_what_stands_on_the_package_uses_public_names_only(path: Path) -> None:
    inside = {name for name in imports(path) if name.split(".")[0] == "apr_agents"}

    assert inside <= {"apr_agents"}
    assert not {name for name in imports(path) if name.split(".")[0] in {"graphs", "tools"}}
    assert not (path.parent / "__init__.py").exists()
