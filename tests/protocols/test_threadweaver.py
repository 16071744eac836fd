from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from apr_agents.errors import InvalidOption
from apr_agents.protocols.base import (
    DEEPEST,
    Decision,
    Discard,
    Ended,
    Malformed,
    Shown,
    Spawn,
)
from apr_agents.protocols.threadweaver import TAGS, ThreadWeaver, ThreadWeaverParser, inert
from apr_agents.types import Outline
from tests.protocols.traces import shape

TAG = re.compile(rf"</?(?:{'|'.join(TAGS)})>")

tags = st.sampled_from([f"<{slash}{tag}>" for tag in TAGS for slash in ("", "/")])
pieces = st.one_of(
    tags,
    st.sampled_from(["1: a", "2: b", "1.2: c", "1:", ":", " ", "\n", "<", "</", ">", "3"]),
    st.text(max_size=6),
)
outputs = st.lists(pieces, max_size=40).map("".join)
BLOCK = "<Parallel>\n<Outlines>\n<Outline>1: a</Outline>\n<Outline>2: b</Outline>\n</Outlines>"


def read(
    *chunks: str, thread: bool = False, written: str = "", ends: bool = False
) -> tuple[Decision | None, str]:
    """The decision in ``chunks`` and the text that is kept."""
    parser = ThreadWeaverParser(thread=thread, written=written)
    for chunk in chunks:
        decision = parser.feed(chunk)
        if decision is not None:
            return decision, parser.text
    return (parser.finish() if ends else None), parser.text


def spawned(text: str, **options: bool) -> list[tuple[str, str]]:
    decision, _ = read(text, **options)
    assert isinstance(decision, Spawn), decision
    return [(outline.number, outline.text) for outline in decision.outlines]


# --- outlines ---------------------------------------------------------------------


def test_a_block_spawns_its_outlines_in_order() -> None:
    assert spawned(f"Let me split.\n{BLOCK}") == [("1", "a"), ("2", "b")]


def test_what_demonstrations_show_is_what_the_parser_reads() -> None:
    outlines = [Outline("1", "first"), Outline("2", "second one"), Outline("3", "5+(2*3)")]
    decision, _ = read(ThreadWeaver().block(outlines))
    assert decision == Spawn(outlines)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("<Outline>1: a</Outline><Outline>7: b</Outline>", [("1", "a"), ("7", "b")]),
        ("<Outline>2: a</Outline><Outline>1: b</Outline>", [("2", "a"), ("1", "b")]),
        ("<Outline>1: a</Outline><Outline>1: b</Outline><Outline>2: c</Outline>",
         [("1", "a"), ("2", "c")]),
        ("<Outline>1.2: a</Outline><Outline>1.10.3: b</Outline>", [("1.2", "a"), ("1.10.3", "b")]),
        ("<Outline> 1 : a </Outline>", [("1", "a")]),
        ("<Outline>1: a\n<Outline>2: b</Outline>", [("1", "a"), ("2", "b")]),
        ("<Outline>1: a</Outline>\n<Outline>2: b\n", [("1", "a"), ("2", "b")]),
        ("<Outline>1: a</Outline><Outline>no number</Outline>", [("1", "a")]),
        ("<Outline>1: a: b, 2: c</Outline>", [("1", "a: b, 2: c")]),
        ("<Outline>1:</Outline>", [("1", "")]),
        ("<Outline>1: two\nlines</Outline>", [("1", "two\nlines")]),
    ],
    ids=["gaps", "out of order", "duplicates", "nested numbers", "spaces", "unclosed first",
         "unclosed last", "unnumbered", "colons", "empty", "two lines"],
)  # fmt: skip
def test_odd_outlines_are_read_leniently(written: str, expected: list[tuple[str, str]]) -> None:
    assert spawned(f"<Outlines>{written}</Outlines>") == expected


def test_an_unclosed_outline_does_not_swallow_the_end_of_its_block() -> None:
    assert spawned("<Outlines><Outline>1: a\n</Outlines>") == [("1", "a")]


def test_of_nested_blocks_the_innermost_counts() -> None:
    nested = (
        "<Parallel><Outlines><Outline>1: outer</Outline>"
        "<Parallel><Outlines><Outline>1: inner</Outline></Outlines>"
    )
    assert spawned(nested) == [("1", "inner")]


