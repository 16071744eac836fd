"""Measuring in a fresh process: no memory, imports or garbage of what was measured before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from apr_agents.errors import AprError, MissingExtra

QUIET = {"LANGSMITH_TRACING": "false", "LANGCHAIN_TRACING_V2": "false"}


class MeasurementFailed(AprError):
    """Something could not be measured."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what} was not measured: {why}")
        self.what, self.why = what, why


def run_apart(module: str, case: dict[str, Any], *, what: str, threads: int = 1) -> dict[str, Any]:
    """What ``python -m module`` reports about ``case``; its process ends with this one.

    Args:
        what: the case in words.
        threads: threads that the numeric libraries may use there.

    Raises:
        MissingExtra: a package is not installed.
        MeasurementFailed: anything else that went wrong.
    """
    with TemporaryDirectory(prefix="apr-agents-bench-") as directory:
        command = [sys.executable, "-P", "-m", module, json.dumps(case), directory]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # never written to: its end is the end of this process
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | QUIET | {"OMP_NUM_THREADS": str(threads)},
        ) as process:
            assert process.stderr is not None
            try:
                complaint = process.stderr.read().decode(errors="replace").strip()
                process.wait()
            except BaseException:
                process.kill()
                raise
        file = Path(directory, "outcome.json")
        if not file.exists():
            last = complaint.splitlines()[-1:]
            ended = f"its process ended with code {process.returncode}"
            raise MeasurementFailed(what, ": ".join([ended, *last]))
        outcome: dict[str, Any] = json.loads(file.read_text())
    if "missing" in outcome:
        raise MissingExtra(**outcome["missing"])
    if "failed" in outcome:
        raise MeasurementFailed(what, outcome["failed"])
    return outcome


def report(measure: Callable[[dict[str, Any], Path], dict[str, Any]]) -> None:
    """The fresh process: measure the case on its command line, and leave what came of it.

    Args:
        measure: from the case and a directory of its own to the outcome.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    case, directory = sys.argv[1:]
    outcome: dict[str, Any]
    try:
        outcome = measure(json.loads(case), Path(directory))
    except MissingExtra as error:
        outcome = {"missing": {"extra": error.extra, "package": error.package}}
    except Exception as error:
        outcome = {"failed": " ".join(f"{type(error).__name__}: {error}".split())}
    Path(directory, "outcome.json").write_text(json.dumps(outcome))


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(1)
