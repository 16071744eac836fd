"""What a wheel installs, and what an editable install leaves out."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUNDLED = ROOT / "apr_agents" / "bundled"

MODEL_FILES = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """The files of the built wheel with their sizes in bytes."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    subprocess.run([*build, "--directory", str(folder)], cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return {info.filename: info.file_size for info in archive.infolist()}


def test_a_wheel_holds_the_package_and_nothing_else(wheel: dict[str, int]) -> None:
    tops = {name.split("/")[0] for name in wheel}

    assert tops == {"apr_agents", "apr_agents-0.1.0.dist-info"}
    assert not [name for name in wheel if "__pycache__" in name or name.endswith(".pt")]


def test_a_wheel_holds_every_module_and_the_mark_of_typed_code(wheel: dict[str, int]) -> None:
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "apr_agents").rglob("*.py")}

    assert modules | {"apr_agents/py.typed"} <= set(wheel)


def test_a_wheel_holds_the_page_and_the_licences_of_its_library(wheel: dict[str, int]) -> None:
    page = ROOT / "apr_agents" / "trace" / "page"
    files = {str(path.relative_to(ROOT)) for path in page.rglob("*") if path.is_file()}

    assert files <= set(wheel)
    assert {Path(name).name for name in files if name.endswith(".LICENSE")} == {
        "htm.LICENSE",
        "preact.LICENSE",
    }


def test_a_wheel_holds_the_bundled_model(wheel: dict[str, int]) -> None:
    here = {path.name for path in BUNDLED.iterdir()}
    bundled = {
        Path(name).name: size
        for name, size in wheel.items()
        if name.startswith("apr_agents/bundled/")
    }

    assert set(bundled) >= MODEL_FILES
    assert set(bundled) == here
    assert bundled["model.safetensors"] <= 10_000_000


def test_an_install_makes_nothing_but_the_package_importable(tmp_path: Path) -> None:
    look = "import importlib.util as u, sys; print(*(bool(u.find_spec(n)) for n in sys.argv[1:]))"
    names = ["apr_agents", "graphs", "tools", "examples", "benchmarks", "tests"]
    found = subprocess.run(
        [sys.executable, "-c", look, *names], cwd=tmp_path, capture_output=True, text=True
    )

    assert found.stdout.split() == ["True", *["False"] * 5], found.stderr
