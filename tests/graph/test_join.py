"""How many results a parent waits for, and what becomes of the threads it no longer needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt

from apr_agents.backends.base import Request
from apr_agents.backends.scripted import Reply, ScriptedBackend
from apr_agents.errors import InvalidOption
from apr_agents.graph.build import create_parallel_agent
from apr_agents.graph.join import (
    MOST_BLOCKS,
    NOT_NEEDED,
    All,
    FirstSuccess,
    JoinPolicy,
    KOfN,
    Races,
    Vote,
    resolve_join,
)
from apr_agents.graph.merge import LONGEST_REASON, Conclusions, Reduction
from apr_agents.graph.state import Thread
from apr_agents.limits import Allowance, Limits
from apr_agents.trace.trajectory import Trajectory
from apr_agents.types import LANE, Outline, ThreadResult
from tests.graph.chat_script import Says, Sleep, by_thread, call, calls, spawn

MODES = pytest.mark.parametrize("mode", ["async", "sync", "async saved", "sync saved"])
END = "\n</Parallel>\n</think>\n4"
HANGS = Says(hangs=True)


async def run(model: Any, tools: Any = (), *, mode: str = "async", **options: Any) -> Trajectory:
    """One run, in one of the ways to run an agent."""
    saver = InMemorySaver() if "saved" in mode else None
    agent = create_parallel_agent(model, tools, checkpointer=saver, **options)
    asked: Any = {"messages": [("user", "Q")]}, {"configurable": {"thread_id": "1"}}
    sync = mode.startswith("sync")
    output = await (asyncio.to_thread(agent.invoke, *asked) if sync else agent.ainvoke(*asked))
    return Trajectory.model_validate(output["trajectory"])


def statuses(run: Trajectory, id: str = "0") -> list[str]:
    return [thread.status for thread in run.threads()[id].blocks[0].threads]


# --- the policies ---------------------------------------------------------------------------


@MODES
async def test_all_waits_for_every_thread(chat: Any, mode: str) -> None:
    replies = {"0/0": spawn("a", "b"), "0.1/0": "1", "0.2/0": "2", "0/1": "4"}
    model = chat(by_thread({**replies, "0.1/0": Says("1", when=lambda: "0.2" in model.ended)}))
    record = await run(model, mode=mode)
    assert statuses(record) == ["done", "done"]
    assert record.root.blocks[0].policy == "all"
    assert record.answer == "4"


@MODES
async def test_the_first_success_ends_the_block(chat: Any, mode: str) -> None:
    replies = {
        "0/0": spawn("a", "b", "c"),
        "0.1/0": HANGS,
        "0.2/0": Says("yes", when=lambda: model.in_flight == 3),
        "0.3/0": HANGS,
        "0/1": "4",
    }
    model = chat(by_thread(replies))
    record = await run(model, mode=mode, join="first_success")
    assert statuses(record) == ["cancelled", "done", "cancelled"]
    assert {t.reason for t in record.root.blocks[0].threads} == {None, NOT_NEEDED}
    assert record.root.blocks[0].joined == "[2] success of thread 0.2: yes"
    assert sorted(model.cancelled) == ["0.1", "0.3"]
    assert record.answer == "4"


async def test_the_first_success_ends_a_block_of_a_text_model(scripted: Any, outlines: Any) -> None:
    backend = scripted(
        {
            "0/0": outlines("a", "b"),
            "0.1/0": Reply(" half", hangs=True),
            "0.2/0": " yes</Thread>",
            "0/2": END,
        }
    )
    record = await run(backend, join="first_success")
    loser, _ = record.root.blocks[0].threads
    assert (loser.status, loser.transcript) == ("cancelled", " half")
    assert record.root.blocks[0].joined == ("\n<Thread>\n2: success of thread 0.2: yes</Thread>")
    assert backend.in_flight == 0


@pytest.mark.parametrize("asked_by", ["agent", "model"])
async def test_a_success_is_what_the_predicate_accepts(chat: Any, asked_by: str) -> None:
    def accept(result: ThreadResult) -> bool:
        return bool(int(result.conclusion) > 2)

    more = {"join": "first_success"} if asked_by == "model" else {}
    replies = {
        "0/0": spawn("a", "b", "c", "d", **more),
        "0.1/0": "1",
        "0.2/0": Says("none", when=lambda: "0.1" in model.ended),
        "0.3/0": Says("3", when=lambda: {"0.1", "0.2"} <= {*model.ended}),
        "0.4/0": HANGS,
        "0/1": "4",
    }
    model = chat(by_thread(replies))
    record = await run(model, join=FirstSuccess(accept))
    # The predicate raised on the second.
    assert statuses(record) == ["done", "done", "done", "cancelled"]
    assert record.root.blocks[0].joined == "[1] success of thread 0.3: 3"


async def test_without_a_success_every_result_is_shown(chat: Any) -> None:
    def never(result: ThreadResult) -> bool:
        raise RuntimeError

    replies = {
        "0/0": spawn("a", "b"),
        "0.1/0": "1",
        "0.2/0": Says(fails=OSError("gone")),
        "0/1": "4",
    }
    record = await run(chat(by_thread(replies)), join=FirstSuccess(never))
    assert record.root.blocks[0].joined == "[0.1] 1\n[0.2] (failed: OSError: gone)"


@MODES
async def test_k_of_n_waits_for_k_that_are_done(chat: Any, mode: str) -> None:
    replies = {
        "0/0": spawn("a", "b", "c", "d", join="k_of_n", k=2),
        "0.1/0": "1",
        "0.2/0": Says(fails=OSError("gone")),
        "0.3/0": Says("3", when=lambda: {"0.1", "0.2"} <= {*model.ended} and model.in_flight == 2),
        "0.4/0": HANGS,
        "0/1": "4",
    }
    model = chat(by_thread(replies))
    record = await run(model, mode=mode)
    assert statuses(record) == ["done", "failed", "done", "cancelled"]
    assert record.root.blocks[0].policy == "2_of_n"
    assert record.root.blocks[0].joined == (
        f"[0.1] 1\n[0.2] (failed: OSError: gone)\n[0.3] 3\n[0.4] (cancelled: {NOT_NEEDED})"
    )


@MODES
async def test_a_vote_ends_when_no_other_answer_can_overtake(chat: Any, mode: str) -> None:
    done: Callable[[int], Callable[[], bool]] = lambda n: lambda: len(model.ended) >= n + 1  # noqa: E731
    replies = {
        "0/0": spawn(*"abcde"),
        "0.1/0": Says(" Seven", when=done(0)),
        "0.2/0": Says("8", when=done(1)),
        "0.3/0": Says("SEVEN ", when=done(2)),
        "0.4/0": Says("seven", when=lambda: done(3)() and model.in_flight == 2),
        "0.5/0": HANGS,
        "0/1": "4",
    }
    model = chat(by_thread(replies))
    record = await run(model, mode=mode, join="vote")
    assert statuses(record) == ["done"] * 4 + ["cancelled"]
    assert record.root.blocks[0].joined == "[1] vote of 4 threads: 3 × Seven; 1 × 8"


async def test_a_ballot_says_what_is_counted_and_may_raise(chat: Any) -> None:
    def ballot(conclusion: str) -> str:
        return str(int(conclusion) % 10)

    replies = {"0/0": spawn(*"abc"), "0.1/0": "17", "0.2/0": "none", "0.3/0": "27", "0/1": "4"}
    record = await run(chat(by_thread(replies)), join=Vote(ballot))
    assert record.root.blocks[0].joined == "[1] vote of 2 threads: 2 × 17"


@pytest.mark.parametrize(
    ("asked", "policy"),
    [
        ({}, "first_success"),
        ({"join": "all"}, "all"),
        ({"join": "vote"}, "vote"),
        ({"join": "k_of_n", "k": 3}, "3_of_n"),
        ({"join": "k_of_n", "k": 10**9}, "first_success"),
        ({"join": "quorum"}, "first_success"),
    ],
)
async def test_the_model_chooses_and_what_is_unknown_falls_back(
    chat: Any, asked: dict[str, Any], policy: str
) -> None:
    replies = {"0/0": spawn("a", "b", **asked), "0.*/0": "1", "0/1": "4"}
    record = await run(chat(by_thread(replies)), join="first_success")
    assert record.root.blocks[0].policy == policy
    assert record.answer == "4"


class Broken(JoinPolicy):
    """Raises in whatever it is asked."""

    name = "broken"

    def settled(self, finished: Any, threads: int) -> bool:
        raise ValueError(f"no\nidea of {len(finished)}")

    def verdict(self, results: Any) -> str | None:
        raise LookupError(results)


@MODES
async def test_a_policy_that_raises_decides_nothing_and_is_noted(chat: Any, mode: str) -> None:
    replies = {"0/0": spawn("a", "b"), "0.1/0": "1", "0.2/0": "2", "0/1": "4"}
    record = await run(chat(by_thread(replies)), mode=mode, join=Broken())
    assert statuses(record) == ["done", "done"]
    assert record.root.blocks[0].joined == "[0.1] 1\n[0.2] 2"
    assert record.answer == "4"
    settled, verdict = (step for step in record.root.steps if step.kind == "note")
    assert (settled.event, settled.context) == ("undecided", "")
    assert settled.why == "the join policy broken raised ValueError: no idea of 2"
    assert verdict.why.startswith("the join policy broken raised LookupError: [ThreadResult(")
    assert len(verdict.why) == LONGEST_REASON


@pytest.mark.parametrize("merge", ["show", "reduce"])
async def test_a_merge_policy_that_raises_leaves_the_conclusions(chat: Any, merge: str) -> None:
    def fails(*_: Any) -> Any:
        raise OSError("gone")

    policy = Reduction("mine", fails)
    if merge == "show":
        policy = type("Mine", (Conclusions,), {"show": fails})("mine")
    replies = {"0/0": spawn("a", "b"), "0.1/0": "1", "0.2/0": "2", "0/1": "4"}
    record = await run(chat(by_thread(replies)), merge=policy)
    assert record.root.blocks[0].joined == "[0.1] 1\n[0.2] 2"
    [note] = [step for step in record.root.steps if step.kind == "note"]
    assert note.why == "the merge policy mine raised OSError: gone"
    assert record.answer == "4"


# --- losers -----------------------------------------------------------------------------------


@MODES
async def test_losers_end_at_once_with_their_threads_and_tools(chat: Any, mode: str) -> None:
    def are_all_busy() -> bool:
        return model.in_flight == 4 and sleep.running == 2

    async def race() -> float:
        """Seconds from the success to the end of the last loser."""
        nonlocal model, sleep
        sleep = Sleep()
        replies = {
            "0/0": spawn("a", "b", "c", "d", join="first_success"),
            "0.1/0": HANGS,
            "0.2/0": spawn("e", "f", text="Let me split."),
            "0.2.*/0": HANGS,
            "0.3/0": calls(call("sleep", "1"), call("sleep", "2")),
            "0.4/0": Says("yes", when=are_all_busy),
            "0/1": "4",
        }
        model = chat(by_thread(replies))
        record = await run(model, [sleep.tool], mode=mode)
        assert statuses(record) == ["cancelled", "cancelled", "cancelled", "done"]
        assert statuses(record, "0.2") == ["cancelled", "cancelled"]
        assert record.threads()["0.2"].steps[0].text == "Let me split."
        used = [step for step in record.threads()["0.3"].steps if step.kind == "tool"]
        assert [use.text for use in used] == [f"It was stopped: {NOT_NEEDED}."] * 2
        assert record.answer == "4"
        assert sorted({*model.cancelled} & {"0.1", "0.2.1", "0.2.2"}) == ["0.1", "0.2.1", "0.2.2"]
        losers = [model.ended[loser] for loser in ("0.1", "0.2.1", "0.2.2")]
        return max(*losers, *sleep.stopped) - model.ended["0.4"]

    model: Any = None
    sleep = Sleep()
    for _ in range(3):  # a machine that is busy may be late, but not each time
        if (late := await race()) <= 0.1:
            return
    pytest.fail(f"the losers ended {late:.3f} s after the success")


async def test_a_loser_that_waits_for_its_turn_never_calls_the_model(chat: Any) -> None:
    replies = {"0/0": spawn("a", "b", "c", join="first_success"), "0.1/0": "yes", "0/1": "4"}
    model = chat(by_thread(replies))
    record = await run(model, limits=Limits(max_concurrency=1))
    assert statuses(record) == ["done", "cancelled", "cancelled"]
    assert [asked.thread for asked in model.asked] == ["0", "0.1", "0"]


async def test_what_a_loser_had_finished_is_kept(chat: Any) -> None:
    replies = {
        "0/0": spawn("a", "b", join="first_success"),
        "0.1/0": spawn("c", "d", text="Two parts."),
        "0.1.1/0": "found",
        "0.1.2/0": HANGS,
        "0.2/0": Says("yes", when=lambda: "0.1.1" in model.ended and model.in_flight == 2),
        "0/1": "4",
    }
    model = chat(by_thread(replies))
    record = await run(model)
    assert record.threads()["0.1.1"].conclusion == "found"
    assert statuses(record, "0.1") == ["done", "cancelled"]
    assert "[0.1.1] found" in record.threads()["0.1"].transcript


async def test_the_same_parent_may_race_again(chat: Any) -> None:
    replies = {
        "0/0": spawn("a", "b", join="first_success"),
        "0.1/0": Says("1", when=lambda: model.in_flight == 2),
        "0.2/0": HANGS,
        "0/1": spawn("c", "d", join="first_success"),
        "0.3/0": HANGS,
        "0.4/0": Says("2", when=lambda: model.in_flight == 2),
        "0/2": "4",
    }
    model = chat(by_thread(replies))
    record = await run(model)
    assert [[t.status for t in block.threads] for block in record.root.blocks] == [
        ["done", "cancelled"],
        ["cancelled", "done"],
    ]


async def test_the_races_of_many_runs_do_not_mix() -> None:
    def script(request: Request) -> Reply | str:
        if request.key == "0/0":
            return "<Outlines><Outline>1: a</Outline><Outline>2: b</Outline></Outlines>"
        if "." in request.key:
            who = request.prompt.split()[0]
            wins = request.key.startswith(f"0.{who}")
            return Reply(" yes</Thread>") if wins else Reply(" half", hangs=True)
        return END

    agent = create_parallel_agent(ScriptedBackend(script), join="first_success")
    asked = [{"messages": [("user", who)]} for who in "12" * 10]
    outputs = await asyncio.gather(*(agent.ainvoke(each) for each in asked))
    for who, output in zip("12" * 10, outputs, strict=True):
        winner, loser = (0, 1) if who == "1" else (1, 0)
        found = statuses(Trajectory.model_validate(output["trajectory"]))
        assert (found[winner], found[loser]) == ("done", "cancelled")


async def test_a_loser_that_had_asked_a_human_ends_when_the_run_goes_on(chat: Any) -> None:
    asked: list[str] = []

    @tool
    def ask_human(what: str) -> str:
        """Ask a human."""
        asked.append(what)
        return str(interrupt(what))

    replies = {
        "0/0": spawn("a", "b", join="first_success"),
        "0.1/0": calls(call("ask_human", what="May I?")),
        "0.2/0": Says("yes", when=lambda: bool(asked)),
        "0/1": "4",
    }
    for answer in (None, Command(resume="You may.")):
        asked.clear()
        model = chat(by_thread(replies))
        agent = create_parallel_agent(model, [ask_human], checkpointer=InMemorySaver())
        config: Any = {"configurable": {"thread_id": "1"}}
        output = await agent.ainvoke({"messages": [("user", "Q")]}, config)
        assert [each.value for each in output["__interrupt__"]] == ["May I?"]
        output = await agent.ainvoke(answer, config)
        record = Trajectory.model_validate(output["trajectory"])
        assert statuses(record) == ["cancelled", "done"]
        assert (record.answer, asked) == ("4", ["May I?"])


# --- lanes ------------------------------------------------------------------------------------


@MODES
async def test_a_lane_neither_decides_nor_loses(chat: Any, mode: str) -> None:
    replies = {
        "0/0": spawn("a", "b", join="first_success"),
        "0.1/0": HANGS,
        "0.2/0": Says("yes", when=lambda: "0.3.2" in model.ended and model.in_flight == 3),
        "0.3/0": spawn("c", text="Mine first."),
        "0.3.1/0": Says("found", when=lambda: "0.1" in model.cancelled),
        "0.3.2/0": "nothing more",
        "0.3/1": "Mine.",
        "0/1": "4",
    }
    model = chat(by_thread(replies))
    record = await run(model, mode=mode, parent_lane=True)
    assert statuses(record) == ["cancelled", "done", "done"]
    assert statuses(record, "0.3") == ["done", "done"]
    joined = record.root.blocks[0].joined
    assert joined.startswith("[2] success of thread 0.2: yes\n[0.3] Mine first.")
    assert joined.endswith("Mine.")


# --- settled and verdict ------------------------------------------------------------------------


def result(number: int, conclusion: str | None) -> ThreadResult:
    """A thread's result; without a conclusion it failed."""
    return ThreadResult(
        id=f"0.{number}",
        outline=Outline(str(number), "a"),
        status="failed" if conclusion is None else "done",
        reason="gone" if conclusion is None else None,
        conclusion=conclusion or "",
        tokens=1,
        seconds=0.0,
        steps=[],
    )


