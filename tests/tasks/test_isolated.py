"""Calls in a process of their own: none can hang, kill or confuse its caller."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from apr_agents.tasks.isolated import CallFailed, Worker

FUNCTIONS = """
import time
from apr_agents.tasks.isolated import serve

def double(value):
    print("thinking")
    return 2 * value

def hang():
    time.sleep(600)

def loop():
    while True:
        pass

def greedy():
    return len(bytearray(2**40))

def order():
    return list({"a", "b", "c", "d", "e"})

serve(double, hang, loop, greedy, order)
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory: Path = tmp_path_factory.mktemp("functions")
    (directory / "functions.py").write_text(FUNCTIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(directory), prepend=os.pathsep)
        yield "functions"


@pytest.fixture
def worker(module: str) -> Iterator[Worker]:
    made = Worker(module, seconds=60)
    yield made
    made.stop()


def test_a_call_returns_what_the_function_returns_and_prints_nothing(worker: Worker) -> None:
    assert worker.call("double", 3) == 6
    for text in ("é\n\0\u2028", "\ud800", "x" * 1_000_000, '"\\'):
        assert worker.call("double", text) == 2 * text


def test_calls_from_many_threads_do_not_mix(worker: Worker) -> None:
    with ThreadPoolExecutor(8) as threads:
        told = list(threads.map(lambda value: worker.call("double", value), range(200)))
    assert told == [2 * value for value in range(200)]


def test_a_call_that_raises_says_so_and_the_process_stays(worker: Worker) -> None:
    worker.call("double", 1)
    process = worker.process_id
    for call, told in (
        (["nothing"], "KeyError"),
        (["double"], "TypeError"),
        (["double", None], "TypeError: unsupported operand"),
        (["greedy"], "MemoryError"),
    ):
        with pytest.raises(CallFailed, match=told):
            worker.call(*call)
    assert worker.process_id == process


@pytest.mark.parametrize("function", ["hang", "loop"])
def test_a_call_that_takes_too_long_is_ended_and_the_next_one_works(
    module: str, function: str
) -> None:
    worker = Worker(module, seconds=1)
    with pytest.raises(CallFailed, match="took more than 1 s"):
        worker.call(function)
    assert worker.process_id is None
    assert worker.call("order")
    worker.stop()


def test_a_process_that_dies_is_replaced(worker: Worker) -> None:
    worker.call("double", 1)
    assert worker.process_id is not None
    os.kill(worker.process_id, signal.SIGKILL)
    with pytest.raises(CallFailed, match="died"):
        worker.call("double", 1)
    assert worker.call("double", 1) == 2


def test_sets_have_the_same_order_in_every_process(worker: Worker) -> None:
    first = worker.call("order")
    for _ in range(3):
        worker.stop()
        assert worker.call("order") == first
