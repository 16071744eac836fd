"""What ran when, in seconds and in tokens."""

from __future__ import annotations

from hypothesis import given, settings

from apr_agents.trace.metrics import measure
from apr_agents.trace.timeline import Bar, timeline
from apr_agents.types import Generated, ThreadResult, ToolCall, ToolUse
from tests.trace.runs import block, call, roots, thread


def drawn(bars: list[Bar]) -> list[tuple[object, ...]]:
    return [(bar.thread.id, bar.step, bar.activity, bar.start, bar.end) for bar in bars]


def nested() -> ThreadResult:
    return thread(
        "0",
        [
            call(10),
            block(
                thread("0.1", [call(5), block(thread("0.1.1", [call(7)])), call(2)]),
                thread("0.2", [call(9)]),
            ),
            call(1),
        ],
    )


def test_in_tokens_a_run_ends_at_its_critical_path() -> None:
    assert drawn(timeline(nested(), "tokens")) == [
        ("0", None, "thread", 0, 25),
        ("0", 0, "writing", 0, 10),
        ("0", 1, "waiting", 10, 24),
        ("0", 2, "writing", 24, 25),
        ("0.1", None, "thread", 10, 24),
        ("0.1", 0, "writing", 10, 15),
        ("0.1", 1, "waiting", 15, 22),
        ("0.1", 2, "writing", 22, 24),
        ("0.1.1", None, "thread", 15, 22),
        ("0.1.1", 0, "writing", 15, 22),
        ("0.2", None, "thread", 10, 19),
        ("0.2", 0, "writing", 10, 19),
    ]


def test_the_critical_path_leads_through_the_longest_thread_of_each_block() -> None:
    critical = {bar.thread.id for bar in timeline(nested(), "tokens") if bar.critical}
    assert critical == {"0", "0.1", "0.1.1"}
    assert critical == {bar.thread.id for bar in timeline(nested(), "seconds") if bar.critical}


@settings(max_examples=50)
@given(roots)
def test_the_critical_bars_follow_each_other_and_have_the_tokens_of_the_metric(
    root: ThreadResult,
) -> None:
    bars = timeline(root, "tokens")
    path = measure(root).critical_path
    writing = sorted(
        (bar.start, bar.end) for bar in bars if bar.critical and bar.activity == "writing"
    )
    assert [start for start, _ in writing] == [0, *(end for _, end in writing)][: len(writing)]
    assert sum(end - start for start, end in writing) == path == bars[0].end
    assert max(bar.end for bar in bars) == path
    lives = [bar.thread.id for bar in bars if bar.activity == "thread"]
    assert sorted(lives) == sorted(each.id for each in root.walk())


def test_in_seconds_a_call_waits_reads_and_writes() -> None:
    root = thread("0", [call(3, started=1.0, waited=0.5, first_token=0.25, seconds=2.0)])
    assert drawn(timeline(root, "seconds")) == [
        ("0", None, "thread", 0.0, 3.0),
        ("0", 0, "gate", 1.0, 1.5),
        ("0", 0, "prompt", 1.5, 1.75),
        ("0", 0, "writing", 1.75, 3.0),
    ]


def test_a_call_that_the_gate_never_let_through_only_waited() -> None:
    root = thread("0", [call(0, started=1.0, waited=2.0, seconds=2.0)])
    assert drawn(timeline(root, "seconds"))[1:] == [("0", 0, "gate", 1.0, 3.0)]


def test_tools_and_threads_run_while_their_thread_waits() -> None:
    use = ToolUse(call=ToolCall("a", "look_up", {}), text="", started=1.0, seconds=3.0)
    child = thread("0.1", [call(2, started=1.5, seconds=1.0)], started=1.25)
    root = thread("0", [call(1, seconds=1.0), use, block(child, started=1.0, seconds=2.0)])
    assert drawn(timeline(root, "seconds")) == [
        ("0", None, "thread", 0.0, 4.0),
        ("0", 0, "prompt", 0.0, 1.0),
        ("0", 1, "tool", 1.0, 4.0),
        ("0", 2, "waiting", 1.0, 3.0),
        ("0.1", None, "thread", 1.25, 2.5),
        ("0.1", 0, "prompt", 1.5, 2.5),
    ]
    assert isinstance(root.steps[0], Generated)
