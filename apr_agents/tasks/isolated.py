"""Calls in a process of their own, which is killed when one takes too long.

For verifiers that this package does not control: they may hang, fill the memory or keep all
threads from running, and a time limit by signal works in a main thread only.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

STARTING = 120.0
"""Seconds that the process may take to start and import what it needs."""

MEMORY = 4 * 2**30
"""Bytes of address space that the process may take, where the system can bound it."""


class CallFailed(Exception):
    """A call raised, took too long or ended the process."""


class Worker:
    """A process that runs ``module``, which has to call `serve`. It starts with the first call.

    Calls are made one at a time, from any thread. Arguments and results are JSON data. In
    the process, sets of texts have the same order every time.

    Args:
        seconds: time that one call may take.
    """

    def __init__(self, module: str, seconds: float) -> None:
        self._module, self._seconds = module, seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def call(self, function: str, *args: Any) -> Any:
        """What ``function`` of the module returns.

        Raises:
            CallFailed: it raised, took too long or ended the process, which then starts anew.
        """
        with self._lock:
            if self._process is None:
                self._start()
            reply = self._exchange([function, *args], self._seconds)
        if "error" in reply:
            raise CallFailed(reply["error"])
        return reply["value"]

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            start_new_session=True,  # an interrupt of the caller is not meant for it
            env=os.environ | {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"},
        )
        atexit.register(self.stop)
        self._exchange([], STARTING)

    def _exchange(self, call: list[Any], seconds: float) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(seconds, expire)
        timer.start()
        try:
            process.stdin.write(json.dumps([math.ceil(seconds), *call]) + "\n")
            process.stdin.flush()
            reply = process.stdout.readline()
        except OSError:
            reply = ""
        timer.cancel()
        timer.join()  # it may be about to kill
        if expired.is_set() or not reply:
            self.stop()
            raise CallFailed(f"took more than {seconds:g} s" if expired.is_set() else "died")
        answer: dict[str, Any] = json.loads(reply)
        return answer

    @property
    def process_id(self) -> int | None:
        """That of the process, if it runs."""
        return None if self._process is None else self._process.pid

    def stop(self) -> None:
        """End the process. The next call starts another."""
        atexit.unregister(self.stop)
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def serve(*functions: Callable[..., Any]) -> None:
    """Answer the calls of a `Worker` until it is gone."""
    by_name = {function.__name__: function for function in functions}
    _bound_memory()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a function prints is no reply
    for line in os.fdopen(0, encoding="utf-8"):
        seconds, *call = json.loads(line)
        _end_after(seconds + 1)
        try:
            reply = {"value": by_name[call[0]](*call[1:]) if call else None}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)
        _end_after(0)


def _bound_memory() -> None:
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def _end_after(seconds: int) -> None:
    """Let the system end this process if the `Worker` does not live to do it; 0 for never."""
    if sys.platform != "win32":
        import signal

        signal.alarm(seconds)
