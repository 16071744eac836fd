"""Every example and every graph runs as it stands, on the bundled model."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GRAPHS: dict[str, str] = json.loads((ROOT / "langgraph.json").read_text())["graphs"]

WIDE = str(
    ((((((12 * 7) + 5) - 2) + 61) - 17) * 3)
    + ((((45 - 38) * 6) + 9) * 4)
    + ((((((81 - 17) + 23) * 2) - 60) + 8) * 2)
    + ((((((9 * 9) - 14) + 55) - 31) * 2) - 9)
)


def run(example: str, folder: Path) -> list[str]:
    """The lines that an example prints, run from another folder in its own process."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / example)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_01_prints_the_answer_its_threads_and_its_measures(tmp_path: Path) -> None:
    lines = run("01_solve.py", tmp_path)

    assert lines[0] == f"answer: {WIDE}"
    assert lines[1].startswith("thread 0: done")
    assert sum(line.startswith("thread 0.") for line in lines) >= 2
    assert any(line.startswith("tokens in all: ") for line in lines)


def test_02_answers_inside_a_graph_that_existed_before(tmp_path: Path) -> None:
    lines = run("02_node_in_a_graph.py", tmp_path)

    assert lines == ["human: What is 25+42?", "human: 25+42", "ai: 67", "ai: 25+42 = 67"]


def test_03_shows_every_thread_start_and_finish_between_split_and_answer(tmp_path: Path) -> None:
    lines = run("03_stream_events.py", tmp_path)

    (split,) = [i for i, line in enumerate(lines) if line.startswith("0 splits into ")]
    threads = lines[split].removeprefix("0 splits into ").split(", ")
    events = [" ".join(line.split()[:2]) for line in lines[split + 1 : -1]]
    assert len(threads) >= 2
    assert sorted(events) == sorted(f"{t} {verb}" for t in threads for verb in ("starts", "is"))
    assert lines[-1].startswith("0 is done after ")
    assert lines[-1].endswith(f": {WIDE}")


def test_every_example_has_a_test() -> None:
    tested = {name for name in globals() if name.startswith("test_0")}
    numbers = {path.name[:2] for path in (ROOT / "examples").glob("*.py")}

    assert {name.removeprefix("test_")[:2] for name in tested} == numbers


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_of_langgraph_json_answers_messages(name: str) -> None:
    file, _, variable = GRAPHS[name].partition(":")
    graph = runpy.run_path(str(ROOT / file))[variable]

    output = graph.invoke({"messages": [("user", "25+42")]})

    assert output["messages"][-1].text == "67"


def test_langgraph_json_names_every_graph() -> None:
    files = {file.partition(":")[0] for file in GRAPHS.values()}

    assert files == {f"./graphs/{path.name}" for path in (ROOT / "graphs").glob("*.py")}
