"""What a chat model's messages decide, whatever it calls."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage
from pydantic import BaseModel, field_validator

from apr_agents.errors import InvalidOption
from apr_agents.protocols.base import Decision, Discard, Ended, Malformed, Shown, Spawn, Use
from apr_agents.protocols.tool_calls import MISFIT, ToolCalls
from apr_agents.types import Note, Outline, ToolCall

SPOKEN = ToolCalls()
TOOLS = {"look": None, "add": None}


class Found(BaseModel):
    """What a thread found."""

    value: int
    notes: dict[str, int] = {}

    @field_validator("value")
    @classmethod
    def is_known(cls, value: int) -> int:
        return value if value else 1 // 0


def made(name: str, args: Any, id: Any = "id") -> dict[str, Any]:
    return {"name": name, "args": args, "id": id, "type": "tool_call"}


def spawning(outlines: Any, **more: Any) -> dict[str, Any]:
    return made("spawn_threads", {"outlines": outlines, **more})


def read(*calls: Any, text: str = "", invalid: Any = (), **options: Any) -> list[Decision]:
    message = AIMessage(text, tool_calls=list(calls), invalid_tool_calls=list(invalid))
    given = {"may_spawn": True, "discardable": False, "result": None, "notes": []}
    return SPOKEN.read(message, **{**given, "tools": TOOLS, **options})


def noted(wrong: Any) -> Note:
    """A mistake as the thread's record has it."""
    return Note(event="malformed", why=wrong.why, told=wrong.told, answers=wrong.answers)


def outlines(*texts: str) -> list[Outline]:
    return [Outline(str(i), text) for i, text in enumerate(texts, 1)]


def mistake(decisions: list[Decision], answers: str | None = "id") -> str:
    """What is wrong, of decisions that are one correction: a short line that answers a call."""
    [wrong] = decisions
    assert isinstance(wrong, Malformed)
    assert wrong.answers == answers
    assert wrong.why in wrong.told
    assert "\n" not in wrong.told
    assert len(wrong.told) < 500
    return wrong.why


# --- spawn ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written",
    [
        ["a", "b"],
        [{"text": "a"}, {"text": "b"}],
        ["a", {"text": "b", "tools": None}],
        '["a", "b"]',
        '[{"text": "a"}, "b"]',
        [" a ", "b\n", "a"],
        ["a", "", "  ", "b"],
    ],
)
def test_outlines_are_read_in_every_form(written: Any) -> None:
    assert read(spawning(written)) == [Spawn(outlines("a", "b"), None, "id")]


@pytest.mark.parametrize("written", ["a", '"a"', '{"text": "a"}', ["a"]])
def test_one_subtask_is_a_block_of_one(written: Any) -> None:
    assert read(spawning(written)) == [Spawn(outlines("a"), None, "id")]


def test_text_that_only_looks_like_json_is_an_outline() -> None:
    for text in ("[a", "7", "null", "[" * 100_000, "9" * 5000):
        assert read(spawning(text)) == [Spawn(outlines(text), None, "id")]


def test_an_outline_names_the_tools_of_its_thread() -> None:
    written = [{"text": "a", "tools": ["look"]}, {"text": "b", "tools": []}, {"text": "a"}]
    assert read(spawning(written)) == [
        Spawn([Outline("1", "a", ("look",)), Outline("2", "b", ()), Outline("3", "a")], None, "id")
    ]


