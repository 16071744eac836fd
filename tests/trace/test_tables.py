"""Runs as tables in a terminal."""

from __future__ import annotations

import io
from typing import Any

from rich.cells import cell_len
from rich.console import Console

from apr_agents.trace.metrics import Prices
from apr_agents.trace.tables import compare, measures, why
from apr_agents.trace.terminal import MOST_ROWS
from apr_agents.trace.trajectory import Trajectory
from apr_agents.types import Note
from tests.trace.runs import block, call, thread, trajectory


def rows(renderable: Any, width: int = 80) -> dict[str, list[str]]:
    """The words of each line behind its first column."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert all(cell_len(line) <= width for line in lines)
    cells = [[cell for cell in line.split("  ") if cell.strip()] for line in lines]
    return {first.strip(): [each.strip() for each in more] for first, *more in filter(None, cells)}


ALONE = trajectory(thread("0", [call(90, 10, seconds=2.0)], seconds=2.0, conclusion="7"))
SPLIT = trajectory(
    thread(
        "0",
        [call(10, 10), block(thread("0.1", [call(30)]), thread("0.2", [call(40)])), call(10)],
        seconds=1.0,
        conclusion="7",
    )
)


def test_the_measures_of_a_run_have_a_row_each() -> None:
    shown = rows(measures([("run.json", SPLIT)], Prices(0, 1_000_000)))
    assert shown["threads"] == ["2"]
    assert shown["total tokens"] == ["90"]
    assert shown["critical path"] == ["60"]
    assert shown["speedup, estimated"] == ["1.50"]
    assert shown["cost"] == ["90.000000"]
    assert "prefix hits" not in shown  # no call told


def test_two_runs_are_side_by_side_with_the_second_over_the_first() -> None:
    shown = rows(compare(("alone", ALONE), ("split", SPLIT)))
    assert shown["total tokens"] == ["90", "90", "1.00"]
    assert shown["critical path"] == ["90", "60", "0.67"]
    assert shown["threads"] == ["0", "2", "–"]
    assert shown["wall clock, s"] == ["2.000", "1.000", "0.50"]
    assert shown["0"] == ["90 tokens: 7", "90 tokens: 7"]
    assert shown["0.2"] == ["–", "40 tokens"]
    assert "The questions differ." not in shown


def test_a_comparison_says_if_it_compares_different_questions() -> None:
    other = SPLIT.model_copy(update={"question": "another"})
    assert "The questions differ." in rows(compare(("a", ALONE), ("b", other)))


def test_of_hundreds_of_threads_the_first_are_compared() -> None:
    wide = trajectory(thread("0", [block(*(thread(f"0.{i}", [call(1)]) for i in range(1, 500)))]))
    shown = rows(compare(("a", wide), ("b", wide)))
    assert f"… and {500 - MOST_ROWS} more threads" in shown


def test_the_reasons_for_splitting_are_a_table() -> None:
    note = Note(event="declined", why="2 threads asked for, none allowed")
    root = thread("0", [call(8, budget=4, lanes=3), *SPLIT.root.blocks, call(6), note])
    shown = rows(why(trajectory(root)), width=120)
    assert list(shown) == ["thread", *[each for each in shown if each.startswith("─")], "0"]
    assert shown["0"] == ["declined", "0", "–", "–", "6", "6", note.why]
    first = rows(why(trajectory(thread("0", root.steps[:2]))), width=120)
    assert first["0"] == ["split", "4", "3", "2", "40", "70"]


async def test_tables_of_a_real_run_fit_in_80_columns(run: Trajectory) -> None:
    assert rows(measures([("a" * 200, run)]))["threads"] == ["5"]
    assert rows(why(run))["0.1"][:2] == ["alone", "8"]
    assert rows(compare(("a" * 200, run), ("b" * 200, run)))["0.3"] == ["0 tokens, failed"] * 2
