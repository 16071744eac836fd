"""``apr-agents eval``."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest

import apr_agents.evaluation
from apr_agents.backends.scripted import Reply
from apr_agents.cli import evaluate
from apr_agents.cli.agent import Merge
from apr_agents.errors import BackendFailed
from apr_agents.graph.merge import POLICIES
from apr_agents.tasks.arithmetic import KINDS

PAIRS = ["eval", "--task", "arithmetic", "--kind", "pair", "-n", 3]


def test_a_file_is_evaluated_and_shown_as_a_table(run, says, tmp_path):
    says()
    file = tmp_path / "mine.jsonl"
    file.write_text('{"question": "a", "answer": "7.0"}\n{"question": "[red]b", "answer": "8"}\n')
    result = run("eval", "--file", file)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "mine.jsonl, adaptive, bundled: 2 problems" in result.stdout
    assert "50.0%" in result.stdout
    assert "1 of 2" in result.stdout
    assert "[red]b" in result.stdout  # the wrong one, as it is


def test_json_is_all_there_is_on_stdout(run, says):
    says()
    result = run(*PAIRS, "--seed", 5, "--json")
    data = json.loads(result.stdout)
    assert (result.exit_code, result.stderr, data["n"]) == (0, "", 3)
    assert [each["threads"] for each in data["problems"]] == [2, 2, 2]
    again = json.loads(run(*PAIRS, "--seed", 5, "--json").stdout)
    assert [p["question"] for p in data["problems"]] == [p["question"] for p in again["problems"]]


def test_the_options_reach_the_agent(run, says):
    backend = says()
    data = json.loads(
        run("eval", "--task", "arithmetic", "-n", 2, "--strategy", "sequential", "--json").stdout
    )
    assert data["max_threads"] == 0
    assert "Threads: 0\n" in backend.requests[0].prompt


def test_every_combination_is_compared_and_no_run_is_made_twice(run, says):
    backend = says()
    options = ["--strategy", "adaptive", "--strategy", "sequential", "--threads", 2, "--threads", 4]
    result = run(*PAIRS, *options)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "| adaptive   | 2 " in result.stdout
    assert "| adaptive   | 4 " in result.stdout
    assert result.stdout.count("| sequential | 0 ") == 2  # whatever its budget: means and shape
    assert "Difference from sequential, 0 threads, on the same problems:" in result.stdout
    roots = [request for request in backend.requests if request.key == "0/0"]
    assert len(roots) == 3 * 3


def test_several_combinations_are_a_list_in_json(run, says):
    says()
    data = json.loads(run(*PAIRS, "--threads", 0, "--threads", "auto", "--json").stdout)
    assert [each["configuration"]["threads"] for each in data] == [0, "auto"]


def test_tasks_and_models_combine_too(run, says, tmp_path):
    says()
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"question": "a", "answer": "7"}\n')
    files = ["--file", tmp_path / "a.jsonl", "--file", tmp_path / "b.jsonl"]
    result = run("eval", *files, "--model", "x", "--model", "y")
    assert (result.exit_code, result.stderr) == (0, "")
    for told in ("## a.jsonl", "## b.jsonl", "| x     | adaptive |", "| y     | adaptive |"):
        assert told in result.stdout


def test_an_output_directory_holds_runs_tables_and_plots_and_serves_again(run, says, tmp_path):
    backend, out = says(), tmp_path / "new" / "out"
    first = run(*PAIRS, "--out", out)
    assert (first.exit_code, "arithmetic:" in first.stdout) == (0, True)
    assert first.stderr == f"table.md, timings.md and plots are in {out}.\n"
    assert sorted(path.suffix for path in out.iterdir()) == [".jsonl", ".md", ".md", ".svg", ".svg"]
    made, written = len(backend.requests), (out / "table.md").read_text()
    second = run(*PAIRS, "--out", out)
    assert (second.stdout, second.stderr) == (first.stdout, first.stderr)
    assert len(backend.requests) == made
    assert (out / "table.md").read_text() == written

    third = run(*PAIRS, "--out", out, "--threads", 0)
    assert third.stderr.endswith("runs.jsonl there has 3 other runs too.\n")
    assert len((out / "runs.jsonl").read_text().splitlines()) == 6
    assert "| adaptive | 0.0%" in (out / "table.md").read_text()  # these runs alone


def test_a_model_without_work_is_not_loaded(run, says, tmp_path, monkeypatch):
    says()
    run(*PAIRS, "--out", tmp_path)

    def load(model):
        raise AssertionError(model)

    monkeypatch.setattr(apr_agents.backends, "_load", load)
    assert run(*PAIRS, "--out", tmp_path).exit_code == 0


def test_runs_that_broke_off_are_made_again_on_request_only(run, says, tmp_path):
    says(lambda request: Reply("", fails=BackendFailed("it is on fire")))
    assert run(*PAIRS, "--out", tmp_path).exit_code == 1
    backend = says()
    assert run(*PAIRS, "--out", tmp_path).exit_code == 1
    assert backend.requests == []
    result = run(*PAIRS, "--out", tmp_path, "--retry-errors", "--json")
    assert (result.exit_code, json.loads(result.stdout)["errors"]) == (0, 0)


def test_runs_that_all_fail_are_exit_code_1(run, says):
    says(lambda request: Reply("", fails=BackendFailed("it is on fire")))
    result = run("eval", "--task", "arithmetic", "-n", 2, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["errors"] == 2
    assert result.stderr == (
        "Error: Every run failed; the first with BackendFailed: "
        "The model backend failed: it is on fire\n"
    )


def test_the_choices_are_those_that_exist():
    assert set(get_args(evaluate.Kind)) == set(KINDS)
    assert set(get_args(Merge)) == set(POLICIES)


def test_what_tables_and_plots_need_is_asked_for_before_the_runs(run, says, tmp_path, monkeypatch):
    backend = says()
    monkeypatch.setitem(sys.modules, "apr_agents.evaluation.plots", None)
    monkeypatch.delattr(apr_agents.evaluation, "plots", raising=False)
    result = run(*PAIRS, "--out", tmp_path)
    assert (result.exit_code, backend.requests) == (2, [])
    assert "pip install 'apr-agents[eval]'" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "pass exactly one of them"),
        (["--task", "arithmetic", "--file", "x"], "pass exactly one of them"),
        (["--task", "magic"], "the task is 'magic', but must be one of arithmetic, "),
        (["--task", "arithmetic", "-n", "0"], "'-n'"),
        (["--task", "arithmetic", "-n", "many"], "'-n'"),
        (["--task", "arithmetic", "--seed", "-1"], "'--seed'"),
        (["--task", "arithmetic", "--at-once", "0"], "'--at-once'"),
        (["--task", "arithmetic", "--kind", "magic"], "--kind"),
        (["--task", "arithmetic:pair", "--kind", "pair"], "it goes with --task arithmetic only"),
        (["--task", "arithmetic", "--threads", "-3"], "'-3' is neither 'auto' nor"),
        (["--task", "arithmetic", "--out", "broken.jsonl"], "broken.jsonl: File exists"),
        (["--task", "arithmetic", "--out", "full"], "full/runs.jsonl: line 1 is no run of this"),
        (["--file", "broken.jsonl", "--file", "full/broken.jsonl"], "two are called 'broken.j"),
        (["--file", "/no/such/file"], "/no/such/file"),
        (["--file", "/no/such/file", "--kind", "pair"], "it goes with --task"),
        (["--file", "/"], "Cannot use the file /: "),
        (["--file", "/dev/null"], "it has no problems"),
        (["--file", "broken.jsonl"], "broken.jsonl, line 2: it is not JSON"),
        (["--task", "arithmetic", "--model", "nonsense"], "Cannot find the model 'nonsense'"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(run, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.jsonl").write_text('{"question": "a", "answer": 1}\n{"question"\n')
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "runs.jsonl").write_text("[1]\n")
    (tmp_path / "full" / "broken.jsonl").write_text('{"question": "a", "answer": 1}\n')
    result = run("eval", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--strategy", "magic"], "strategy is 'magic', but must be a Strategy or one of adaptive"),
        (["--protocol", "magic"], "protocol is 'magic', but must be one of threadweaver, "),
        (["--temperature", "-1"], "temperature is -1.0, but must be"),
        (["--join", "magic"], "join is 'magic', but must be"),
        (["--strategy", "sequential", "--strategy", "self_consistency", "--merge", "full"],
         "merge is 'full', but must be left out with the strategy 'self_consistency'"),
    ],
)  # fmt: skip
def test_what_no_agent_can_be_is_told_before_any_run(run, says, tmp_path, arguments, told):
    backend = says()
    result = run(*PAIRS, "--out", tmp_path, *arguments)
    assert (result.exit_code, result.stdout, backend.requests) == (2, "", [])
    assert told in result.stderr
    assert result.stderr.count("\n") == 1


def test_strategies_and_protocols_go_by_their_names(run, says, tmp_path):
    backend = says(lambda request: "\n</think>\n7")
    options = ["--strategy", "self_consistency", "--protocol", "threadweaver", "--temperature", 1]
    data = json.loads(run(*PAIRS, *options, "--out", tmp_path, "--json").stdout)
    assert [each["threads"] for each in data["problems"]] == [8, 8, 8]
    assert {request.temperature for request in backend.requests} == {1.0}
    assert data["configuration"] == {
        "task": "arithmetic:kind=pair", "seed": 0, "model": "bundled",
        "strategy": "self_consistency", "protocol": "threadweaver", "temperature": 1.0,
        "merge": "conclusions", "join": "all", "threads": None, "max_depth": 2, "tools": [],
    }  # fmt: skip


# --- killed ---------------------------------------------------------------------------------------

MORTALS = """
import os, signal, sys
import apr_agents.backends, apr_agents.evaluation.plots, apr_agents.graph.build
from apr_agents.backends.scripted import ScriptedBackend
from apr_agents.cli import app
from tests.cli.conftest import splits_and_says_7

