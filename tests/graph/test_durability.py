"""A killed run goes on where it was: what the database has is not done again.

Each run is a process of its own. It is killed in the middle of a block, once the database has
what the test says must survive; then another process takes over. A log of model calls, by
thread, tells what was done twice.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from apr_agents import Limits, create_parallel_agent
from apr_agents.trace.trajectory import Trajectory
from tests.graph.mortal import Log, Script

INPUT = {"messages": [["user", "Q"]]}
CONFIG: Any = {"configurable": {"thread_id": "talk"}}
NEVER = "never"


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
        waits={"0.2/0": NEVER, "0.3/0": "wrote 0.1"},  # so that two writes follow each other
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
"""What the graphs above the threads must have saved, or the block begins anew."""


@pytest.fixture
def run(mortals: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """Runs a case in a process that is killed and goes on in another; gives that one's log."""

    def start(case: Case, log: Log, options: Mapping[str, Any], **more: Any) -> None:
        defaults = {"model": "chat", "tools": False, "depth": 1}
        talk = {"log": str(log.path), "talk": request.node.name, "replies": case.replies}
        mortals.start({**defaults, **talk, **case.options, **options, **more})

    def run(
        case: Case,
        saver: str,
        durability: str,
        place: str = "alone",
        *,
        around: bool = True,
        then: Any = None,
    ) -> Log:
        is_sqlite = saver.endswith("sqlite")
        options = {
            "saver": saver,
            "database": str(tmp_path / "db") if is_sqlite else request.getfixturevalue("postgres"),
            "durability": durability,
            "place": place,
        }
        first, second = Log(tmp_path / "first"), Log(tmp_path / "second")
        start(case, first, options, waits=case.waits, input=INPUT)
        before = set(case.before) | set(AROUND[place] if around else ())
        deadline = time.monotonic() + 30
        while missing := before.difference(first.lines()):
            assert time.monotonic() < deadline, (missing, first.lines())
            time.sleep(0.01)
        assert mortals.kill() == -signal.SIGKILL
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


@pytest.mark.parametrize("durability", ["async", "sync"])
def test_a_block_is_saved_before_or_while_its_first_threads_run(
    run: Any, tmp_path: Path, durability: str
) -> None:
    """Killed before that, it begins anew, whatever its threads have come to."""
    runs_ahead = durability == "async"
    case = replace(
        CASES["leaves"],
        waits={"keep 0 2": NEVER},
        before=["keeping 0 2", *(["wrote 0.1", "wrote 0.2", "wrote 0.3"] if runs_ahead else [])],
        again=["0.1/0", "0.2/0", "0.3/0", "0/1"],
    )
    log = run(case, "sqlite", durability, around=False)
    # What the root had written may itself not have been saved yet when it was killed.
    assert [call for call in log.after("called") if call != "0/0"] == case.again
    assert log.after("answer") == [case.answer]
    assert ("called 0.1/0" in Log(tmp_path / "first").lines()) == runs_ahead


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("then", [None, INPUT], ids=["goes on", "asked again"])
def test_a_run_that_saves_at_its_exit_starts_over(
    run: Any, tmp_path: Path, case: str, then: Any
) -> None:
    called = [line for line in CASES[case].before if line.startswith("called")]
    killed = replace(CASES[case], before=called)
    second = run(killed, "sqlite", "exit", around=False, then=then)
    if then is None:
        assert second.lines()[-1].startswith("failed EmptyInputError")
        return
    done_before = Log(tmp_path / "first").after("called")
    assert set(done_before) <= set(second.after("called"))
    assert second.after("answer") == [killed.answer]


# --- the journal of leaves ---------------------------------------------------------------------


class SlowSaver(AsyncSqliteSaver):
    """Takes its time to write results, and may fail.

    Attributes:
        groups: the threads whose results were written together.
        fails: how many writes of results fail from now on.
    """

    groups: list[list[str]]
    fails = 0

    @classmethod
    @asynccontextmanager
    async def at(cls, path: Path) -> AsyncIterator[SlowSaver]:
        async with aiosqlite.connect(path) as connection:
            saver = cls(connection)
            saver.groups = []
            yield saver

    async def aput_writes(self, config: Any, writes: Any, *task: Any) -> None:
        results = [value["id"] for channel, value in writes if channel == "result"]
        if results:
            await asyncio.sleep(0.1)
            if self.fails:
                self.fails -= 1
                raise OSError("disk full")
            self.groups.append(results)
        await super().aput_writes(config, writes, *task)