def arrivals(policy: JoinPolicy, results: list[ThreadResult]) -> int:
    """How many of these results, one after the other, settle the block."""
    return next(n for n in range(1, len(results) + 1) if policy.settled(results[:n], len(results)))


said = st.none() | st.sampled_from(["a", "b", " A ", "c"])
blocks = st.lists(said, min_size=1, max_size=7).flatmap(
    lambda texts: st.permutations([result(i, text) for i, text in enumerate(texts, 1)])
)


@given(results=blocks)
def test_a_vote_that_ends_early_has_the_winner_of_all_votes(results: list[ThreadResult]) -> None:
    def leader(results: list[ThreadResult]) -> str | None:
        verdict = Vote().verdict(sorted(results, key=lambda result: result.id))
        return verdict and verdict.partition(" × ")[2].partition(";")[0].strip().casefold()

    settled = arrivals(Vote(), results)
    assert leader(results[:settled]) == leader(results)
    assert all(Vote().settled(results[:n], len(results)) for n in range(settled, len(results) + 1))
    if settled < len(results):
        # However the others had voted.
        for other in ("a", "b", "c", None):
            rest = [result(i, other) for i in range(100, 100 + len(results) - settled)]
            assert leader([*results[:settled], *rest]) == leader(results)


def test_a_vote_is_not_settled_while_a_tie_is_possible() -> None:
    votes = [result(1, "a"), result(2, "a"), result(3, "b")]
    assert not Vote().settled(votes, 4)
    assert Vote().settled(votes, 3)
    assert Vote().settled([*votes, result(4, "a")], 5)
    assert Vote().verdict([result(1, None)]) is None