@pytest.mark.parametrize(
    ("asked", "join"),
    [
        ({"join": "all"}, "all"),
        ({"join": "vote", "k": 0}, "vote"),
        ({"join": "first_success", "k": "many"}, "first_success"),
        ({"join": "k_of_n", "k": 2}, "2_of_n"),
        ({"join": "k_of_n"}, "1_of_n"),
        ({"join": None, "k": None}, None),
        ({"join": "most of them"}, None),
        ({"join": ["vote"]}, None),
        ({"wait": True}, None),
    ],
)
def test_a_join_policy_is_read_and_one_that_means_nothing_left_to_the_agent(
    asked: dict[str, Any], join: str | None
) -> None:
    assert read(spawning(["a"], **asked)) == [Spawn(outlines("a"), join, "id")]


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ({}, "outlines"),
        ({"outlines": None}, "outlines"),
        ({"outlines": []}, "outlines"),
        ({"outlines": ""}, "empty"),
        ({"outlines": ["", " "]}, "empty"),
        ({"outlines": 7}, "outlines"),
        ({"outlines": {"text": "a"}}, "outlines"),
        ({"outlines": ["a", 7]}, "outlines.1"),
        ({"outlines": [["a"]]}, "outlines.0"),
        ({"outlines": [{"txt": "a"}]}, "outlines.0.ThreadOutline.text"),
        ({"outlines": [{"text": ["a"]}]}, "outlines.0.ThreadOutline.text"),
        ({"outlines": [{"text": "a", "tools": "look"}]}, "outlines.0.ThreadOutline.tools"),
        ({"outlines": [{"x" * 10**6: "a"}] * 100}, "outlines.0.ThreadOutline.text"),
        ({"outlines": [None] * 20_000}, "outlines.0"),
        ({"outlines": ["a"], "join": "k_of_n", "k": 0}, "k"),
        ({"outlines": ["a"], "join": "k_of_n", "k": "two"}, "k"),
        ({"outlines": ["a"], "join": "k_of_n", "k": None}, "k"),
    ],
)
def test_nonsense_gets_one_short_correction_that_names_the_mistake(args: Any, named: str) -> None:
    decisions = read(made("spawn_threads", args))
    assert named in mistake(decisions)
    assert '{"outlines": ["first subtask", "second subtask"]}' in decisions[0].told  # type: ignore[union-attr]


def test_arguments_that_are_no_json_get_a_correction() -> None:
    for name in ("spawn_threads", None, "x" * 10**6):
        invalid = {"name": name, "args": '{"outl', "id": "id", "error": "no JSON"}
        assert "no valid JSON" in mistake(read(invalid=[invalid]))
    assert mistake(read(invalid=[{**invalid, "id": None}]), "invalid_0")


def test_where_no_thread_may_start_the_model_is_told_so() -> None:
    [told] = read(spawning(["a"]), may_spawn=False)
    assert told == Malformed(
        "threads asked for where none may start",
        "No more threads may start. Go on by yourself and answer.",
        "id",
    )


def test_spawn_calls_of_one_message_are_one_block_and_each_gets_an_answer() -> None:
    first = made("spawn_threads", {"outlines": ["a", "b"], "join": "vote"}, "1")
    wrong = made("spawn_threads", {"outlines": 7}, "2")
    third = made("spawn_threads", {"outlines": ["b", "c"]}, "3")
    spawn, *others = read(first, wrong, third)
    assert spawn == Spawn(outlines("a", "b", "c"), "vote", "1")
    assert sorted(other.answers for other in others) == ["2", "3"]  # type: ignore[union-attr]
    assert all(isinstance(other, Malformed) for other in others)


# --- tools --------------------------------------------------------------------------------


def test_other_calls_are_uses_of_tools_beside_the_block() -> None:
    decisions = read(made("look", {"at": 1}, "1"), spawning(["a"]), made("add", {}, "3"))
    assert decisions == [
        Spawn(outlines("a"), None, "id"),
        Use(ToolCall("1", "look", {"at": 1})),
        Use(ToolCall("3", "add", {})),
    ]


@pytest.mark.parametrize("name", ["fetch", "", "discard_block", "conclude", "y" * 10**6])
def test_a_tool_that_is_not_there_is_refused_in_one_line(name: str) -> None:
    decisions = read(made(name, {}))
    assert "there is no tool" in mistake(decisions).casefold()
    assert decisions[0].told.endswith("only: look, add.")  # type: ignore[union-attr]


def test_calls_without_ids_are_told_apart() -> None:
    decisions = read(made("look", {}, None), made("add", {}, None))
    assert [decision.call.id for decision in decisions] == ["call_0", "call_1"]  # type: ignore[union-attr]


