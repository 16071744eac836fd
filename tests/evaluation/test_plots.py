from __future__ import annotations

from pathlib import Path

import pytest

from apr_agents.errors import UnusableFile
from apr_agents.evaluation.plots import draw
from tests.evaluation.reports import report, result

ROWS = [
    report(result(total_tokens=9, critical_path=9, peak_context=9), strategy="sequential"),
    report(
        result(False, total_tokens=11, critical_path=4, outline_balance=0.8, spawned=True),
        result(total_tokens=11, critical_path=4, outline_balance=0.8, parallel_share=0.0),
    ),
]


def test_each_task_has_a_picture_of_its_tradeoffs_and_one_of_its_shape(tmp_path: Path) -> None:
    other = report(result(), task="reasoning_gym:a/b, c")
    drawn = draw([*ROWS, other], tmp_path)
    assert [path.name for path in drawn] == [
        "sums-pareto.svg",
        "sums-shape.svg",
        "reasoning_gym-a-b,-c-pareto.svg",
        "reasoning_gym-a-b,-c-shape.svg",
    ]
    tradeoffs, shape = (path.read_text() for path in drawn[:2])
    for said in ("critical path", "total tokens", "peak context", "wall clock, s", "adaptive"):
        assert said in tradeoffs
    for said in ("split", "parallel ratio", "outline balance", "redundancy", "controls"):
        assert said in shape


def test_equal_results_give_equal_files(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    first, second = draw(ROWS, tmp_path), draw(ROWS, tmp_path / "again")
    assert [a.read_bytes() for a in first] == [b.read_bytes() for b in second]


def test_runs_that_all_broke_off_are_no_points(tmp_path: Path) -> None:
    broken = report(result(False, error="it broke"))
    assert all(path.stat().st_size for path in draw([broken], tmp_path))


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UnusableFile, match="No such file"):
        draw(ROWS, tmp_path / "gone")
