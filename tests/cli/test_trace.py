"""`apr-agents trace`: a saved run, shown, compared, exported."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import sys
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from apr_agents.cli.app import app
from apr_agents.trace.trajectory import Trajectory
from tests.trace.runs import call, thread, trajectory

VERSION_1 = Path(__file__).parents[1] / "trace" / "version_1.json"


@pytest.fixture
def saved(run: Any, says: Any, tmp_path: Path) -> Path:
    """The file of a run that split into two threads."""
    says()
    file = tmp_path / "run.json"
    assert run("solve", "3+4", "--trace", file).exit_code == 0
    return file


@pytest.fixture
def alone(run: Any, says: Any, tmp_path: Path) -> Path:
    """The file of a run that did not split."""
    says()
    file = tmp_path / "alone.json"
    assert run("solve", "3+4", "--strategy", "sequential", "--trace", file).exit_code == 0
    return file


def test_show_shows_threads_and_measures(run: Any, saved: Path) -> None:
    shown = run("trace", "show", saved, "--prices", "1,2")
    assert shown.exit_code == 0
    for word in ("✓ 0.1  a", "✓ 0.2  b", "critical path", "gate wait", "cost"):
        assert word in shown.stdout
    assert "otherwise" not in shown.stdout
    assert "split" in run("trace", "show", saved, "--why").stdout


def test_show_prints_json_for_scripts(run: Any, saved: Path) -> None:
    data = json.loads(run("trace", "show", saved, "--json", "--prices", "1,2,0").stdout)
    record = Trajectory.load(saved)
    assert data["metrics"]["critical_path"] == record.metrics().critical_path
    assert data["metrics"]["cost"] > 0
    assert data["decisions"][0]["choice"] == "split"
    assert data["decisions"][0]["budget"] == 8


def test_compare_shows_two_runs_side_by_side(run: Any, saved: Path, alone: Path) -> None:
    shown = run("trace", "compare", alone, saved)
    assert shown.exit_code == 0
    assert "÷" in shown.stdout
    (row,) = [line.split() for line in shown.stdout.splitlines() if "0.1" in line.split()]
    assert row[1] == "–"


def test_a_run_compares_to_itself(run: Any, saved: Path) -> None:
    lines = run("trace", "compare", saved, saved).stdout.splitlines()
    assert [line.split()[-1] for line in lines if "total tokens" in line] == ["1.00"]


@pytest.mark.parametrize("name", ["run", "version 1"])
def test_perfetto_and_mermaid_are_written_to_a_file_or_printed(
    run: Any, saved: Path, tmp_path: Path, name: str
) -> None:
    file = saved if name == "run" else VERSION_1
    for command in ("perfetto", "mermaid"):
        output = tmp_path / command
        assert run("trace", command, file, "-o", output).exit_code == 0
        assert output.read_text() == run("trace", command, file).stdout
    events = json.loads((tmp_path / "perfetto").read_text())["traceEvents"]
    assert any(event["ph"] == "X" and event["dur"] > 0 for event in events)
    assert (tmp_path / "mermaid").read_text().startswith("flowchart TD\n")


@pytest.mark.parametrize("name", ["run", "version 1"])
def test_html_writes_one_page(run: Any, saved: Path, tmp_path: Path, name: str) -> None:
    output = tmp_path / "run.html"
    file = saved if name == "run" else VERSION_1
    assert run("trace", "html", file, "-o", output).exit_code == 0
    assert output.read_text().startswith("<!doctype html>")


def test_the_time_axis_can_be_tokens(run: Any, saved: Path) -> None:
    events = json.loads(run("trace", "perfetto", saved, "--unit", "tokens").stdout)["traceEvents"]
    longest = max(event["dur"] for event in events if event["ph"] == "X")
    assert longest == Trajectory.load(saved).metrics().critical_path * 1000


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf"])
def test_plot_draws_what_the_suffix_says(run: Any, saved: Path, suffix: str) -> None:
    output = saved.with_suffix(f".{suffix}")
    assert run("trace", "plot", saved, "-o", output).exit_code == 0
    assert output.stat().st_size > 1000


def test_the_schema_is_printed_and_fits_a_saved_run(run: Any, saved: Path) -> None:
    schema = json.loads(run("trace", "schema").stdout)
    assert jsonschema_rs.is_valid(schema, json.loads(saved.read_text()))


def test_otel_says_why_nothing_was_sent(run: Any) -> None:
    result = run("trace", "otel", VERSION_1)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: This trajectory has no times")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["show"], "Missing argument 'FILE'."),
        (["show", "none.json"], "none.json is not a trajectory of apr-agents: No such file"),
        (["show", "cut.json"], "cut.json is not a trajectory of apr-agents: the file: invalid"),
        (["show", "alien.json"], "alien.json is not a trajectory of apr-agents: question: field"),
        (["show", "run.json", "--prices", "1"], "'1' is not of the form 1.25,10"),
        (["show", "run.json", "--prices", "1,2,3,4"], "'1,2,3,4' is not of the form"),
        (["show", "run.json", "--prices", "1,nan"], "'1,nan' is not of the form"),
        (["show", "run.json", "--prices", "-1,2"], "'-1,2' is not of the form"),
        (["compare", "run.json"], "Missing argument 'B'."),
        (["plot", "run.json"], "Missing option '--output'"),
        (["html", "run.json"], "Missing option '--output'"),
        (["html", "cut.json", "-o", "x"], "cut.json is not a trajectory of apr-agents"),
        (["html", "run.json", "-o", "none/x"], "Cannot use the file none/x: No such file"),
        (["plot", "run.json", "-o", "run.gif"], "must be one that ends in .svg, .png or .pdf"),
        (["perfetto", "run.json", "-o", "none/x"], "Cannot use the file none/x: No such file"),
        (["mermaid", "run.json", "-o", "."], "Cannot use the file .: Is a directory"),
        (["mermaid", "run.json", "-o", "/dev/full"], "Cannot use the file /dev/full: No space"),
        (["perfetto", "run.json", "--unit", "miles"], "'miles' is not one of"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    trajectory(thread("0", [call(1)])).save("run.json")
    Path("cut.json").write_bytes(Path("run.json").read_bytes()[:100])
    Path("alien.json").write_text('{"traceEvents": []}')
    result = run("trace", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: ")
    assert told in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "module", "package", "extra"),
    [
        (["plot", "-o", "run.svg"], "waterfall", "matplotlib", "plot"),
        (["otel"], "otel", "opentelemetry.sdk.trace", "otel"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    run: Any,
    saved: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    module: str,
    package: str,
    extra: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"apr_agents.trace.{module}", raising=False)
    result = run("trace", *arguments, saved)
    assert result.exit_code == 2
    assert result.stderr.endswith(f"pip install 'apr-agents[{extra}]'\n")


# --- output that cannot be written ---------------------------------------------------------------


class Full(io.StringIO):
    """A stream whose disk is full."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_progress_that_cannot_be_shown_does_not_cost_the_answer(
    says: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    says()
    file = tmp_path / "run.json"
    with contextlib.redirect_stderr(Full()), pytest.raises(SystemExit) as ended:
        app(["solve", "3+4", "--trace", str(file)])
    assert not ended.value.code
    assert capsys.readouterr().out == "7\n"
    assert Trajectory.load(file).answer == "7"


def test_nor_does_a_failure_that_cannot_be_told_raise() -> None:
    with contextlib.redirect_stderr(Full()), pytest.raises(SystemExit) as ended:
        app(["trace", "show", "none.json"])
    assert ended.value.code == 2