def test_a_block_is_given_up_in_one_line_whatever_else_is_called() -> None:
    gives_up = made("discard_block", {"tried": "a\n  dead end"})
    assert read(made("look", {}), gives_up, discardable=True) == [Discard("a dead end")]
    for args in ({}, {"tried": None}, {"tried": ["x"]}, {"why": 3}):
        [decision] = read(made("discard_block", args), discardable=True)
        assert isinstance(decision, Discard)


# --- results --------------------------------------------------------------------------------


def test_a_message_without_calls_ends_the_thread() -> None:
    assert read(text="4") == [Ended()]
    assert read() == [Ended()]


@pytest.mark.parametrize("text", ['{"value": 3}', '```json\n{"value": 3}\n```\n', ' {"value":3} '])
def test_a_result_is_concluded_by_a_call_or_as_json(text: str) -> None:
    concluded = [Ended('{"value":3,"notes":{}}')]
    assert read(made("conclude", {"value": 3}), result=Found) == concluded
    assert read(made("conclude", {"value": "3"}), made("look", {}), result=Found) == concluded
    assert read(text=text, result=Found) == concluded


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ({}, "value"),
        ({"value": "three"}, "value"),
        ({"value": 0}, "ZeroDivisionError"),
        ({"value": 1, "notes": {"x" * 10**6: "y"}}, "notes"),
        ({"value": "\ud800"}, "Found"),
    ],
)
def test_a_result_that_does_not_fit_is_corrected_once(args: dict[str, Any], named: str) -> None:
    call = made("conclude", args)
    [first] = read(call, result=Found)
    assert named in mistake([first])
    again = read(call, result=Found, notes=[noted(first)])
    assert again == [first._replace(fatal=True)]  # type: ignore[union-attr]


def test_text_that_is_no_result_is_corrected_as_well() -> None:
    for text in ("", "3", "It is 3.", "[" * 100_000, "```\n{}\n```"):
        assert "does not fit Found" in mistake(read(text=text, result=Found), None)


def test_a_wrong_result_leaves_no_other_call_without_its_answer() -> None:
    calls = [made("conclude", {}, "1"), made("look", {}, "2"), made("conclude", {}, "3")]
    decisions = read(*calls, result=Found)
    assert [d.call.id if isinstance(d, Use) else d.answers for d in decisions] == ["1", "2", "3"]  # type: ignore[union-attr]


@pytest.mark.parametrize("nonsense", [[], [""], 7])
def test_a_spawn_that_cannot_be_read_is_corrected_once(nonsense: Any) -> None:
    [first] = read(spawning(nonsense))
    [second] = read(spawning(nonsense), notes=[noted(first)])
    assert mistake([second]) == mistake([first])
    told = [wrong.told for wrong in (first, second)]  # type: ignore[union-attr]
    assert ["It takes" in text for text in told] == [True, False]
    assert "Go on by yourself" in told[1]
    assert read(spawning(["a"]), notes=[noted(first), noted(second)]) == read(spawning(["a"]))


def test_a_correction_of_something_else_is_none_of_a_result_or_a_spawn() -> None:
    spawned, missing, concluded = (
        noted(read(call, result=Found)[0])
        for call in (spawning([]), made("nothing", {}), made("conclude", {}))
    )
    for call, notes in (
        (made("conclude", {}), [spawned, missing]),
        (spawning([]), [concluded, missing]),
    ):
        assert read(call, result=Found, notes=notes) == read(call, result=Found)


# --- anything -------------------------------------------------------------------------------

json_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
known_args = st.fixed_dictionaries(
    {},
    optional={
        "outlines": json_data | st.lists(json_data, max_size=4) | json_data.map(json.dumps),
        "join": json_data | st.sampled_from(["all", "first_success", "k_of_n", "vote"]),
        "k": json_data,
        "tried": json_data,
        "value": json_data,
    },
)
names = st.sampled_from(
    ["spawn_threads", "discard_block", "conclude", "recall_thread", "look"]
) | st.text(max_size=12)
ids = st.none() | st.sampled_from(["", "same"]) | st.text(max_size=4)
any_calls = st.lists(
    st.builds(made, names, known_args | st.dictionaries(st.text(), json_data, max_size=3), ids),
    max_size=5,
)
any_invalid = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.none() | names,
            "args": st.none() | st.text(max_size=20),
            "id": ids,
            "error": st.none() | st.text(max_size=20),
        }
    ),
    max_size=2,
)