@given(results=blocks)
def test_the_first_success_settles_and_nothing_before(results: list[ThreadResult]) -> None:
    def accept(result: ThreadResult) -> bool:
        return result.conclusion == "b"

    policy = FirstSuccess(accept)
    wins = [n for n, each in enumerate(results, 1) if each.conclusion == "b"]
    settled = arrivals(policy, results)
    assert settled == (wins[0] if wins else len(results))
    verdict = policy.verdict(results[:settled])
    assert verdict == (f"success of thread {results[settled - 1].id}: b" if wins else None)


@given(results=blocks, k=st.integers(1, 9))
def test_k_of_n_settles_with_the_kth_that_is_done(results: list[ThreadResult], k: int) -> None:
    settled = arrivals(KOfN(k), results)
    done = sum(each.status == "done" for each in results[:settled])
    assert done == k or settled == len(results)
    assert done <= k
    assert arrivals(All(), results) == len(results)


# --- races by themselves -----------------------------------------------------------------------


def thread(id: str, outline: Outline | None = None, run: str = "r") -> Thread:
    outline = outline or Outline("1", "a")
    return Thread(run=run, id=id, outline=outline, base="", allowance=Allowance.of(Limits()))


def test_a_result_that_is_told_again_counts_once() -> None:
    races = Races()
    for _ in range(3):  # as after a restart
        races.finished("r", result(1, "a"), Vote(), 3)
    assert not races.lost("r", "0.2")
    races.finished("r", result(3, "a"), Vote(), 3)
    assert races.lost("r", "0.2")
    assert races.lost("r", "0.2.7.1")
    assert not races.lost("r", "0.3.1")
    assert not races.lost("r", "0.1")
    assert not races.lost("another", "0.2")