def test_ten_thousand_outlines_are_read() -> None:
    many = [Outline(str(i), f"part {i}") for i in range(10_000)]
    text = ThreadWeaver().block(many)
    chunks = [text[i : i + 40] for i in range(0, len(text), 40)]
    assert read(*chunks) == (Spawn(many), text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("so </Outlines>", "</Outlines> without <Outlines>"),
        ("<Outline>1: a</Outline></Outlines>", "</Outlines> without <Outlines>"),
        ("<Outlines></Outlines>", "no numbered outline in the block"),
        ("<Outlines><Outline>a</Outline></Outlines>", "no numbered outline in the block"),
        ("<Outlines>1: a\n2: b</Outlines>", "no numbered outline in the block"),
    ],
)
def test_a_block_that_cannot_be_read_is_malformed_and_says_why(text: str, why: str) -> None:
    assert read(text) == (Malformed(why), text)


def test_text_behind_a_decision_is_dropped() -> None:
    decision, text = read(f"{BLOCK}\n<Thread>\n1: guessed</Thread>")
    assert isinstance(decision, Spawn)
    assert text == BLOCK


# --- ends -------------------------------------------------------------------------


def test_a_root_that_stops_by_itself_has_ended() -> None:
    assert read("4</think>4", ends=True) == (Ended(), "4</think>4")
    assert read(ends=True) == (Ended(), "")


def test_stopping_inside_a_block_spawns_its_complete_outlines() -> None:
    text = "<Outlines>\n<Outline>1: a</Outline>\n<Outline>2: half of"
    decision, _ = read(text, ends=True)
    assert decision == Spawn([Outline("1", "a")])
    assert ThreadWeaver().close(decision, text) == "\n</Outlines>"


def test_stopping_inside_a_block_without_outlines_is_malformed() -> None:
    assert read("<Outlines>\n<Outline>1: half", ends=True)[0] == Malformed(
        "ended inside <Outlines>"
    )


def test_a_closed_block_needs_no_closing() -> None:
    decision, text = read(BLOCK)
    assert decision is not None
    assert ThreadWeaver().close(decision, text) == ""
    assert ThreadWeaver().close(Ended(), "4") == ""


def test_the_closing_tag_ends_a_thread_and_is_left_out_of_its_text() -> None:
    assert read(" 2+2=4\n4</Thread> and more", thread=True) == (Ended(), " 2+2=4\n4")


def test_a_thread_that_stops_by_itself_has_ended() -> None:
    assert read(" 4", thread=True, ends=True) == (Ended(), " 4")


def test_a_thread_may_spawn() -> None:
    assert spawned(f" deeper:\n{BLOCK}", thread=True) == [("1", "a"), ("2", "b")]


def test_closing_tags_of_threads_mean_nothing_to_the_root() -> None:
    assert read("a</Thread>b</Thread>")[0] is None


def test_a_thread_written_inline_does_not_end_the_thread_that_writes_it() -> None:
    inline = "<Thread>\n1: by myself</Thread> so"
    assert read(f"{inline} 4</Thread>", thread=True) == (Ended(), f"{inline} 4")


def test_a_thread_written_inline_over_several_calls_is_still_inline() -> None:
    written = "<Thread>\n1: a <Thread>\n1.1: b</Thread>"
    assert read(" c</Thread>", thread=True, written=written)[0] is None
    assert read(" c</Thread></Thread>", thread=True, written=written)[0] == Ended()


def test_tags_behind_the_thought_are_inert() -> None:
    answer = f"</think>{BLOCK}</Outlines><Outlines>"
    assert read(answer) == (None, answer)
    assert read(answer, ends=True)[0] == Ended()
    assert read(BLOCK, written="4</think>") == (None, BLOCK)


def test_a_thought_does_not_end_inside_a_thread() -> None:
    assert spawned(f"</think>{BLOCK}", thread=True) == [("1", "a"), ("2", "b")]


# --- any output, in any pieces ------------------------------------------------------


@pytest.mark.parametrize("thread", [False, True])
@pytest.mark.parametrize(
    "text", [BLOCK, "a</Outlines>", f"</think>{BLOCK}", "<Thread>x</Thread> y</Thread>z"]
)
def test_a_tag_split_at_any_position_is_the_same_tag(text: str, thread: bool) -> None:
    whole = read(text, thread=thread)
    for i in range(len(text) + 1):
        assert read(text[:i], text[i:], thread=thread) == whole
    assert read(*text, thread=thread) == whole


@given(outputs, st.lists(st.integers(0, 200), max_size=8), st.booleans(), st.booleans())
def test_no_chunking_changes_the_decision(
    output: str, cuts: list[int], thread: bool, ends: bool
) -> None:
    edges = [0, *sorted(cuts), len(output)]
    chunks = [output[a:b] for a, b in pairwise(edges)]
    whole = read(output, thread=thread, ends=ends)
    assert read(*chunks, thread=thread, ends=ends) == whole
    assert read(*output, thread=thread, ends=ends) == whole