def leaves(log: Log, saver: Any, *, outlines: Sequence[str] = "abc", **options: Any) -> Any:
    """An agent that asks for leaves."""
    model = Script(replies={"0/0": list(outlines)}, log=log, **options)
    wide = len(outlines)
    limits = Limits(max_depth=1, max_threads=wide, max_total_threads=wide, max_concurrency=wide)
    return create_parallel_agent(model, limits=limits, checkpointer=saver)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log")


async def test_results_that_come_together_are_written_together(log: Log, tmp_path: Path) -> None:
    async with SlowSaver.at(tmp_path / "db") as saver:
        names = [str(number) for number in range(60)]
        output = await leaves(log, saver, outlines=names).ainvoke(INPUT, CONFIG)
        assert len(Trajectory.model_validate(output["trajectory"]).root.blocks[0].threads) == 60
        assert max(map(len, saver.groups)) > 10
        assert set(chain(*saver.groups)) == {f"0.{number}" for number in range(1, 61)}


@pytest.mark.parametrize("durability", ["async", "sync", "exit"])
@pytest.mark.parametrize(
    ("waits", "written", "again"),
    [
        ({"0.2/0": NEVER}, {"0.1", "0.3"}, ["called 0.2/0", "called 0/1"]),
        ({}, {"0.1", "0.2", "0.3"}, ["called 0/1"]),
    ],
    ids=["while a leaf works", "while the last results are being written"],
)
async def test_what_was_finished_when_a_run_is_cancelled_is_written(
    log: Log, tmp_path: Path, durability: Any, waits: Any, written: set[str], again: list[str]
) -> None:
    """By the time that whoever cancels it gets the word."""
    finished: asyncio.Queue[str] = asyncio.Queue()

    async def live(saver: Any) -> None:
        agent = leaves(log, saver, waits=waits)
        events = agent.astream(INPUT, CONFIG, stream_mode="custom", durability=durability)
        async for event in events:
            if event["type"] == "finished":
                finished.put_nowait(event["id"])

    async with SlowSaver.at(tmp_path / "db") as saver:
        running = asyncio.create_task(live(saver))
        assert {await finished.get() for _ in written} == written
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert set(chain(*saver.groups)) == written
        # A note of LangGraph's on the cancelled task comes later; it would lock the database.
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)
    before = log.lines()
    async with SlowSaver.at(tmp_path / "db") as saver:
        await leaves(log, saver).ainvoke(None, CONFIG)
    assert log.lines()[len(before) :] == again


async def test_a_write_that_fails_is_tried_again(log: Log, tmp_path: Path) -> None:
    async with SlowSaver.at(tmp_path / "db") as saver:
        saver.fails = 1
        await leaves(log, saver).ainvoke(INPUT, CONFIG)
        assert sorted(chain(*saver.groups)) == ["0.1", "0.2", "0.3"]


async def test_a_run_that_cannot_be_saved_says_so(log: Log, tmp_path: Path) -> None:
    async with SlowSaver.at(tmp_path / "db") as saver:
        saver.fails = 100
        with pytest.raises(OSError, match="disk full"):
            await leaves(log, saver).ainvoke(INPUT, CONFIG)
        # What it has to say is in no database.
        saver.fails = 0
        before = log.lines()
        await leaves(log, saver).ainvoke(None, CONFIG)
        assert sorted(log.lines()[len(before) :]) == [
            "called 0.1/0", "called 0.2/0", "called 0.3/0", "called 0/1",
        ]  # fmt: skip


async def test_a_run_from_an_earlier_checkpoint_runs_its_threads_again(
    log: Log, tmp_path: Path
) -> None:
    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "db")) as saver:
        agent = leaves(log, saver)
        await agent.ainvoke(INPUT, CONFIG)
        spawned = [at async for at in agent.aget_state_history(CONFIG) if at.next == ("threads",)]
        before = log.lines()
        await agent.ainvoke(None, spawned[0].config)
        assert sorted(log.lines()[len(before) :]) == [
            "called 0.1/0", "called 0.2/0", "called 0.3/0", "called 0/1",
        ]  # fmt: skip


async def test_conversations_that_run_at_once_do_not_mix(log: Log, tmp_path: Path) -> None:
    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "db")) as saver:
        agent = leaves(log, saver)
        talks = [{"configurable": {"thread_id": str(number)}} for number in range(4)]
        await asyncio.gather(*(agent.ainvoke(INPUT, talk) for talk in talks))
        assert log.after("called") == sorted(["0/0", "0.1/0", "0.2/0", "0.3/0", "0/1"] * 4)


async def test_sync_code_may_use_a_saver_of_another_event_loop(log: Log, tmp_path: Path) -> None:
    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "db")) as saver:
        output = await asyncio.to_thread(leaves(log, saver).invoke, INPUT, CONFIG)
        assert output["messages"][-1].text == "found [0.1] found a\n[0.2] found b\n[0.3] found c"