def test_a_block_that_is_joined_is_forgotten() -> None:
    races = Races()
    races.finished("r", result(1, "a"), FirstSuccess(), 3)
    assert races.lost("r", "0.2")
    races.joined(thread("0"))
    assert not races.lost("r", "0.2")


async def test_blocks_of_runs_that_broke_off_are_forgotten_in_the_end() -> None:
    races = Races()
    for i in range(MOST_BLOCKS + 1):
        races.finished(str(i), result(1, "a"), FirstSuccess(), 3)
    assert not races.lost("0", "0.2")
    assert races.lost("1", "0.2")
    assert races.lost(str(MOST_BLOCKS), "0.2")


async def test_what_starts_in_a_race_that_is_lost_ends_at_once() -> None:
    races = Races()
    races.finished("r", result(1, "a"), FirstSuccess(), 3)
    for loser in (thread("0.2"), thread("0.2.1")):
        with suppress(TimeoutError):
            async with asyncio.timeout(30) as deadline:
                with races.running(loser, deadline):
                    await asyncio.sleep(10)
        assert deadline.expired()
    async with asyncio.timeout(30) as deadline:
        with races.running(thread("0.3", Outline(LANE, "the lane")), deadline):
            await asyncio.sleep(0)
    assert not deadline.expired()


@pytest.mark.parametrize("name", ["all", "first_success", "vote", "1_of_n", "999999_of_n"])
def test_policies_are_found_by_name(name: str) -> None:
    assert resolve_join(name).name == name


@pytest.mark.parametrize("name", ["", "some", "0_of_n", "k_of_n", "1_of_n ", "-1_of_n"])
def test_a_name_without_a_policy_is_refused(name: str) -> None:
    with pytest.raises(InvalidOption, match="join is"):
        resolve_join(name)
    with pytest.raises(InvalidOption, match="k is 0"):
        KOfN(0)


def test_every_order_of_a_small_vote_is_settled_alike() -> None:
    votes = [result(1, "a"), result(2, "a"), result(3, "b")]
    verdicts = {Vote().verdict(sorted(order, key=lambda r: r.id)) for order in permutations(votes)}
    assert verdicts == {"vote of 3 threads: 2 × a; 1 × b"}
