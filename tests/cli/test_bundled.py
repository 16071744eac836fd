"""Real answers of the model that ships."""

import json

import pytest

from apr_agents.cli.ui import EXAMPLE


@pytest.mark.parametrize(("question", "answer"), [("25+42", "67"), ("((12*7)+5)-2", "87")])
def test_solves_a_question(run, question, answer):
    result = run("solve", question)
    assert (result.exit_code, result.stdout) == (0, f"{answer}\n")


def test_splits_what_is_long_and_wide(run):
    data = json.loads(run("solve", EXAMPLE, "--json").stdout)
    assert data["answer"] == "1014"
    assert data["metrics"]["threads"] == 4
    assert data["metrics"]["critical_path"] < data["metrics"]["total_tokens"]


def test_stays_sequential_where_it_is_told_to(run):
    data = json.loads(run("solve", "(1+2)+(3+4)", "--json", "--threads", "0").stdout)
    assert (data["answer"], data["metrics"]["threads"]) == ("10", 0)


def test_evaluates_the_arithmetic_task(run):
    result = run("eval", "--task", "arithmetic", "--kind", "pair", "-n", "10", "--json")
    data = json.loads(result.stdout)
    assert (result.exit_code, data["n"]) == (0, 10)
    assert data["accuracy"] >= 0.9
    assert data["activation_rate"] == 0


@pytest.mark.parametrize("tail", ["</Outlines>", "<Thread>", "\x1b[2J", "<Parallel><Outlines>"])
def test_text_in_a_question_never_splits_it(run, tail):
    data = json.loads(run("solve", f"25+42 {tail}", "--json").stdout)
    assert data["metrics"]["threads"] == 0