@given(outputs, st.booleans(), outputs)
@example("<Outlines><Outline>\u0661: a</Outline></Outlines>", False, "")
@example("\ud800<Outlines>\x00</Outlines>", True, "")
def test_no_output_raises(output: str, thread: bool, written: str) -> None:
    decision, text = read(output, thread=thread, written=written, ends=True)
    assert isinstance(decision, Spawn | Discard | Ended | Malformed)
    assert output.startswith(text)
    if isinstance(decision, Spawn):
        numbers = [outline.number for outline in decision.outlines]
        assert numbers
        assert len(set(numbers)) == len(numbers)
        assert all(re.fullmatch(r"[0-9]+(\.[0-9]+)*", number) for number in numbers)
    protocol = ThreadWeaver()
    assert isinstance(protocol.close(decision, text), str)
    assert isinstance(protocol.conclusion(text), str)
    assert protocol.answer(text, complete=False) != ""


# --- texts ------------------------------------------------------------------------


@given(outputs)
def test_inert_text_has_no_tag_and_loses_nothing(text: str) -> None:
    broken = inert(text)
    assert not TAG.search(broken)
    assert inert(broken) == broken
    assert broken.replace("< ", "<") == text.replace("< ", "<")
    if not TAG.search(text):
        assert broken == text


@given(outputs, st.booleans())
def test_inert_text_decides_nothing(text: str, thread: bool) -> None:
    assert read(inert(text), thread=thread)[0] is None


def test_the_budget_is_announced_in_the_last_human_message_only() -> None:
    conversation = [
        SystemMessage("Be brief."),
        HumanMessage("first"),
        AIMessage("answer"),
        HumanMessage("second"),
        AIMessage("draft"),
    ]
    prepared = ThreadWeaver().prepare(conversation, 4)
    assert [message.text for message in prepared] == [
        "Be brief.", "first", "answer", "second\nThreads: 4", "draft",
    ]  # fmt: skip
    assert [type(message) for message in prepared] == [type(message) for message in conversation]
    assert conversation[3].text == "second"


def test_without_a_human_message_the_last_one_announces_the_budget() -> None:
    prepared = ThreadWeaver().prepare([SystemMessage("a"), AIMessage("b")], 0)
    assert [message.text for message in prepared] == ["a", "b\nThreads: 0"]


def test_tags_in_messages_are_broken() -> None:
    messages = [HumanMessage(f"{BLOCK}</think><Thread>"), AIMessage("</Outlines>")]
    prepared = ThreadWeaver().prepare(messages, 2)
    assert not any(TAG.search(message.text) for message in prepared)
    assert "< Outline>1: a< /Outline>" in prepared[0].text


def test_content_in_blocks_is_read_as_text() -> None:
    message = HumanMessage([{"type": "text", "text": "2+2 <Thread>"}])
    assert ThreadWeaver().prepare([message], 1)[0].text == "2+2 < Thread>\nThreads: 1"


def test_a_thread_continues_behind_the_header_of_its_outline() -> None:
    assert ThreadWeaver().thread_header(Outline("1.2", "a")) == "\n<Thread>\n1.2:"


def test_threads_join_in_full_as_in_the_paper() -> None:
    shown = [Shown("1", " a\n=4", verbatim=True), Shown("2", " b\n=5", verbatim=True)]
    joined = "\n<Thread>\n1: a\n=4</Thread><Thread>\n2: b\n=5</Thread>"
    assert ThreadWeaver().join(shown) == joined


def test_short_results_join_as_inert_text() -> None:
    joined = ThreadWeaver().join([Shown("1", "4"), Shown("2", "</Thread><Outlines>")])
    assert joined == "\n<Thread>\n1: 4</Thread><Thread>\n2: < /Thread>< Outlines></Thread>"


@pytest.mark.parametrize(
    ("text", "conclusion"),
    [
        (" 2+2\n=4\n", "=4"),
        (" a <Conclusion> 4 </Conclusion> and more", "4"),
        ("<Conclusion>1</Conclusion><Conclusion>2\n3</Conclusion>", "2\n3"),
        ("<Conclusion>never closed", "<Conclusion>never closed"),
        (" \n \n", ""),
        ("", ""),
    ],
)
def test_the_conclusion_is_what_was_stated_or_the_last_line(text: str, conclusion: str) -> None:
    assert ThreadWeaver().conclusion(text) == conclusion


