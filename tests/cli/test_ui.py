"""``apr-agents ui`` where it does not serve; where it does: tests/browser/test_live.py."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import Any

import pytest


def test_a_port_that_is_taken_is_one_line(run: Any, says: Any) -> None:
    says()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("ui", "--port", taken.getsockname()[1])
    assert done.exit_code == 2
    assert "in use" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [["ui"], ["solve", "1+2", "--ui"]])
def test_what_is_no_model_is_one_line(run: Any, command: list[str]) -> None:
    arguments = [*command, "--model", "nonsense"]
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1


def test_without_the_extra_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['fastapi'] = None\nfrom apr_agents.cli import app; app(['ui'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'apr-agents[serve]'" in done.stderr
