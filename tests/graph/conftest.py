"""What the tests of the graph share: chat models, processes to kill, a Postgres."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.graph.chat_script import JsonChat, Script, ToolChat

Chat = Callable[..., Any]


@pytest.fixture
def chat() -> Iterator[Chat]:
    """A scripted chat model of some kind. It fails the test if a provider would have refused a
    conversation, or if the script had no reply."""
    made: list[JsonChat] = []

    def make(script: Script, kind: type[JsonChat] = ToolChat, **options: Any) -> Any:
        made.append(kind(script=script, **options))
        return made[-1]

    yield make
    assert [complaint for model in made for complaint in model.complaints] == []
    assert [model.in_flight for model in made] == [0] * len(made)


# --- processes -----------------------------------------------------------------------------------


class Mortals:
    """Starts runs in processes of their own, one at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._child: int | None = None

    def start(self, run: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(run) + "\n")
        self._process.stdin.flush()
        self._child = int(self._read())

    def kill(self) -> None:
        """Kill the run, as a power cut would."""
        assert self._child is not None
        os.kill(self._child, signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL

    def wait(self) -> int:
        self._child, status = None, int(self._read())
        return status

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@pytest.fixture(scope="session")
def starter() -> Iterator[Mortals]:
    with subprocess.Popen(
        [sys.executable, Path(__file__).parent / "mortal.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Mortals(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(10) == 0


@pytest.fixture
def mortals(starter: Mortals) -> Iterator[Mortals]:
    yield starter
    if starter._child is not None:
        starter.kill()


# --- Postgres ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of an empty Postgres that runs for these tests only."""
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # sockets want a short path
    try:
        binaries = postgres_binaries(folder)
        # The server refuses to run as root.
        runs_as: dict[str, Any] = {"cwd": folder, "text": True}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            runs_as |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        made = subprocess.run(
            [binaries / "initdb", "-D", folder / "data", "-U", "test", "-A", "trust", "-N"],
            capture_output=True,
            **runs_as,
        )
        assert made.returncode == 0, made.stderr
        with (folder / "log").open("w") as log:
            server = subprocess.Popen(
                [binaries / "postgres", "-D", "data", "-k", folder, "-c", "listen_addresses="],
                stderr=log,
                **runs_as,
            )
        while not any(folder.glob(".s.PGSQL.*[0-9]")):
            assert server.poll() is None, (folder / "log").read_text()
            time.sleep(0.01)
        yield f"host={folder} user=test dbname=postgres"
        server.send_signal(signal.SIGQUIT)
        server.wait(10)
    finally:
        shutil.rmtree(folder)


def postgres_binaries(folder: Path) -> Path:
    """Where Postgres's programs are: those of the package pgserver, or installed ones."""
    if wheel := importlib.util.find_spec("pgserver"):
        (site,) = (Path(place).parent for place in wheel.submodule_search_locations or [])
        if os.geteuid() != 0:
            return site / "pgserver" / "pginstall" / "bin"
        # Nobody may not see root's packages.
        shutil.copytree(site / "pgserver" / "pginstall", folder / "pgserver" / "pginstall")
        shutil.copytree(site / "pgserver.libs", folder / "pgserver.libs")
        folder.chmod(0o755)
        return folder / "pgserver" / "pginstall" / "bin"
    if installed := shutil.which("initdb") or next(
        map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), None
    ):
        return Path(installed).resolve().parent
    if (sys.platform, platform.machine()) not in {("linux", "x86_64"), ("darwin", "arm64")}:
        pytest.skip("no Postgres is installed, and pgserver has none for this platform")
    pytest.fail("These tests need Postgres: install pgserver (pip install --group dev), or initdb.")
