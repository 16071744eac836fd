"""``apr-agents eval``."""

import json
from typing import get_args

import pytest

from apr_agents.backends.scripted import Reply
from apr_agents.cli import evaluate
from apr_agents.cli.agent import Merge
from apr_agents.errors import BackendFailed
from apr_agents.graph.merge import POLICIES
from apr_agents.tasks.arithmetic import KINDS


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
    result = run("eval", "--task", "arithmetic", "-n", 3, "--seed", 5, "--kind", "pair", "--json")
    data = json.loads(result.stdout)
    assert (result.exit_code, result.stderr, data["n"]) == (0, "", 3)
    assert [each["threads"] for each in data["problems"]] == [2, 2, 2]
    again = json.loads(
        run("eval", "--task", "arithmetic", "-n", 3, "--seed", 5, "--kind", "pair", "--json").stdout
    )
    assert [p["question"] for p in data["problems"]] == [p["question"] for p in again["problems"]]


def test_the_options_reach_the_agent(run, says):
    backend = says()
    data = json.loads(
        run("eval", "--task", "arithmetic", "-n", 2, "--strategy", "sequential", "--json").stdout
    )
    assert data["max_threads"] == 0
    assert "Threads: 0\n" in backend.requests[0].prompt


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


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "pass exactly one of them"),
        (["--task", "arithmetic", "--file", "x"], "pass exactly one of them"),
        (["--task", "magic"], "--task"),
        (["--task", "arithmetic", "-n", "0"], "'-n'"),
        (["--task", "arithmetic", "-n", "many"], "'-n'"),
        (["--task", "arithmetic", "--kind", "magic"], "--kind"),
        (["--task", "arithmetic", "--threads", "-3"], "'-3' is neither 'auto' nor"),
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
    result = run("eval", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr
    assert result.stderr.count("\n") == 1
