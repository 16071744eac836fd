"""``apr-agents tasks``."""

import pytest

from apr_agents.tasks.registry import TASKS


def test_all_tasks_are_listed(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    result = run("tasks")
    assert (result.exit_code, result.stderr) == (0, "")
    for name, entry in TASKS.items():
        assert name in result.stdout
        assert entry.asks.split()[0] in result.stdout
    assert "records=64" in result.stdout


@pytest.mark.parametrize("name", TASKS)
def test_a_task_explains_itself_and_its_options(run, name):
    result = run("tasks", name)
    assert (result.exit_code, result.stderr) == (0, "")
    assert ("sudoku" in result.stdout) == (name == "reasoning_gym")
    assert name != "aggregation" or "records: how many there are" in result.stdout


def test_an_unknown_task_is_one_line(run):
    result = run("tasks", "nonsense")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: the task is 'nonsense', but must be one of arithmetic")
