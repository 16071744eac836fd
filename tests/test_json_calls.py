"""Tool calls as JSON in text: what is told, what is read, and that nothing ever raises."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.tool import tool_call, tool_call_chunk
from langchain_core.tools import tool
from langchain_core.utils.json import parse_partial_json
from pydantic import BaseModel

from apr_agents.errors import InvalidOption
from apr_agents.json_calls import (
    UNREADABLE,
    CallReader,
    Read,
    describe,
    instructions,
    plain,
    read_calls,
    write_calls,
)

CALL = '{"name": "add", "args": {"a": 1}}'
ADD = tool_call(name="add", args={"a": 1}, id=None)

FRAGMENTS = [
    *'{}[]":,`<>\n \t\\x1',
    "```",
    "```json\n",
    "<tool_call>",
    "</tool_call>",
    '{"tool_calls": [',
    '{"tool_calls":',
    '"tool_calls"',
    '"name":',
    '"args":',
    '"function": {',
    '{"a": 1}',
    CALL,
    f'{{"tool_calls": [{CALL}]}}',
    f"```json\n{CALL}\n```",
    "Let me see.",
    "null",
    "NaN",
    r'"\ud800"',
    "9" * 5000,
]

texts = st.text() | st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
).filter(lambda value: "Infinity" not in json.dumps(value))

calls = st.builds(
    tool_call,
    name=st.text(min_size=1),
    args=st.dictionaries(st.text(), json_values, max_size=3),
    id=st.none(),
)


def one_invalid(text: str) -> str:
    """Why the only call in ``text`` is invalid."""
    read = read_calls(text)
    assert (read.text, read.tool_calls) == ("", [])
    [invalid] = read.invalid_tool_calls
    assert invalid["args"] is not None
    assert invalid["args"].startswith(UNREADABLE)
    assert invalid["error"]
    return invalid["error"]


# --- reading -----------------------------------------------------------------------


@given(texts)
@example("[" * 3000 + '{"name": 1, "args": ')
@example('{"tool_calls": ' * 3000)
@example('{"tool_calls": [{"name": "a", "args": ' + "[" * 500 + "]" * 500 + "}]}")
@example("\n" * 3000 + "{")
def test_no_text_raises_and_no_character_of_an_answer_is_lost(text: str) -> None:
    read = read_calls(text)
    if not (read.tool_calls or read.invalid_tool_calls):
        assert read.text == text
    for call in read.tool_calls:
        assert call["name"]
        json.dumps(call["args"], allow_nan=False)
        json.dumps(call["args"], ensure_ascii=False).encode()


@given(st.lists(calls, min_size=1, max_size=3))
def test_calls_that_are_written_are_read_again(written: list[Any]) -> None:
    assert read_calls(write_calls(written)) == Read("", written, [])


@given(st.lists(calls, min_size=1, max_size=3), st.sampled_from(["", "json", "tool_call"]))
def test_calls_are_read_in_a_fence_between_prose(written: list[Any], kind: str) -> None:
    text = f"Let me see.\n\n```{kind}\n{write_calls(written)}\n```\n\nDone."
    assert read_calls(text) == Read("Let me see.\nDone.", written, [])


@given(texts, st.data())
def test_text_in_pieces_reads_as_the_whole_wherever_it_is_cut(text: str, data: Any) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    reader, through = CallReader(), ""
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        through += reader.feed(text[start:end])
    rest = reader.finish()
    assert rest._replace(text=through + rest.text) == read_calls(text)


def test_what_can_be_no_call_is_let_through_at_once() -> None:
    reader = CallReader()
    pieces = ["The set ", "{1, 2} ", "and `x` [1]", ".\n", "So: `", "``json\n", CALL, "\n```"]
    assert [reader.feed(piece) for piece in pieces] == [
        "The set",
        " {1, 2}",
        " and `x` [1]",
        ".",
        "\nSo:",
        "",
        "",
        "",
    ]
    assert reader.finish() == Read("", [ADD], [])


@pytest.mark.parametrize(
    "text",
    [
        CALL,
        f"[{CALL}]",
        f'{{"tool_calls": [{CALL}]}}',
        f'{{"tool_calls": {CALL}}}',
        f"```json\n{CALL}\n```",
        f"```\n[\n{CALL}\n]\n```",
        f"<tool_call>\n{CALL}\n</tool_call>",
        '{"name": "add", "arguments": {"a": 1}}',
        '{"name": "add", "parameters": {"a": 1}}',
        '{"name": "add", "arguments": "{\\"a\\": 1}"}',
        '{"id": "x", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}',
        f"  \n  {CALL}  \n",
    ],
)
def test_a_call_may_be_written_in_many_ways(text: str) -> None:
    assert read_calls(text) == Read("", [ADD], [])


def test_calls_on_lines_of_their_own_and_in_one_fence_are_all_read() -> None:
    other = '{"name": "now", "args": null}'
    now = tool_call(name="now", args={}, id=None)
    assert read_calls(f"{CALL}\n{other}") == Read("", [ADD, now], [])
    assert read_calls(f"```json\n{CALL}\n{other}\n```") == Read("", [ADD, now], [])


def test_a_call_behind_words_on_its_line_is_read_when_it_says_that_it_is_one() -> None:
    text = f'Sure! {{"tool_calls": [{CALL}]}} There.'
    assert read_calls(text) == Read("Sure!\nThere.", [ADD], [])
    assert read_calls(f"Sure! {CALL}").tool_calls == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Plain.",
        "The set {1, 2} and [3].",
        '{"answer": 42}',
        '{"name": "Ada", "born": 1815}',
        '[{"name": "add", "args": {}}, 3]',
        f'{{"example": {CALL}}}',
        '{"name": "add", "description": "Adds.", "parameters": {"type": "object"}}',
        '{"tool_calls": []}',
        "```python\nprint({'a': 1})\n```",
        "{'name': 'Ada', broken",
    ],
)
def test_other_text_is_an_answer(text: str) -> None:
    assert read_calls(text) == Read(text, [], [])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"tool_calls": [{"name": "add", "args": {"a": 1', "no JSON"),
        ("{'name': 'add', 'args': {}}", "no JSON"),
        ('{"name": "add", "args": {"a": 1,}}', "no JSON"),
        ('```json\n{"name": "add", "args": {"a": 1,}}\n```', "no JSON"),
        ('{"tool_calls": "add"}', "must be an object"),
        ('{"tool_calls": null}', "must be an object"),
        ('{"name": "", "args": {}}', "name of its tool"),
        ('{"name": 7, "args": {}}', "name of its tool"),
        ('{"name": "add", "args": [1]}', "must be an object"),
        ('{"name": "add", "args": "a = 1"}', "must be an object"),
        ('{"name": "add", "args": {"a": NaN}}', "not JSON compliant"),
        ('{"name": "add", "args": {"a": "\\ud800"}}', "surrogates"),
        ('{"name": "add", "args": {"a": ' + "[" * 80 + "]" * 80 + "}}", "deeply"),
        ('{"name": "add", "args": {"a": ' + "9" * 5000 + "}}", "no JSON"),
    ],
)
def test_what_was_meant_as_a_call_and_is_none_is_invalid(text: str, why: str) -> None:
    assert why in one_invalid(text)


def test_an_invalid_call_says_which_tool_was_meant() -> None:
    [invalid] = read_calls('{"name": "add", "args": {"a": 1').invalid_tool_calls
    assert invalid["name"] == "add"


def test_a_broken_call_in_a_fence_costs_the_text_behind_it_nothing() -> None:
    read = read_calls(f'```json\n{{"name": "add", "args": }}\n```\nThen:\n{CALL}')
    assert (read.text, read.tool_calls) == ("Then:", [ADD])
    assert len(read.invalid_tool_calls) == 1


@given(texts)
def test_no_merging_of_chunks_makes_a_call_of_an_invalid_one(text: str) -> None:
    for invalid in read_calls(text).invalid_tool_calls:
        assert invalid["args"] is not None
        chunk = tool_call_chunk(name=invalid["name"], args=invalid["args"], id="1", index=0)
        merged = AIMessageChunk(content="a") + AIMessageChunk(
            content="", tool_call_chunks=[chunk], chunk_position="last"
        )
        assert (merged.tool_calls, len(merged.invalid_tool_calls)) == ([], 1)


def test_chunks_would_repair_a_call_that_was_cut_off() -> None:
    """Why the text of an invalid call does not begin with JSON."""
    assert parse_partial_json('{"a": {"b": 1') == {"a": {"b": 1}}


# --- telling -----------------------------------------------------------------------


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"Sunny in {city}."


class Joke(BaseModel):
    """A joke."""

    setup: str


def test_the_instructions_name_every_tool_its_arguments_and_the_form() -> None:
    told = instructions([weather, Joke])
    for said in ("weather", "The weather in a city.", "city", "Joke", "setup", '"tool_calls"'):
        assert said in told
    assert read_calls(told).tool_calls == [
        tool_call(name="NAME", args={"ARGUMENT": "VALUE"}, id=None)
    ]


def test_the_instructions_say_which_tool_must_be_called() -> None:
    assert "no tool" in instructions([weather])
    assert "Call at least one tool" in instructions([weather], "any")
    assert "Call the tool weather" in instructions([weather], "weather")


def test_describing_twice_changes_nothing_and_a_providers_own_tool_is_refused() -> None:
    described = describe([weather])
    assert describe(described) == described
    with pytest.raises(InvalidOption, match="a function"):
        describe([{"type": "web_search_preview"}])


def test_a_conversation_shows_its_calls_and_results_as_text() -> None:
    two = [
        {"name": "weather", "args": {"city": "Ägina"}, "id": "1"},
        {"name": "weather", "args": {"city": "Oslo"}, "id": "2"},
    ]
    told = plain(
        [
            HumanMessage("Where?"),
            AIMessage("Let me see.", tool_calls=two),
            ToolMessage("Sunny", tool_call_id="1"),
            ToolMessage("No such city", tool_call_id="2", status="error"),
            AIMessage("In Ägina."),
        ]
    )
    assert [message.type for message in told] == ["human", "ai", "human", "ai"]
    read = read_calls(told[1].text)
    assert read.text == "Let me see."
    assert [call["args"]["city"] for call in read.tool_calls] == ["Ägina", "Oslo"]
    assert json.loads(told[2].text) == {
        "tool_results": [
            {"name": "weather", "content": "Sunny"},
            {"name": "weather", "status": "error", "content": "No such city"},
        ]
    }


def test_results_of_different_turns_stay_apart() -> None:
    once = [ToolMessage("a", tool_call_id="1", name="x"), HumanMessage("and?")]
    assert [message.type for message in plain([*once, *once])] == ["human"] * 4


def test_instructions_join_the_system_message_that_is_there() -> None:
    [made, _] = plain([HumanMessage("q")], "Tools.")
    [joined, _] = plain([SystemMessage("Be brief."), HumanMessage("q")], "Tools.")
    assert (made.type, made.text) == ("system", "Tools.")
    assert (joined.type, joined.text) == ("system", "Be brief.\n\nTools.")
    assert plain([HumanMessage("q")]) == [HumanMessage("q")]