def script(request):
    if len(backend.requests) == dies_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return splits_and_says_7(request)

backend = ScriptedBackend(script)
apr_agents.backends._load = lambda model: backend
for line in sys.stdin:
    dies_at, *arguments = line.split()
    dies_at = int(dies_at)
    if not (child := os.fork()):
        sys.stdout = sys.stderr = open(os.devnull, "w")
        app(arguments)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def evaluated() -> Iterator[Callable[..., int]]:
    """Evaluate 60 runs in a process that is killed at one of its model calls (never, at call 0);
    its exit code."""
    arguments = "eval --task arithmetic -n 30 --at-once 4 --strategy adaptive --strategy sequential"
    with subprocess.Popen(
        [sys.executable, "-c", MORTALS],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def evaluate(out: Path, dies_at: int = 0) -> int:
            print(dies_at, arguments, "--out", out, file=process.stdin, flush=True)
            return int(process.stdout.readline())

        yield evaluate
        process.stdin.close()


def test_an_evaluation_that_is_killed_again_and_again_comes_to_the_same_table(evaluated, tmp_path):
    through, killed = tmp_path / "through", tmp_path / "killed"
    runs, known = killed / "runs.jsonl", b""
    assert evaluated(through) == 0
    for dies_at in (39, 51):
        assert evaluated(killed, dies_at) == -signal.SIGKILL
        assert runs.read_bytes().startswith(known)  # what had ended did not run again
        assert not (killed / "table.md").exists()
        known = runs.read_bytes()
    assert 10 < known.count(b"\n") < 60
    with runs.open("ab") as file:
        file.write(known[:97])  # half a line, as if that had been the moment
    assert evaluated(killed) == 0
    assert (killed / "table.md").read_bytes() == (through / "table.md").read_bytes()
    assert runs.read_bytes().startswith(known)
    assert runs.read_bytes().count(b"\n") == 60 + 1
