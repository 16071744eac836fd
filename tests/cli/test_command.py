"""The installed command, as a process of its own."""

import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

COMMAND = Path(sys.executable).with_name("apr-agents")

WITH_A_MODEL = """
import apr_agents.backends
from apr_agents.backends.scripted import Reply, ScriptedBackend
from apr_agents.cli import app

apr_agents.backends._load = lambda model: ScriptedBackend(lambda request: {reply})
app(["solve", "1+1"])
"""


def command(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *arguments], capture_output=True, text=True, timeout=300, **options
    )


def test_version_and_help():
    assert command("--version").stdout == f"apr-agents {version('apr-agents')}\n"
    told = command("solve", "--help", env={"COLUMNS": "80"})
    assert told.stdout.startswith("Usage: apr-agents solve [OPTIONS]")
    assert (told.returncode, told.stderr) == (0, "")
    assert max(map(len, told.stdout.splitlines())) <= 80
    for arguments in ([], ["bench"]):
        done = command(*arguments)
        assert (done.returncode, done.stderr) == (2, "")
        assert done.stdout.startswith("Usage: apr-agents ")


def test_the_command_line_starts_without_anything_heavy():
    heavy = "torch", "transformers", "langgraph", "langchain_core"
    code = f"import sys, apr_agents.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_a_missing_extra_is_one_line():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from apr_agents.cli import app; app(['solve', '1+1'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "Error: This needs the package 'torch'. Install it with: pip install 'apr-agents[local]'\n"
    )


def test_a_local_model_makes_no_noise(untrained: str):
    done = command("solve", "25+42", "--model", untrained)
    ours = (
        "0 ",
        "threads 0 · total tokens ",
        "parallel efficiency 0%",
        "Error: The model gave no answer",
    )
    assert all(line.startswith(ours) for line in done.stderr.splitlines())


def test_a_question_that_is_too_long_for_the_model_is_one_line(untrained: str):
    done = command("solve", "7" * 100_000, "--model", untrained, "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: The prompt has 1000")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_ends_quietly_with_130():
    code = WITH_A_MODEL.format(reply="Reply('hm', hangs=True)")
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr.readline() == "0 started\n"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (130, "", "")


def test_a_reader_that_has_gone_away_is_no_traceback():
    reading, writing = os.pipe()
    os.close(reading)
    code = WITH_A_MODEL.format(reply="'</think>7'")
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "0 done, 2 tokens: 7"
