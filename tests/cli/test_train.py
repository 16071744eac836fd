"""`apr-agents train`: from problems to data, from data to a model, from a model to a better one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer import Typer
from typer.testing import CliRunner

from apr_agents.cli.configured import configured
from apr_agents.cli.train import MOST_TOLD
from apr_agents.training.scripts import Script, read
from tests.training.toy import TOKENIZER, WIDE, fresh_model, script

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    fresh_model(hidden=16, layers=1).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return f"local:{folder}"


def test_from_problems_to_a_model_that_is_reinforced(run: Run, model: str, tmp_path: Path) -> None:
    data, tuned, better = (tmp_path / name for name in ("data.jsonl", "tuned", "better"))
    taught = run(
        "train", "data", "teach", "--task", "arithmetic:pair", "-n", 8, "--threads", 2,
        "--out", data,
    )  # fmt: skip
    assert (taught.exit_code, taught.stdout) == (0, f"8 scripts are in {data}.\n")
    assert {each.budget for each in read([data]).scripts} == {2}

    learned = run(
        "train", "sft", "--model", model, "--data", data, "--out", tuned, "--held-out", 2,
        "--batch-tokens", 100, "--rate", 0.01, "--precision", "float32",
    )  # fmt: skip
    assert learned.exit_code == 0, learned.stderr
    assert "100%, step" in learned.stderr
    assert "held_out_loss" in learned.stderr
    assert (tuned / "model" / "config.json").exists()

    options = ("--steps", 2, "--problems", 2, "--group", 2, "--budget", 2, "--max-tokens", 8)
    start = ("train", "grpo", "--model", f"local:{tuned / 'model'}", "--task", "arithmetic:pair")
    reinforced = run(*start, "--task", "arithmetic:chain", "--out", better, *options)
    assert reinforced.exit_code == 0, reinforced.stderr
    assert "step 2 of 2: loss" in reinforced.stderr
    assert (better / "model" / "config.json").exists()
    assert len((better / "log.jsonl").read_text().splitlines()) == 2

    again = run(*start, "--out", better, *options)
    assert again.exit_code == 2
    assert "was made with other settings (tasks: " in again.stderr.replace("\n", " ")


def test_what_is_left_out_is_named_but_not_without_end(run: Run, tmp_path: Path) -> None:
    traces = tmp_path / "traces.jsonl"
    traces.write_text('{"question": "Q", "trace": "</think>4"}\n' + "{}\n" * (MOST_TOLD + 3))
    converted = run(
        "train", "data", "convert", traces, "--from", "threadweaver", "--out", tmp_path / "data"
    )
    assert converted.exit_code == 0, converted.stderr
    assert converted.stdout.startswith("1 scripts are in ")
    assert f"Left out: {traces}, line 2: " in converted.stderr
    assert converted.stderr.endswith("Left out: 3 more\n")


def test_the_schema_is_that_of_a_line(run: Run) -> None:
    assert json.loads(run("train", "data", "schema").stdout) == Script.model_json_schema()


def test_recorded_runs_become_data(run: Run, tmp_path: Path) -> None:
    empty = tmp_path / "runs.jsonl"
    empty.write_text("")
    collected = run("train", "data", "collect", empty, "--out", tmp_path / "data")
    assert (collected.exit_code, collected.stdout[:9]) == (0, "0 scripts")


def test_a_model_makes_its_own_data(run: Run, says: Run, tmp_path: Path) -> None:
    shown = script(WIDE, split=False)
    says(lambda request: shown.calls["0"][0])
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"question": "1", "answer": "7"}\n{"question": "2", "answer": "5"}\n')
    sampled = run(
        "train", "data", "sample", "--task", f"file:{problems}", "--model", "any", "-n", 2,
        "--samples", 2, "--out", tmp_path / "data",
    )  # fmt: skip
    assert sampled.exit_code == 0, sampled.stderr
    [made] = read([tmp_path / "data"]).scripts
    assert (made.question, made.answer) == ("1", "7")
    assert sampled.stderr.count("its answer is wrong") == 2


def test_traces_are_rewritten(run: Run, says: Run, tmp_path: Path) -> None:
    says(lambda request: "</think>none")
    traces = tmp_path / "traces.jsonl"
    traces.write_text('{"question": "Q", "answer": "4", "trace": "2+2\\n=4"}')
    rewritten = run(
        "train", "data", "rewrite", traces, "--model", "any", "--out", tmp_path / "data",
        "--stages", tmp_path / "stages",
    )  # fmt: skip
    assert rewritten.exit_code == 0, rewritten.stderr
    assert "no steps that do not need each other" in rewritten.stderr
    assert (tmp_path / "stages" / "1-steps.jsonl").exists()


GRPO = ("grpo", "--out", "{}")
TEACH = ("data", "teach", "-n", "1", "--task")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("sft", "--model", "bundled", "--data", "/no", "--out", "{}"), "the file /no"),
        (("sft", "--model", "bundled"), "Missing option"),
        ((*GRPO, "--model", "local:/no", "--task", "arithmetic"), "no such directory"),
        ((*GRPO, "--model", "bundled", "--task", "nothing"), "the task is 'nothing'"),
        ((*GRPO, "--model", "bundled", "--task", "arithmetic", "--group", "1"), "group is 1"),
        ((*GRPO, "--model", "bundled", "--task", "arithmetic", "--reward", "x"), "reward is 'x'"),
        ((*TEACH, "file:{}", "--out", "{}"), "a teacher"),
        ((*TEACH, "arithmetic", "--out", "/no/data"), "Cannot use the file /no/data"),
        ((*TEACH, "arithmetic", "--out", "{}", "--protocol", "x"), "protocol is 'x'"),
        (("data", "convert", "/no", "--from", "apr", "--out", "{}"), "the file /no"),
        (("data", "sample", "--task", "arithmetic", "--model", "x:", "--out", "{}"), "'x:'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(
    arguments: tuple[str, ...], why: str, run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.write_text('{"question": "1", "answer": "7"}')
    result = run("train", *(each.replace("{}", str(out)) for each in arguments))
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert why in result.stderr


def test_a_package_that_is_missing_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "apr_agents.training.sources", None)
    result = run("train", "data", "collect", tmp_path, "--out", tmp_path / "data")
    assert result.exit_code == 2
    assert "pip install 'apr-agents[train]'" in result.stderr


@pytest.mark.parametrize("command", [("train",), ("train", "data")])
def test_without_a_command_there_is_help(command: tuple[str, ...], run: Run) -> None:
    result = run(*command)
    assert result.exit_code == 2
    assert "Usage: " in result.stdout


# --- options out of a dataclass --------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Something.

    Attributes:
        rate: how fast.
    """

    rate: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Something else.

    Attributes:
        name: ``literal`` or another,
            on two lines.
        sizes: how large.
        inner: more of it.
    """

    name: str
    sizes: tuple[int, ...] = (1, 2)
    inner: Inner = field(default_factory=lambda: Inner(rate=0.25))


def test_options_are_what_the_dataclass_says() -> None:
    built: list[Outer] = []
    app = Typer(rich_markup_mode=None)
    app.command()(configured(Outer, built.append))
    CliRunner().invoke(app, ["--name", "a"])
    CliRunner().invoke(app, ["--name", "a", "--size", "3", "--size", "4", "--rate", "2"])
    assert built == [
        Outer(name="a"),
        Outer(name="a", sizes=(3, 4), inner=Inner(rate=2.0)),
    ]
    told = " ".join(CliRunner().invoke(app, ["--help"]).stdout.split())
    assert "literal or another, on two lines. [required]" in told
    assert "How large; repeatable. [default: 1, 2]" in told
    assert "How fast. [default: 0.25]" in told
    assert CliRunner().invoke(app, []).exit_code == 2
