"""``apr-agents simulate``."""

import json

import pytest


def test_every_combination_is_a_line_with_its_ratio_to_sequential(run):
    result = run("simulate", "--threads", 1, "--threads", 4, "--tokens", 2000)
    assert (result.exit_code, result.stderr.strip()) == (0, "")
    lines = [line.split() for line in result.stdout.splitlines() if line.strip()]
    by_name = {tuple(line[:2]): line for line in lines}
    assert by_name["adaptive", "1"][5] == "1.00"
    assert by_name["adaptive", "4"][5] == "0.26"
    assert by_name["sequential", "–"][4:6] == ["16,004", "1.00"]
    assert len([line for line in lines if line[0] == "sequential"]) == 1


def test_json_has_all_of_it(run, tmp_path):
    file = tmp_path / "rows.json"
    options = ["--users", 3, "--lanes", 2, "--share", 0, "--error", 1, "--strategy", "adaptive"]
    assert run("simulate", *options, "--json", file).exit_code == 0
    (row,) = json.loads(file.read_text())
    assert row["scenario"]["workload"] == {
        "parts": 8, "tokens": 500, "share": 0.0, "prompt": 200, "error": 1.0, "rot": None,
    }  # fmt: skip
    assert (row["scenario"]["users"], row["scenario"]["hardware"]["lanes"]) == (3, 2)
    assert (row["outcome"]["threads"], row["outcome"]["accuracy"]) == (0, 0)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--strategy", "mcts"], "strategy is 'mcts', but must be one of adaptive, "),
        (["--users", "0"], "'--users'"),
        (["--threads", "x"], "'x' is neither 'auto' nor"),
        (["--decode", "0"], "decode is 0.0, but must be a positive number"),
        (["--rot", "nan"], "rot is nan"),
        (["--json", "/"], "Cannot use the file /: it is a directory"),
        (["--json", "/no/such/file"], "its directory does not exist"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(run, arguments, told):
    result = run("simulate", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr
    assert result.stderr.count("\n") == 1