@settings(max_examples=300)
@given(
    calls=any_calls,
    invalid=any_invalid,
    text=st.text(max_size=30) | json_data.map(json.dumps),
    may_spawn=st.booleans(),
    discardable=st.booleans(),
    result=st.sampled_from([None, Found]),
    notes=st.lists(st.just(Note(event="malformed", why=MISFIT)), max_size=1),
)
def test_no_list_of_tool_calls_whatsoever_raises(
    calls: list[Any],
    invalid: list[Any],
    text: str,
    may_spawn: bool,
    discardable: bool,
    result: Any,
    notes: list[Note],
) -> None:
    decisions = read(
        *calls,
        invalid=invalid,
        text=text,
        may_spawn=may_spawn,
        discardable=discardable,
        result=result,
        notes=notes,
    )
    assert decisions
    spawns = [decision for decision in decisions if isinstance(decision, Spawn)]
    assert len(spawns) <= may_spawn
    for spawn in spawns:
        assert spawn.outlines
        assert len({outline[1:] for outline in spawn.outlines}) == len(spawn.outlines)
        assert [outline.number for outline in spawn.outlines] == [
            str(i) for i in range(1, len(spawn.outlines) + 1)
        ]
    for decision in decisions:
        if isinstance(decision, Malformed):
            assert len(decision.told) < 500
    if isinstance(decisions[0], Ended | Discard) or getattr(decisions[0], "fatal", False):
        return
    answered = [d.call.id if isinstance(d, Use) else d.answers for d in decisions]  # type: ignore[union-attr]
    expected = [call["id"] or f"call_{i}" for i, call in enumerate(calls)]
    expected += [call["id"] or f"invalid_{i}" for i, call in enumerate(invalid)]
    assert sorted(map(str, answered)) == sorted(expected or ["None"])


def test_arguments_of_any_depth_are_read() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"a": deep}
    assert "does not fit" in mistake(read(made("conclude", deep), result=Found))
    assert read(made("discard_block", {"tried": deep}), discardable=True) == [Discard("")]
    assert "outlines.0" in mistake(read(spawning([deep])))
    assert isinstance(read(made("look", deep))[0], Use)


# --- what is told ----------------------------------------------------------------------------


@pytest.mark.parametrize("visibility", ["isolated", "prefix"])
def test_only_what_may_be_called_is_offered(visibility: Any) -> None:
    spoken = ToolCalls(visibility)

    def offered(**options: Any) -> list[str]:
        given = {"threads": 0, "discardable": False, "result": None, **options}
        return [tool["function"]["name"] for tool in spoken.controls(**given)]

    assert offered() == []
    assert offered(threads=3) == ["spawn_threads"]
    assert offered(threads=3, discardable=True, result=Found) == [
        "spawn_threads",
        "discard_block",
        "conclude",
    ]
    [spawn] = spoken.controls(threads=3, discardable=False, result=None)
    assert "At most 3 threads" in spawn["function"]["description"]
    sees = {"isolated": "only its outline", "prefix": "this conversation"}[visibility]
    assert f"sees {sees}" in spawn["function"]["description"]
    json.dumps(spawn)


def test_the_join_is_one_line_for_each_thread_under_its_id() -> None:
    shown = [Shown("1", "4", id="0.1"), Shown("2", "", id="0.2"), Shown("3-4", "both: 5")]
    assert SPOKEN.join(shown) == "[0.1] 4\n[0.2]\n[3-4] both: 5"


def test_a_visibility_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidOption, match="'prefix' or 'isolated'"):
        ToolCalls("shared")  # type: ignore[arg-type]
