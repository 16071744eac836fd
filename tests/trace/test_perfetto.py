"""A run as Chrome trace events."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings

from apr_agents.trace.perfetto import perfetto
from apr_agents.trace.trajectory import Trajectory
from tests.trace.runs import roots, trajectory

NEEDED = {
    "M": {"name", "ph", "pid", "tid", "args"},
    "X": {"name", "cat", "ph", "pid", "tid", "ts", "dur", "args"},
    "b": {"name", "cat", "ph", "pid", "tid", "ts", "id", "args"},
    "e": {"name", "cat", "ph", "pid", "tid", "ts", "id"},
    "s": {"name", "cat", "ph", "pid", "tid", "ts", "id"},
    "f": {"name", "cat", "ph", "pid", "tid", "ts", "id", "bp"},
}
"""By phase, the fields that the format wants."""

Slices = dict[int, list[tuple[int, int, str]]]


def checked(document: str) -> list[dict[str, Any]]:
    """The events, of which none breaks the rules of the format."""
    data = json.loads(document)
    assert set(data) == {"traceEvents", "displayTimeUnit"}
    events: list[dict[str, Any]] = data["traceEvents"]
    for event in events:
        assert NEEDED[event["ph"]] <= set(event)
        assert event.get("ts", 0) >= 0
        assert event.get("dur", 0) >= 0
    slices = tracks(events)
    for each in slices.values():
        assert_nested(each)
    for begins, ends in (("b", "e"), ("s", "f")):
        first = {event["id"]: event for event in events if event["ph"] == begins}
        last = {event["id"]: event for event in events if event["ph"] == ends}
        assert first.keys() == last.keys()
        assert all(first[key]["ts"] <= last[key]["ts"] for key in first)
    return events


def tracks(events: list[dict[str, Any]]) -> Slices:
    """The slices of each track, in nanoseconds."""
    slices: Slices = {}
    for event in events:
        if event["ph"] == "X":
            start, length = round(event["ts"] * 1000), round(event["dur"] * 1000)
            slices.setdefault(event["tid"], []).append((start, start + length, event["name"]))
    return slices


def assert_nested(slices: list[tuple[int, int, str]]) -> None:
    """Two slices of a track are apart, or one is within the other."""
    open_until: list[int] = []
    for start, end, _ in sorted(slices, key=lambda each: (each[0], -each[1])):
        while open_until and open_until[-1] <= start:
            open_until.pop()
        assert not open_until or end <= open_until[-1]
        open_until.append(end)


async def test_a_nested_run_has_a_track_for_each_thread(run: Trajectory) -> None:
    events = checked(perfetto(run, "seconds"))
    names = {
        event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"
    }
    assert list(names.values()) == ["0", "0.1 a", "0.2 b", "0.2.1 d", "0.2.2 e", "0.3 c"]
    slices = tracks(events)
    assert slices.keys() == names.keys()
    for track, name in names.items():
        thread = run.threads()[name.partition(" ")[0]]
        (life,) = [each for each in slices[track] if each[2] == f"thread {thread.id}"]
        assert life[:2] == (round(thread.started * 1e9), round(thread.ended * 1e9))
        writes = [each for each in slices[track] if each[2] == "writing"]
        assert all(life[0] <= start <= end <= life[1] for start, end, _ in writes)
    tools = [event["name"] for event in events if event["ph"] == "b"]
    assert tools == ["look_up"] * 3


async def test_arrows_lead_from_slice_to_slice(run: Trajectory) -> None:
    events = checked(perfetto(run, "seconds"))
    arrows = [event for event in events if event["ph"] in "sf"]
    assert len(arrows) == 4 * 5  # to each of five threads and back
    slices = tracks(events)
    for event in arrows:
        at = round(event["ts"] * 1000)
        assert any(start <= at < end for start, end, _ in slices[event["tid"]])
    ends = {(event["id"], event["ph"]): event["tid"] for event in arrows}
    assert ends["spawn 0.2.1", "f"] == ends["join 0.2.1", "s"]
    assert ends["spawn 0.2.1", "s"] == ends["join 0.2.1", "f"] == ends["spawn 0.2", "f"]


async def test_model_text_is_data(run: Trajectory) -> None:
    document = perfetto(run, "seconds")
    assert document.isascii()
    texts = [event["args"].get("text") for event in checked(document) if "args" in event]
    assert "found a <script>alert(1)</script>" in texts


@settings(max_examples=50)
@given(roots.map(trajectory))
def test_in_tokens_any_run_keeps_the_rules(run: Trajectory) -> None:
    events = checked(perfetto(run, "tokens"))
    assert sum(event["name"] == "thread_name" for event in events) == len(run.threads())
    ends = [event["ts"] + event["dur"] for event in events if event["ph"] == "X"]
    assert max(ends) == run.metrics().critical_path * 1000
