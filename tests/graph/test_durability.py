"""A killed run goes on where it was: what the database has is not done again.

Each run is a process of its own. It is killed in the middle of a block, once the database has
what the test says must survive; then another process takes over. A log of model calls, by
thread, tells what was done twice.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from apr_agents import Limits
from tests.graph.mortal import Log

INPUT = {"messages": [["user", "Q"]]}
CONFIG: Any = {"configurable": {"thread_id": "talk"}}
NEVER = "never"
LEAVES = Limits(max_depth=1)


@dataclass(frozen=True)
class Case:
    """A run, where it is killed, and what follows.

    Attributes:
        replies: what the model says, where that is not ``found …``.
        waits: what waits in the first process, and for which line of the log.
        before: what the log must have when the process is killed.
        again: the model calls of the second process.
        answer: what that comes to.
        used: its tool calls.
        options: how the agent is made.
    """

    replies: dict[str, Any]
    waits: dict[str, str]
    before: list[str]
    again: list[str]
    answer: str
    used: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)


CASES = {
    "leaves": Case(
        replies={"0/0": ["a", "b", "c"]},
        waits={"0.2/0": NEVER},
        before=["wrote 0.1", "wrote 0.3", "called 0.2/0"],
        again=["0.2/0", "0/1"],
        answer="found [0.1] found a; [0.2] found b; [0.3] found c",
    ),
    # Thread 0.1 is finished; 0.2 thinks about what its tool found; the tool of 0.3 runs.
    "tools": Case(
        replies={"0/0": ["a", "b", "c"], **{f"0.{i}/0": {"look_up": [i]} for i in "123"}},
        waits={"0.2/1": NEVER, "3": NEVER},
        before=["kept 0.1 3", "wrote 0.1", "kept 0.2 3", "called 0.2/1", "kept 0.3 1", "used 3"],
        again=["0.2/1", "0.3/1", "0/1"],
        used=["3"],
        answer="found [0.1] found 1!; [0.2] found 2!; [0.3] found 3!",
        options={"tools": True},
    ),
    # Thread 0.1 is finished with all below it; of 0.2's threads one is, and one works.
    "nested": Case(
        replies={"0/0": ["a", "b", "c"], "0.1/0": ["d", "e"], "0.2/0": ["f", "g"]},
        waits={"0.2.2/0": NEVER},
        before=[
            *("kept 0.1 3", "wrote 0.1", "kept 0.3 0", "wrote 0.3"),
            *("kept 0.2 1", "wrote 0.2.1", "called 0.2.2/0"),
        ],
        again=["0.2.2/0", "0.2/1", "0/1"],
        answer="found [0.1] found [0.1.1] found d; [0.1.2] found e; "
        "[0.2] found [0.2.1] found f; [0.2.2] found g; [0.3] found c",
        options={"depth": 2},
    ),
}

AROUND = {
    "alone": ["kept 0 2"],
    "node": ["kept - 1", "kept 0 2"],
    "middleware": ["kept - 1", "kept 0 1"],
}
"""What the graphs above the threads must have saved, or the block begins anew. With
``durability="async"`` that is still on its way while the first threads run."""


@pytest.fixture
def run(mortals: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """Runs a case in a process that is killed and goes on in another; gives that one's log."""

    def start(case: Case, log: Log, options: Mapping[str, Any], **more: Any) -> None:
        defaults = {"model": "chat", "tools": False, "depth": 1}
        talk = {"log": str(log.path), "talk": request.node.name, "replies": case.replies}
        mortals.start({**defaults, **talk, **case.options, **options, **more})

    def run(case: Case, saver: str, durability: str, place: str = "alone", then: Any = None) -> Log:
        is_sqlite = saver.endswith("sqlite")
        options = {
            "saver": saver,
            "database": str(tmp_path / "db") if is_sqlite else request.getfixturevalue("postgres"),
            "durability": durability,
            "place": place,
        }
        first, second = Log(tmp_path / "first"), Log(tmp_path / "second")
        start(case, first, options, waits=case.waits, input=INPUT)
        before = {*case.before, *(AROUND[place] if durability != "exit" else ())}
        deadline = time.monotonic() + 30
        while missing := before.difference(first.lines()):
            assert time.monotonic() < deadline, (missing, first.lines())
            time.sleep(0.01)
        mortals.kill()
        start(case, second, options, waits={}, input=then)
        mortals.wait()
        return second

    return run


def assert_goes_on(log: Log, case: Case) -> None:
    assert log.after("called") == case.again, log.lines()
    assert log.after("used") == case.used
    assert log.after("answer") == [case.answer]


# --- killed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("place", ["alone", "node", "middleware"])
@pytest.mark.parametrize(("saver", "durability"), [("sqlite", "async"), ("postgres", "sync")])
def test_only_what_was_not_finished_is_done_again(
    run: Any, case: str, saver: str, durability: str, place: str
) -> None:
    log = run(CASES[case], saver, durability, place)
    assert_goes_on(log, CASES[case])
    assert log.after("passed") == []  # nor is the node before the agent


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("saver", "durability"),
    [
        ("sqlite", "sync"),
        ("sync sqlite", "async"),
        ("sync sqlite", "sync"),
        ("postgres", "async"),
        ("sync postgres", "sync"),
    ],
)
def test_so_it_is_with_every_saver(run: Any, case: str, saver: str, durability: str) -> None:
    assert_goes_on(run(CASES[case], saver, durability), CASES[case])


def test_a_model_that_continues_text_goes_on_too(run: Any, outlines: Any) -> None:
    case = Case(
        replies={"0/0": outlines("a", "b", "c"), "0/2": "\n</Parallel>\n</think>\n4"},
        waits={"0.2/0": NEVER},
        before=["wrote 0.1", "wrote 0.3", "called 0.2/0"],
        again=["0.2/0", "0/2"],
        answer="4",
        options={"model": "text"},
    )
    assert_goes_on(run(case, "sqlite", "async"), case)


def test_a_second_block_goes_on_as_the_first(run: Any) -> None:
    case = Case(
        replies={"0/0": ["a", "b"], "0/1": ["c", "d"]},
        waits={"0.4/0": NEVER},
        before=["kept 0 5", "wrote 0.3", "called 0.4/0"],
        again=["0.4/0", "0/2"],
        answer="found [0.3] found c; [0.4] found d",
    )
    assert_goes_on(run(case, "sqlite", "async"), case)


@pytest.mark.parametrize("saver", ["sqlite", "sync sqlite", "postgres"])
def test_a_leaf_is_lost_only_while_its_result_is_being_written(run: Any, saver: str) -> None:
    """Of three finished leaves, the first is written; the write of the others never ends."""
    case = Case(
        replies={"0/0": ["a", "b", "c"]},
        waits={"0.2/0": "wrote 0.1", "0.3/0": "writing 0.2", "write 0.2": NEVER},
        before=["wrote 0.1", "writing 0.2", "called 0.3/0"],
        again=["0.2/0", "0.3/0", "0/1"],
        answer="found [0.1] found a; [0.2] found b; [0.3] found c",
    )
    assert_goes_on(run(case, saver, "async"), case)


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_saves_at_its_exit_starts_over(run: Any, case: str) -> None:
    called = [line for line in CASES[case].before if line.startswith("called")]
    killed = replace(CASES[case], before=called)
    nothing = run(killed, "sqlite", "exit")
    assert nothing.lines()[-1].startswith("failed EmptyInputError")
    again = run(killed, "sqlite", "exit", then=INPUT)
    assert again.after("called")[-2:] == ["0/0", "0/1"]
    assert again.after("answer") == [killed.answer]