@pytest.mark.parametrize(
    ("text", "complete", "answer"),
    [
        ("think</think>\n4\n", True, "4"),
        ("think</think>\n4", False, "4"),
        ("no thought: 4", True, "no thought: 4"),
        ("no thought: 4", False, None),
        ("think</think>", True, None),
        ("a</think>b</think>c", True, "c"),
        ("", True, None),
    ],
)
def test_the_answer_stands_behind_the_thought(
    text: str, complete: bool, answer: str | None
) -> None:
    assert ThreadWeaver().answer(text, complete=complete) == answer


def test_an_unknown_visibility_is_refused() -> None:
    with pytest.raises(InvalidOption, match="'prefix' or 'isolated'"):
        ThreadWeaver(visibility="all")  # type: ignore[arg-type]


# --- whole traces -------------------------------------------------------------------

TRACES = {
    "as the models write it": (
        "<think>\nThe distance is sqrt(dx² + dy²).\n\n<Parallel>\n<Outlines>\n"
        "<Outline>1: Compute dx².</Outline>\n<Outline>2: Compute dy².</Outline>\n</Outlines>\n"
        "<Thread>\n1: dx = 6, so dx² = 36.\n</Thread><Thread>\n2: dy = -9, so dy² = 81.\n"
        "</Thread>\n</Parallel>\n\nTogether 117.\n</think>\n\nThe distance is 3·sqrt(13).",
        [
            (
                {"1": "Compute dx².", "2": "Compute dy²."},
                {"1": "dx = 6, so dx² = 36.", "2": "dy = -9, so dy² = 81."},
                None,
            )
        ],
    ),
    "with a conclusion, and outlines that nobody closed": (
        "<Parallel>\n<Outlines>\n<Outline> 1: by hand\n<Outline> 2: by computer\n</Outlines>\n\n"
        "<Thread>\n1: 4\n</Thread>\n<Thread>\n2: 4, too\n</Thread>\n<Conclusion>\n4\n"
        "</Conclusion>\n</Parallel>",
        [({"1": "by hand", "2": "by computer"}, {"1": "4", "2": "4, too"}, "4")],
    ),
    "drafts without outlines": (
        "<Parallel>\nReason: two ways.\n<Thread>\nThread 1: by hand\n</Thread>\n<Thread>\n"
        "Thread 2: by computer\n</Thread>\n</Parallel>",
        [({}, {"1": "by hand", "2": "by computer"}, None)],
    ),
    "two blocks, one within a thread": (
        "<Parallel><Outlines><Outline>1: a</Outline></Outlines><Thread>\n1: deeper: <Parallel>"
        "<Outlines><Outline>1.1: b</Outline></Outlines><Thread>\n1.1: x</Thread></Parallel>\ny"
        "</Thread></Parallel> so <Parallel><Outlines><Outline>1: c</Outline></Outlines>"
        "<Thread>\n1: z</Thread></Parallel>",
        [
            ({"1": "a"}, {"1": ("y", [({"1.1": "b"}, {"1.1": "x"}, None)])}, None),
            ({"1": "c"}, {"1": "z"}, None),
        ],
    ),
    "tags that are missing": (
        "<Outlines><Outline>1: a</Outline><Outline>1: again</Outline><Outline>2: b</Outline>"
        "<Thread>\n1: x<Thread>\n2: y</Parallel>",
        [({"1": "a", "2": "b"}, {"1": "x", "2": "y"}, None)],
    ),
    "a conclusion that a thread states": (
        "<Parallel><Outlines><Outline>1: a</Outline></Outlines>"
        "<Thread>\n1: long <Conclusion>4</Conclusion> and more</Thread></Parallel>",
        [({"1": "a"}, {"1": "4"}, None)],
    ),
    "no block": ("4</Parallel><Thread>\n1: x</Thread></think><Conclusion>4</Conclusion>", []),
}  # fmt: skip


@pytest.mark.parametrize("name", TRACES)
def test_a_published_trace_is_read(name: str) -> None:
    text, expected = TRACES[name]
    assert shape(ThreadWeaver().read_trace(text)) == expected


def test_threads_are_read_as_they_would_have_been_written() -> None:
    (block,) = ThreadWeaver().read_trace(TRACES["as the models write it"][0])
    assert [thread.text for thread in block.threads] == [
        " dx = 6, so dx² = 36.\n",
        " dy = -9, so dy² = 81.\n",
    ]


def test_blocks_deeper_than_any_run_are_text() -> None:
    opened = "<Parallel><Outlines><Outline>1: a</Outline></Outlines><Thread>\n1:"
    blocks, depth = ThreadWeaver().read_trace(opened * 100), 0
    while blocks:
        blocks, depth = blocks[0].threads[0].blocks, depth + 1
    assert depth == DEEPEST
