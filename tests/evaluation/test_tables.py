from __future__ import annotations

import re

from apr_agents.evaluation.evaluate import Report
from apr_agents.evaluation.tables import SHAPE, difference, estimate, label, table, timings
from tests.evaluation.reports import report, result


def rows_of(text: str) -> list[list[str]]:
    """The cells of all lines of all tables."""
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def compared() -> list[Report]:
    alone = report(
        result(total_tokens=100, critical_path=100, peak_context=120, seconds=4.0),
        result(False, total_tokens=300, critical_path=300, peak_context=320, seconds=8.0),
        strategy="sequential",
        threads=0,
    )
    split = report(
        result(total_tokens=110, critical_path=50, peak_context=60, spawned=True, seconds=3.0),
        result(total_tokens=310, critical_path=250, peak_context=260, spawned=True, seconds=7.0),
        threads=4,
    )
    return [split, alone]


def test_a_table_has_means_with_intervals_and_differences_from_sequential() -> None:
    text = table(compared())
    assert "## sums\n\n2 problems, seed 0; model bundled, protocol default, temperature" in text
    heading, _, *rows = rows_of(text)
    assert heading == [
        "strategy", "threads", "accuracy", "critical path", "total tokens", "peak context", "errors"
    ]  # fmt: skip
    assert rows[:2] == [
        ["adaptive", "4", "100.0% [100.0%, 100.0%]", "150 [50, 250]", "210 [110, 310]",
         "160 [60, 260]", "0"],
        ["sequential", "0", "50.0% [0.0%, 100.0%]", "200 [100, 300]", "200 [100, 300]",
         "220 [120, 320]", "0"],
    ]  # fmt: skip
    assert "Difference from sequential, 0 threads, on the same problems:" in text
    assert rows_of(text)[-1] == [
        "adaptive", "4", "+50.0% [+0.0%, +100.0%]", "-50 [-50, -50]", "+10 [+10, +10]",
        "-60 [-60, -60]",
    ]  # fmt: skip


def test_seconds_stand_apart_from_what_is_the_same_in_every_run() -> None:
    assert "wall clock" not in table(compared())
    text = timings(compared())
    assert rows_of(text)[2] == ["adaptive", "4", "5.00 [3.00, 7.00]"]
    assert rows_of(text)[-1] == ["adaptive", "4", "-1.00 [-1.00, -1.00]"]


def test_without_a_sequential_run_the_first_is_the_baseline_of_its_model() -> None:
    rows = [
        report(result(), model="a", strategy="x"),
        report(result(), model="a", strategy="y"),
        report(result(), model="b", strategy="y"),
        report(result(), model="b", strategy="sequential"),
    ]
    text = table(rows)
    assert "Difference from a, x, on" in text
    assert "Difference from b, sequential, on" in text
    assert text.count("Difference from") == 2


def test_every_task_has_its_own_tables() -> None:
    text = table([report(result(), task="a"), report(result(), result(), task="b")])
    assert "## a\n\n1 problem, seed 0; model bundled, strategy" not in text  # named in the table
    assert "## a\n\n1 problem, seed 0; model bundled, protocol" in text
    assert "## b\n\n2 problems" in text
    assert "Difference" not in text


def test_a_run_that_broke_off_is_wrong_and_counts_nowhere_else() -> None:
    broken = result(False, error="it broke")
    text = table([report(result(critical_path=10, spawned=True), broken)])
    assert rows_of(text)[2][1:] == [
        "50.0% [0.0%, 100.0%]", "10 [10, 10]", "0 [0, 0]", "0 [0, 0]", "1",
    ]  # fmt: skip
    assert rows_of(text)[5][1] == "100.0% [100.0%, 100.0%]"


def test_controls_are_problems_of_which_nothing_can_be_done_at_once() -> None:
    controls = SHAPE[-1]
    rows = report(
        result(parallel_share=0.0),
        result(parallel_share=0.0),
        result(parallel_share=0.0, spawned=True),
        result(parallel_share=0.0, spawned=True, error="it broke"),
        result(parallel_share=0.5),
        result(parallel_share=None),
    )
    found = estimate(rows, controls)
    assert found is not None
    assert found.mean == 2 / 3
    assert estimate(report(result(parallel_share=0.5)), controls) is None


def test_a_difference_needs_a_value_on_both_sides() -> None:
    balance = SHAPE[2]
    ours = report(result(outline_balance=0.5), result(outline_balance=0.7), result())
    theirs = report(result(outline_balance=0.4), result(), result(outline_balance=0.9))
    found = difference(ours, theirs, balance)
    assert found is not None
    assert round(found.mean, 9) == 0.1


def test_names_that_hold_table_syntax_stay_one_cell() -> None:
    rows = [report(result(), model="a|b"), report(result(), model="c")]
    assert [row[0] for row in rows_of(table(rows))[:4]] == ["model", "-----", r"a\|b", "c"]
    assert label(rows[0], rows) == "a|b, adaptive"
