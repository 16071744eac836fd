"""What is measured must be what is promised: the calls, the rows, the processes."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from langchain_core.messages import AIMessage
from typer.testing import CliRunner, Result

from apr_agents.bench import systems
from apr_agents.bench.cases import NEST, NESTED, Case, Checkpointer, System, cases
from apr_agents.bench.overhead import WrongCalls, measure
from apr_agents.cli import app

COMMAND = Path(sys.executable).with_name("apr-agents")
PROMISED = [
    "system", "n", "checkpointer", "cpu_ms_per_child", "wall_seconds", "peak_rss_mb",
    "checkpoint_bytes",
]  # fmt: skip
EXTRA = ["latency", "workload", "longest_block_ms"]


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch) -> list[AIMessage]:
    """Everything that the model says."""
    said: list[AIMessage] = []
    reply = systems.ScriptedModel._reply

    def kept(self, messages):
        result = reply(self, messages)
        said.append(result.generations[0].message)
        return result

    monkeypatch.setattr(systems.ScriptedModel, "_reply", kept)
    return said


def overhead(*arguments: object) -> Result:
    arguments = ("bench", "overhead", "--no-nested", "--repeat", "1", *arguments)
    return CliRunner(env={"COLUMNS": "80"}).invoke(app, [str(each) for each in arguments])


@pytest.fixture
def fake_deepagents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a package of this text before the real one, in the processes that measure."""

    def put(text: str) -> None:
        (tmp_path / "deepagents.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return put


def skip_without(system: System) -> None:
    if system in (System.create_agent, System.deepagents):
        pytest.importorskip("langchain.agents")
    if system == System.deepagents:
        pytest.importorskip("deepagents")


# --- The calls ---


@pytest.mark.parametrize("system", System)
def test_a_flat_fan_out_makes_one_call_per_child_and_two_of_the_parent(
    system: System, replies: list[AIMessage], tmp_path: Path
):
    skip_without(system)
    row = measure(Case(system=system, shape=(5,)), tmp_path)

    warm_up, run = replies[: 2 + 2], replies[2 + 2 :]
    assert [bool(reply.tool_calls) for reply in run] == [True] + [False] * 6
    assert [reply.text for reply in run[1:]] == ["found 1"] * 5 + ["found 5"]
    assert warm_up[-1].text == "found 2"
    assert (row.system, row.n, row.workload) == (system, 5, "flat")


@pytest.mark.parametrize("system", [system for system in System if system in NEST])
def test_nested_children_split_and_answer_like_the_root(
    system: System, replies: list[AIMessage], tmp_path: Path
):
    skip_without(system)
    row = measure(Case(system=system, shape=(3, 2, 2)), tmp_path)

    warm_up = 2 * (1 + 2 + 4) + 8
    run = replies[warm_up:]
    assert sum(bool(reply.tool_calls) for reply in run) == 1 + 3 + 6
    assert sum(reply.text == "found 1" for reply in run) == 12
    assert len(run) == 2 * (1 + 3 + 6) + 12
    assert run[-1].text == "found 12"
    assert (row.n, row.workload) == (3 + 6 + 12, "nested 3x2x2")


def test_a_system_that_leaves_calls_out_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    async def guess(question, config):
        return "found 2"

    lazy = systems.Build(systems.in_one_call, lambda model, case, saver: guess)
    monkeypatch.setitem(systems.SYSTEMS, System.gather, lazy)

    with pytest.raises(WrongCalls, match="worked=0"):
        measure(Case(system=System.gather, shape=(2,)), tmp_path)


def test_the_model_serves_sync_callers_alike():
    model = systems.ScriptedModel(says_split=systems.a_call_each)
    message = model.invoke(systems.task((2,)))

    assert [call["args"]["task"] for call in message.tool_calls] == ["0.1: work", "0.2: work"]
    assert model.invoke("0.1: work").text == "found 1"


# --- The rows ---


@pytest.mark.parametrize("checkpointer", Checkpointer)
def test_only_what_a_run_saved_is_counted(checkpointer: Checkpointer, tmp_path: Path):
    if checkpointer == Checkpointer.sqlite:
        pytest.importorskip("langgraph.checkpoint.sqlite.aio")
    for shape in ((4,), (64,)):
        directory = tmp_path / str(shape[0])
        directory.mkdir()
        case = Case(system=System.send_node, shape=shape, checkpointer=checkpointer, repeat=2)
        row = measure(case, directory)

        per_child = row.checkpoint_bytes / row.n
        assert per_child == 0 if checkpointer == Checkpointer.none else 100 < per_child < 20_000
    assert row.cpu_ms_per_child > 0
    assert row.wall_seconds > 0
    assert row.peak_rss_mb > 20


@pytest.mark.parametrize("blocks", [True, False])
def test_a_blocked_event_loop_is_seen_and_a_waiting_one_is_not(
    blocks: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def build(model, case, saver):
        async def ask(question, config):
            (time.sleep if blocks else lambda _: None)(0.3)
            await asyncio.sleep(0.3)
            return await gather(question, config)

        gather = systems._gather(model, case, saver)
        return ask

    monkeypatch.setitem(systems.SYSTEMS, System.gather, systems.Build(systems.in_one_call, build))
    row = measure(Case(system=System.gather, shape=(2,)), tmp_path)

    assert (row.longest_block_ms >= 299) == blocks
    assert row.wall_seconds > 0.29


def test_latency_is_waiting_and_no_work(tmp_path: Path):
    row = measure(Case(system=System.gather, shape=(8,), latency=0.3), tmp_path)

    assert row.wall_seconds > 0.8
    assert row.cpu_ms_per_child < 50


def test_the_baseline_saves_nothing_and_only_some_systems_nest():
    planned = cases(shapes=[(8,), NESTED])

    assert [each.checkpointer for each in planned if each.system == System.gather] == ["none"] * 2
    assert {each.system for each in planned if each.n == 8 + 64 + 512} == NEST
    assert len(planned) == (1 + 6 * 3) + (1 + 3 * 3)


# --- The command ---


def test_the_command_from_its_options_to_the_file(tmp_path: Path):
    pytest.importorskip("langgraph.checkpoint.sqlite.aio")
    file = tmp_path / "rows.json"
    done = overhead(
        "--n", 2, "--n", 2, "--system", "gather", "--system", "send_node", "--json", file,
        "--checkpointer", "sqlite",
    )  # fmt: skip

    rows = json.loads(file.read_text())
    assert (done.exit_code, done.stderr) == (0, "")
    assert [list(row) for row in rows] == [PROMISED + EXTRA] * 2
    assert [(row["system"], row["n"], row["checkpointer"]) for row in rows] == [
        ("gather", 2, "none"),
        ("send_node", 2, "sqlite"),
    ]
    ratio = rows[1]["cpu_ms_per_child"] / rows[0]["cpu_ms_per_child"]
    table = [line.split() for line in done.stdout.splitlines()]
    assert ["gather", "none"] in [line[:2] for line in table]
    assert f"{ratio:.1f}" in next(line for line in table if line[:2] == ["send_node", "sqlite"])
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_a_missing_peer_is_one_line_that_says_what_to_install(fake_deepagents):
    fake_deepagents("raise ImportError('no such thing')")
    done = overhead("--system", "deepagents", "--n", 1, "--n", 2)

    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr == (
        "Warning: deepagents is left out. This needs the package 'deepagents'. "
        "Install it with: pip install 'apr-agents[bench]'\n"
        "Error: Nothing could be measured.\n"
    )


@pytest.mark.parametrize(
    ("package", "why"),
    [
        ("def create_deep_agent(*_, **__):\n    raise ValueError('not\\ntoday')",
         "ValueError: not today"),
        ("import os; os._exit(7)", "its process ended with code 7"),
    ],
)  # fmt: skip
def test_a_peer_that_fails_is_one_line_and_no_row(fake_deepagents, package: str, why: str):
    fake_deepagents(package)
    done = overhead("--system", "deepagents", "--n", 3, "--checkpointer", "none")

    assert done.stderr.splitlines() == [
        f"Warning: deepagents, n=3, none was not measured: {why}",
        "Error: Nothing could be measured.",
    ]


def test_a_file_that_cannot_be_written_is_found_out_first(tmp_path: Path):
    for path in (tmp_path, tmp_path / "none" / "rows.json"):
        done = overhead("--json", path)
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.startswith(f"Error: Cannot use the file {path}")


# --- The processes ---


def wait_for(file_of_a_run: str, under: Path, process: subprocess.Popen) -> None:
    """Until the measuring process is at work."""
    end = time.monotonic() + 120
    while not any(under.rglob(file_of_a_run)):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)


def test_an_interrupt_ends_cleanly_and_leaves_no_process(tmp_path: Path):
    pytest.importorskip("langgraph.checkpoint.sqlite.aio")
    arguments = "bench overhead --n 1 --system send_node --checkpointer sqlite --latency 99"
    with subprocess.Popen(
        [COMMAND, *arguments.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        start_new_session=True,
    ) as process:
        try:
            wait_for("checkpoints.sqlite", tmp_path, process)
            process.send_signal(signal.SIGINT)  # the command alone: a terminal signals both
            told = process.communicate(timeout=60)
            assert (process.returncode, *told) == (130, "", "")
            with pytest.raises(ProcessLookupError):
                os.killpg(process.pid, 0)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []


def test_a_measuring_process_ends_when_the_command_is_gone(tmp_path: Path):
    pytest.importorskip("langgraph.checkpoint.sqlite.aio")
    case = Case(system=System.send_node, shape=(1,), checkpointer=Checkpointer.sqlite, latency=99)
    module = "apr_agents.bench.overhead"
    with subprocess.Popen(
        [sys.executable, "-m", module, json.dumps(asdict(case)), tmp_path], stdin=subprocess.PIPE
    ) as process:
        try:
            wait_for("checkpoints.sqlite", tmp_path, process)
            process.stdin.close()
            assert process.wait(timeout=60) == 1
        finally:
            process.kill()
