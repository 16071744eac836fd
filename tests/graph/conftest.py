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
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE, STDOUT
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
        self.running: int | None = None

    def start(self, run: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        assert self.running is None
        self._process.stdin.write(json.dumps(run) + "\n")
        self._process.stdin.flush()
        self.running = self._told("started")

    def kill(self) -> int:
        """End the run as a power cut would; its status."""
        assert self.running is not None
        with suppress(ProcessLookupError):  # it has ended by itself
            os.kill(self.running, signal.SIGKILL)
        return self.wait()

    def wait(self) -> int:
        """The run's status, once it has ended."""
        self.running, status = None, self._told("ended")
        return status

    def _told(self, what: str) -> int:
        assert self._process.stdout is not None
        word, number = self._process.stdout.readline().split()
        assert word == what
        return int(number)


@pytest.fixture(scope="session")
def starter() -> Iterator[Mortals]:
    with subprocess.Popen(
        [sys.executable, Path(__file__).parent / "mortal.py"],
        stdin=PIPE,
        stdout=PIPE,
        text=True,
    ) as process:
        yield Mortals(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(10) == 0


@pytest.fixture
def mortals(starter: Mortals) -> Iterator[Mortals]:
    yield starter
    if starter.running is not None:
        starter.kill()


# --- Postgres ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of an empty Postgres that runs for these tests only."""
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # sockets want a short path
    try:
        programs = postgres_programs(folder)
        runs_as: dict[str, Any] = {}
        if os.geteuid() == 0:  # as which Postgres refuses to run
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            runs_as = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}

        def call(program: str, *options: str) -> None:
            command = [programs / program, "-D", folder / "data", *options]
            done = subprocess.run(
                command, cwd=folder, stdout=PIPE, stderr=STDOUT, text=True, timeout=60, **runs_as
            )
            assert done.returncode == 0, done.stdout

        call("initdb", "--username=test", "--auth=trust", "--no-sync")
        served = f"-k {folder} -c listen_addresses= -c fsync=off"
        call("pg_ctl", "start", "--wait", f"--log={folder / 'log'}", f"--options={served}")
        yield f"host={folder} user=test dbname=postgres"
        call("pg_ctl", "stop", "--mode=immediate")
    finally:
        shutil.rmtree(folder)


def postgres_programs(folder: Path) -> Path:
    """Where Postgres's programs are: those of the package pgserver, or installed ones."""
    if wheel := importlib.util.find_spec("pgserver"):
        (package,) = map(Path, wheel.submodule_search_locations or [])
        if os.geteuid() == 0:  # whose packages nobody else may see
            for part in package.parent.glob("pgserver*"):
                shutil.copytree(part, folder / part.name)
            package = folder / "pgserver"
        return package / "pginstall" / "bin"
    installed = [*Path("/usr/lib/postgresql").glob("*/bin/initdb"), shutil.which("initdb")]
    if found := next(filter(None, installed), None):
        return Path(found).resolve().parent
    wheels = {("linux", "x86_64"), ("darwin", "x86_64"), ("darwin", "arm64")}
    if (sys.platform, platform.machine()) in wheels and sys.version_info < (3, 13):
        pytest.fail("These tests need Postgres: pip install --group dev")
    pytest.skip("pgserver has no Postgres for this platform, and none is installed")
