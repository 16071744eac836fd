from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from apr_agents.types import Block, Call, Note, Outline, Summary, ThreadResult, context_text


def thread(id: str, *steps: Call | Note | Summary | Block) -> ThreadResult:
    outline = None if id == "0" else Outline(id[-1], "do it")
    return ThreadResult(
        id=id, outline=outline, status="done", tokens=3, seconds=0.5, steps=list(steps)
    )


def call(text: str, closing: str = "") -> Call:
    return Call(text=text, tokens=1, prompt_tokens=1, closing=closing)


def test_a_transcript_is_all_that_the_context_gained() -> None:
    block = Block(threads=[thread("0.1", call("x"))], joined="[x]")
    root = thread(
        "0",
        call("a", closing="</a>"),
        Note(event="declined", why="no", told="(no)"),
        call("b"),
        block,
        call("c"),
        Summary(text="short", tokens=1, prompt_tokens=1),
    )
    assert root.transcript == "a</a>(no)b[x]c"
    assert root.blocks == [block]


def test_a_join_may_take_the_place_of_what_asked_for_it() -> None:
    asking = call("so spawn(", closing=")").model_copy(update={"replaced": len("(ok) spawn()")})
    summed = Summary(text="short", tokens=1, prompt_tokens=1)  # of results that found no room
    steps = [
        call("well, "),
        Note(event="malformed", why="odd", told="(ok) "),
        asking.model_copy(update={"text": "spawn("}),
        summed,
        Block(threads=[thread("0.1")], joined="[x]"),
        call(" and "),
        asking,
        Note(event="declined", why="no", told=" no"),
        call("!"),
        Block(threads=[thread("0.2")], joined="[y]"),
    ]
    assert context_text(steps) == "well, [x] and so spawn() no![y]"
    assert thread("0", *steps).transcript == "well, (ok) spawn()[x] and so spawn() no![y]"


def test_walking_visits_every_thread_parents_first() -> None:
    deep = thread("0.1", Block(threads=[thread("0.1.1"), thread("0.1.2")], joined=""))
    root = thread(
        "0",
        Block(threads=[deep, thread("0.2")], joined=""),
        Block(threads=[thread("0.3")], joined=""),
    )
    assert [each.id for each in root.walk()] == ["0", "0.1", "0.1.1", "0.1.2", "0.2", "0.3"]


def test_a_result_is_the_same_after_json() -> None:
    root = thread(
        "0",
        call("a"),
        Block(threads=[thread("0.1", call("b"))], left_out=[Outline("2", "c")], joined="b"),
        Note(event="malformed", why="odd"),
        Summary(text="s", tokens=2, prompt_tokens=3),
    )
    again = ThreadResult.model_validate(json.loads(json.dumps(root.model_dump())))
    assert again == root
    assert again.blocks[0].left_out[0].text == "c"


def test_records_cannot_change_and_take_nothing_unknown() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        call("a").text = "b"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="extra"):
        Call.model_validate({"text": "", "tokens": 0, "prompt_tokens": 0, "mood": "good"})
