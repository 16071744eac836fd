"""The events of a run, live and out of its record."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from apr_agents.graph.build import create_parallel_agent
from apr_agents.trace.events import Event
from apr_agents.trace.replay import replay
from apr_agents.trace.trajectory import MEASURED, Trajectory


def by_thread(events: list[Event]) -> dict[str, list[dict[str, Any]]]:
    """What each thread told, without times; the pieces of a text as one."""
    threads: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        told = {key: value for key, value in event.items() if key not in MEASURED}
        threads.setdefault(event["id"], []).append(told)
    return {thread: [*_joined(told)] for thread, told in threads.items()}


def _joined(told: list[dict[str, Any]]) -> Any:
    for kind, group in groupby(told, key=lambda event: event["type"]):
        events = list(group)
        if kind == "token":
            text = "".join(event["text"] for event in events)
            yield {**events[0], "text": text, "tokens": sum(event["tokens"] for event in events)}
        elif kind in ("tool", "returned"):  # several tools run at the same time
            yield from sorted(events, key=lambda event: event["call"])
        else:
            yield from events


@pytest.mark.parametrize("saved", [False, True], ids=["", "saved"])
async def test_a_record_tells_the_events_of_its_run(nested: Any, saved: bool) -> None:
    record, events = await nested(saver=InMemorySaver() if saved else None)
    told = by_thread(events)
    assert by_thread(replay(record)) == told
    assert {event["type"] for event in events} == {
        "started", "admitted", "token", "tool", "returned", "spawned", "merged", "finished"
    }  # fmt: skip
    assert [told[thread][-1]["status"] for thread in ("0", "0.2", "0.3")] == [
        "done", "done", "failed"
    ]  # fmt: skip
    assert told["0.3"][-1]["reason"] == "OSError: line\nbroke"


async def test_of_a_text_run_it_tells_what_was_kept_of_the_texts(
    scripted: Any, outlines: Any
) -> None:
    backend = scripted({
        "0/0": "Hm.\n" + outlines("a", "b"),
        "0.*/0": " 4</Thread>",
        "0/2": " <Parallel>\n<Outlines>\n</Outlines>",
        "0/4": "\n</think>8",
    })  # fmt: skip
    stream = create_parallel_agent(backend).astream(
        {"messages": [("user", "Q")]}, stream_mode=["custom", "values"]
    )
    parts = [part async for part in stream]
    events = [data for mode, data in parts if mode == "custom"]
    record = Trajectory.model_validate(parts[-1][1]["trajectory"])
    told, kept = by_thread(events), by_thread(replay(record))
    assert [event["type"] for event in told["0"]] == [
        "started", "admitted", "token", "spawned", "merged", "admitted", "token", "malformed",
        "admitted", "token", "finished",
    ]  # fmt: skip
    texts = [(event.pop("text"), kept[thread][i].pop("text")) for thread in told for i, event in
             enumerate(told[thread]) if event["type"] == "token"]  # fmt: skip
    assert (" 4</Thread>", " 4") in texts
    assert all(live.startswith(text) for live, text in texts)
    assert kept == told


@pytest.mark.parametrize("saved", [False, True], ids=["", "saved"])
async def test_times_never_go_back(nested: Any, saved: bool) -> None:
    record, events = await nested(saver=InMemorySaver() if saved else None)
    for told in (events, replay(record)):
        for thread in record.threads():
            times = [event["at"] for event in told if event["id"] == thread]
            assert times == sorted(times)
            assert min(times) >= 0
    assert record.began is not None


async def test_live_and_in_the_record_things_happened_at_the_same_time(nested: Any) -> None:
    """But for pieces of texts, and a tool that starts a moment after it was asked for."""

    def times(told: list[Event]) -> list[tuple[str, str, float]]:
        return sorted(
            (event["id"], event["type"], event["at"])
            for event in told
            if event["type"] not in ("token", "tool")
        )

    record, events = await nested()
    assert times(replay(record)) == times(events)


async def test_children_live_while_their_parent_waits(run: Trajectory) -> None:
    for thread in run.root.walk():
        for block in thread.blocks:
            assert thread.started <= block.started <= block.ended <= thread.ended
            for child in block.threads:
                assert block.started <= child.started <= child.ended <= block.ended


def test_a_record_without_times_tells_thread_by_thread() -> None:
    record = Trajectory.load(Path(__file__).parent / "version_1.json")
    told = [(event["id"], event["type"]) for event in replay(record)]
    assert told == [
        ("0", "started"), ("0", "token"), ("0", "tool"), ("0", "returned"), ("0", "spawned"),
        ("0.1", "started"), ("0.1", "token"), ("0.1", "finished"),
        ("0.2", "started"), ("0.2", "token"), ("0.2", "finished"),
        ("0", "merged"), ("0", "declined"), ("0", "token"), ("0", "backtracked"), ("0", "token"),
        ("0", "finished"),
    ]  # fmt: skip
