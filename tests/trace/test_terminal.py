"""The tree of threads in a terminal."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from apr_agents.trace.events import Event
from apr_agents.trace.terminal import MOST_ROWS, LiveThreads, ThreadTree, printable, shortened
from apr_agents.trace.trajectory import Trajectory
from apr_agents.types import Block, Call, Note, Outline, ThreadResult

HOSTILE = "\x1b[2J\x1b]0;title\x07[bold red]x[/] \u202eback\u200b wards\r\n\ud800"

SPLIT: list[Event] = [
    {"type": "started", "id": "0", "text": ""},
    {"type": "token", "id": "0", "text": "let me split", "tokens": 3},
    {"type": "spawned", "id": "0", "threads": ["0.1", "0.2"]},
    {"type": "started", "id": "0.1", "text": "12*7"},
    {"type": "started", "id": "0.2", "text": "45-38"},
    {"type": "token", "id": "0.1", "text": "12*7=", "tokens": 4},
    {"type": "finished", "id": "0.2", "status": "done", "text": "45-38=7", "tokens": 9},
]


def drawn(renderable: object, *, width: int = 80, height: int = 24) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True,
                      color_system=None)  # fmt: skip
    console.print(renderable)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def fed(events: list[Event]) -> ThreadTree:
    tree = ThreadTree()
    for event in events:
        tree.feed(event)
    return tree


def leaf(name: str, *, status: str = "done", reason: str | None = None) -> ThreadResult:
    return ThreadResult(
        id=name,
        outline=Outline(name.rpartition(".")[2], f"part {name}"),
        status=status,
        reason=reason,
        conclusion=f"result of {name}",
        tokens=5,
        seconds=0.1,
        steps=[Call(text="work", tokens=5, prompt_tokens=10)],
    )


def trajectory(threads: list[ThreadResult], *notes: Note) -> Trajectory:
    steps = [
        Call(text="split", tokens=2, prompt_tokens=8),
        *notes,
        Block(threads=threads, joined="…"),
    ]
    root = ThreadResult(
        id="0",
        status="done",
        conclusion="42",
        tokens=2 + 5 * len(threads),
        seconds=1.0,
        steps=steps,
    )
    return Trajectory(
        question="q", answer="42", model="m", protocol="p", merge="full", budget=8, root=root
    )


def test_a_running_tree_shows_what_each_thread_is_doing():
    root, first, second = drawn(fed(SPLIT))
    assert "1 of 2 threads are back" in root
    assert root.endswith("16 tokens")
    assert "● 0.1  12*7" in first
    assert "12*7=" in first.replace("0.1  12*7", "")
    assert first.endswith("4 tokens")
    assert "✓ 0.2  45-38" in second
    assert "45-38=7" in second
    assert second.endswith("9 tokens")


def test_a_thread_goes_on_after_its_threads_are_back():
    tree = fed([
        *SPLIT,
        {"type": "merged", "id": "0", "text": "…"},
        {"type": "token", "id": "0", "text": " now add up", "tokens": 3},
    ])  # fmt: skip
    assert "now add up" in drawn(tree)[0]


def test_a_thread_is_queued_until_the_gate_lets_it_through():
    tree = fed([SPLIT[0], SPLIT[2], SPLIT[3]])
    assert "· 0.1" in drawn(tree)[1]
    tree.feed({"type": "admitted", "id": "0.1", "at": 0.5})
    assert "● 0.1" in drawn(tree)[1]


def test_a_thread_that_waits_for_a_tool_shows_the_call():
    tree = fed([*SPLIT, {"type": "tool", "id": "0.1", "call": "a", "text": "look_up('x')"}])
    assert "○ 0.1  12*7" in drawn(tree)[1]
    assert "look_up('x')" in drawn(tree)[1]
    tree.feed({"type": "returned", "id": "0.1", "call": "a", "text": "y", "status": "done"})
    assert "look_up" not in drawn(tree)[1]


def test_of_a_long_text_the_end_is_shown_while_it_is_written():
    events: list[Event] = [
        {"type": "token", "id": "0", "text": f"word{i} ", "tokens": 1} for i in range(500)
    ]
    line = drawn(fed([SPLIT[0], *events]))[0]
    assert "word499" in line
    assert "word1 " not in line


def test_a_finished_trajectory_shows_why_a_thread_failed_and_why_a_split_was_not_made():
    tree = ThreadTree.of(
        trajectory(
            [leaf("0.1"), leaf("0.2", status="timed_out", reason="it took longer than 3 s")],
            Note(event="malformed", why="no numbered outline"),
        )
    )
    root, first, second = drawn(tree)
    assert "42" in root
    assert "unreadable split: no numbered outline" in root
    assert "result of 0.1" in first
    assert "✗ 0.2" in second
    assert "timed out: it took longer than 3 s" in second


def test_hundreds_of_threads_are_capped_and_the_rest_is_counted():
    threads = [leaf(f"0.{i}") for i in range(1, 400)] + [leaf("0.400", status="failed")]
    lines = drawn(ThreadTree.of(trajectory(threads)))
    assert len(lines) == MOST_ROWS
    assert any("0.400" in line for line in lines)  # what failed is never hidden behind what is done
    assert lines[-1] == f"… and {401 - (MOST_ROWS - 1)} more: {401 - (MOST_ROWS - 1)} done"


def test_a_running_tree_fits_the_screen_and_shows_running_threads_first():
    ids = [f"0.{i}" for i in range(1, 301)]
    events: list[Event] = [
        {"type": "started", "id": "0"},
        {"type": "spawned", "id": "0", "threads": ids},
    ]
    events += [{"type": "started", "id": name, "text": "part"} for name in ids]
    events += [{"type": "admitted", "id": name} for name in ids[:258]]
    events += [
        {"type": "finished", "id": name, "status": "done", "text": "1", "tokens": 1}
        for name in ids[:250]
    ]
    lines = drawn(fed(events), height=20)
    assert len(lines) <= 18
    assert [f"● 0.{i}" for i in range(251, 259)] == [
        line.split("  ")[0].partition(" ")[2] for line in lines if "●" in line
    ]
    assert lines[-1] == "… and 284 more: 242 done, 42 queued"


def test_a_shown_thread_has_all_its_ancestors_shown():
    inner = leaf("0.90").model_copy(
        update={"steps": [Block(threads=[leaf("0.90.1", status="failed")], joined="")]}
    )
    lines = drawn(ThreadTree.of(trajectory([leaf(f"0.{i}") for i in range(1, 90)] + [inner])))
    assert "└─ ✓ 0.90" in lines[-3]
    assert "   └─ ✗ 0.90.1" in lines[-2]


@pytest.mark.parametrize("width", [1, 2, 10, 20, 40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int):
    wide = [
        {"type": "token", "id": "0.1", "text": "日本語テキスト" * 40, "tokens": 4},
        {
            "type": "finished",
            "id": "0.2",
            "status": "failed",
            "text": "x" * 500,
            "tokens": 123456789,
        },
    ]
    assert all(cell_len(line) <= width for line in drawn(fed([*SPLIT, *wide]), width=width))


def test_deep_threads_stay_on_the_screen():
    name, events = "0", [SPLIT[0]]
    for _ in range(30):
        events.append({"type": "spawned", "id": name, "threads": [f"{name}.1"]})
        name = f"{name}.1"
    lines = drawn(fed(events), height=60)
    assert len(lines) == 31
    assert all("·" in line or "○" in line for line in lines)


def test_model_text_cannot_act():
    events: list[Event] = [
        {"type": "started", "id": "0", "text": ""},
        {"type": "spawned", "id": "0", "threads": ["0.1", "0.2"]},
        {"type": "started", "id": "0.1", "text": HOSTILE},
        {"type": "token", "id": "0.1", "text": HOSTILE, "tokens": 1},
        {"type": "declined", "id": "0.1", "text": HOSTILE},
        {"type": "finished", "id": "0.2", "status": "done", "text": HOSTILE, "tokens": 1},
    ]
    output = "\n".join(drawn(fed(events)))
    assert "[bold red]x[/]" in output
    assert not set(output) & set("\x1b\x07\r\u202e\u200b\ud800")
    plain = Console(file=io.StringIO(), width=80)
    with LiveThreads(plain) as threads:
        for event in events:
            threads.feed(event)
    assert not set(plain.file.getvalue()) & set("\x1b\x07\r\u202e\u200b\ud800")


def test_without_a_terminal_plain_lines_tell_what_happens():
    console = Console(file=io.StringIO(), width=40)
    with LiveThreads(console) as threads:
        for event in SPLIT:
            threads.feed(event)
        threads.feed({"type": "malformed", "id": "0.1", "text": "no numbered outline"})
        threads.feed({"type": "merged", "id": "0", "text": "…"})
        threads.finish(trajectory([]))
    assert console.file.getvalue().splitlines() == [
        "0 started",
        "0 split into 2 threads",
        "0.1 started: 12*7",
        "0.2 started: 45-38",
        "0.2 done, 9 tokens: 45-38=7",
        "0.1 unreadable split: no numbered outline",
        "0 joined its threads",
    ]


def test_in_a_terminal_the_tree_is_live_and_ends_as_the_record():
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    with LiveThreads(console) as threads:
        for event in SPLIT:
            threads.feed(event)
        threads.finish(trajectory([leaf("0.1"), leaf("0.2", status="failed", reason="boom")]))
    assert "failed: boom" in console.file.getvalue().splitlines()[-2]


def test_events_of_unknown_threads_and_types_are_ignored():
    tree = fed([*SPLIT, {"type": "token", "id": "7.7", "text": "?"}, {"type": "novel", "id": "0"}])
    assert drawn(tree) == drawn(fed(SPLIT))


def test_printable_keeps_words_and_drops_what_is_invisible():
    assert printable("a\tb\nc\x1b[0m\u202e é日") == "a b c[0m é日"
    assert printable("a\tb\nc\x00", lines=True) == "a\tb\nc"


@pytest.mark.parametrize(
    ("text", "width", "start", "end"),
    [
        ("short", 10, "short", "short"),
        ("one two three", 8, "one two…", "…o three"),
        ("日本語", 4, "日…", "…語"),
        ("abc", 1, "…", "…"),
        ("abc", 0, "", ""),
        ("x" * 100_000, 3, "xx…", "…xx"),
    ],
)
def test_shortened_keeps_the_start_or_the_end(text: str, width: int, start: str, end: str):
    assert shortened(text, width) == start
    assert shortened(text, width, keep="end") == end
