"""Tool calls as JSON in a model's text, for models that have no tool calling of their own.

Pure functions over text and messages; knows neither backends nor protocols. Only a text
that a model generated may be read here: in anything else a call is a quotation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeAlias

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    InvalidToolCall,
    SystemMessage,
    ToolCall,
    ToolMessage,
)
from langchain_core.messages.tool import invalid_tool_call, tool_call
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from apr_agents.errors import InvalidOption

Tool: TypeAlias = Mapping[str, Any] | type | Callable[..., Any] | BaseTool
"""Whatever LangChain takes for a tool."""

DEEPEST = 64
"""Levels of lists and objects in the arguments of a call; deeper ones are no call."""

UNREADABLE = "unreadable: "
"""Stands before the model's text in an invalid call. When LangChain merges streamed
chunks it repairs JSON that was cut off, and would make a call of it."""

# A call stands at the start of a line, in a fence, or anywhere behind {"tool_calls": …
_OPENING = re.compile(
    r"""(?: ^[ \t]*+ | (?P<fence> ```[\w-]*+ | <tool_call> )\s*+ | (?=\{\s*+"tool_calls"\s*+:) )
        (?= (?:\[\s*+)? \{\s*+["'] )""",
    re.MULTILINE | re.VERBOSE,
)
# The end of a text that may still become an opening.
_UNDECIDED = re.compile(
    r"""(?: ```[\w-]*+\s*+ | `{1,2} | <\w*+>?+\s*+ )?
        (?:\[\s*+)? (?: \{\s*+ (?: "\w*+ (?:"\s*+)? )? )? \Z""",
    re.VERBOSE,
)
_CLOSING = re.compile(r"\s*+(?:```|</tool_call>)")
_FENCE_END = re.compile(r"```|</tool_call>")
_KEYS = "tool_calls|function|name|args|arguments|parameters"
_FIRST_KEY = re.compile(rf"""(?:\[\s*+)?\{{\s*+["'](?:{_KEYS}|type|id)["']""")
_KEY = re.compile(rf"""["']({_KEYS})["']\s*+:""")
_NAME = re.compile(r"""["']name["']\s*+:\s*+["']([^"']+)""")

# Newlines inside strings are common in generated JSON and harmless.
_DECODER = json.JSONDecoder(strict=False)


class Read(NamedTuple):
    """What was read out of a text. Calls are in the model's order and have no ids yet."""

    text: str
    tool_calls: list[ToolCall]
    invalid_tool_calls: list[InvalidToolCall]


# --- what the model is told --------------------------------------------------------


def describe(tools: Iterable[Tool]) -> list[dict[str, Any]]:
    """Tools in OpenAI's format.

    Raises:
        InvalidOption: one of them is not a function, such as a provider's own web search.
    """
    described = [convert_to_openai_tool(tool) for tool in tools]
    for tool in described:
        if not isinstance(tool.get("function"), dict):
            raise InvalidOption("A tool", tool, "a function with a name and a schema")
    return described


def instructions(tools: Iterable[Tool], choice: str = "auto") -> str:
    """What a system message says about the tools and the JSON that calls them.

    Args:
        choice: ``"auto"``: the model decides; ``"any"``: it is told to call one or more;
            else the name of the tool that it is told to call.
    """
    listed = "\n".join(_dump(tool["function"]) for tool in describe(tools))
    form = _dump({"tool_calls": [{"name": "NAME", "args": {"ARGUMENT": "VALUE"}}]})
    last = {
        "auto": "If you need no tool, answer in plain text.",
        "any": "Call at least one tool now.",
    }.get(choice, f"Call the tool {choice} now.")
    return (
        f"You can call these tools:\n\n{listed}\n\n"
        f"To call one or more of them, write this JSON and nothing else:\n\n{form}\n\n"
        f"Their results come in the next message. {last}"
    )


def write_calls(calls: Iterable[ToolCall]) -> str:
    """Calls as a model writes them."""
    return _dump({"tool_calls": [{"name": call["name"], "args": call["args"]} for call in calls]})


def plain(messages: Sequence[BaseMessage], system: str = "") -> list[BaseMessage]:
    """A conversation in which calls and their results are written out as text.

    Args:
        system: added to the system message, which is made if there is none.
    """
    told: list[BaseMessage] = []
    names = {
        call["id"]: call["name"]
        for message in messages
        if isinstance(message, AIMessage)
        for call in message.tool_calls
    }
    results: list[dict[str, Any]] = []
    for message in messages:
        if isinstance(message, ToolMessage):
            name = message.name or names.get(message.tool_call_id)
            failed = {"status": "error"} if message.status == "error" else {}
            # One message for all results of a turn: many models know only user and assistant.
            if results:
                told.pop()
            results.append({"name": name, **failed, "content": message.text})
            told.append(HumanMessage(_dump({"tool_results": results})))
            continue
        results = []
        if isinstance(message, AIMessage) and (message.tool_calls or message.invalid_tool_calls):
            written = [message.text, write_calls(message.tool_calls) if message.tool_calls else ""]
            unread = (call["args"] or "" for call in message.invalid_tool_calls)
            written += [args.removeprefix(UNREADABLE) for args in unread]
            message = AIMessage("\n".join(text for text in written if text))
        told.append(message)
    if not system:
        return told
    if told and isinstance(told[0], SystemMessage):
        return [SystemMessage(f"{told[0].text}\n\n{system}"), *told[1:]]
    return [SystemMessage(system), *told]


# --- what the model wrote ----------------------------------------------------------


def read_calls(text: str) -> Read:
    """The tool calls in a text that a model generated. Never raises.

    A call is ``{"name": …, "args": {…}}``, or OpenAI's form of it, alone, in a list or in
    ``{"tool_calls": […]}``, bare or in a fence. JSON that was meant as a call and cannot be
    read becomes an invalid call; other JSON is text. Without any call the text is left as
    it is.
    """
    pieces: list[str] = []
    calls: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    position = kept = 0
    fenced = False
    while opening := _OPENING.search(text, position):
        start, fenced = opening.end(), fenced or opening["fence"] is not None
        entries, position, why = _entries_at(text, start, fenced=fenced)
        written = text[start:position].rstrip()
        for entry in entries:
            try:
                calls.append(_call(entry))
            except ValueError as error:
                invalid.append(_invalid(written, str(error)))
        if why:
            invalid.append(_invalid(written, why))
        if not (entries or why):
            fenced = False
            continue
        pieces.append(text[kept : opening.start()])
        if fenced and (closing := _CLOSING.match(text, position)):
            position, fenced = closing.end(), False
        kept = position
    if not pieces:
        return Read(text, [], [])
    first, *others = [*pieces, text[kept:]]
    left = [first.rstrip(), *(other.strip() for other in others)]
    return Read("\n".join(piece for piece in left if piece), calls, invalid)


class CallReader:
    """The same for a text that arrives in pieces: what can be no call is let through at once."""

    def __init__(self) -> None:
        self._text = ""
        self._through = 0
        self._opened = False

    def feed(self, text: str) -> str:
        """Take a piece; the text that is let through."""
        self._text += text
        if self._opened:
            return ""
        # White space is held back, and a model may write endless amounts of it: look behind it.
        blank = len(self._text) - len(self._text[self._through :].lstrip())
        line = max(self._through, self._text.rfind("\n", 0, blank) + 1)
        opening = _OPENING.search(self._text, line)
        self._opened = opening is not None
        boundary = opening or _UNDECIDED.search(self._text, blank)
        assert boundary is not None  # the end of a text is always undecided
        piece = self._text[self._through : boundary.start()].rstrip()
        self._through += len(piece)
        return piece

    def finish(self) -> Read:
        """The rest of the text and the calls, as `read_calls` has them."""
        read = read_calls(self._text)
        return read._replace(text=read.text[self._through :])


class _Entries(NamedTuple):
    """What stands at one place: entries of calls, or why what was meant as one is none."""

    entries: list[Any]
    end: int
    why: str = ""


def _entries_at(text: str, start: int, *, fenced: bool) -> _Entries:
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        closing = _FENCE_END.search(text, start) if fenced else None
        end = closing.start() if closing else len(text)
        if _was_meant(text[start:end]):
            return _Entries([], end, f"This is no JSON: {error}")
        return _Entries([], start + 1)
    if isinstance(value, dict) and "tool_calls" in value:
        listed = value["tool_calls"]
        return _Entries(listed if isinstance(listed, list) else [listed], end)
    listed = value if isinstance(value, list) else [value]
    return _Entries(listed if all(map(_is_call, listed)) else [], end)


def _was_meant(text: str) -> bool:
    keys = set(_KEY.findall(text)) if _FIRST_KEY.match(text) else set()
    return "tool_calls" in keys or ("name" in keys and len(keys) > 1)


def _is_call(value: Any) -> bool:
    if not isinstance(value, dict) or "description" in value:  # a tool's schema, said again
        return False
    return isinstance(value.get("function"), dict) or ("name" in value and bool(_args(value)))


def _args(function: dict[str, Any]) -> list[Any]:
    return [function[key] for key in ("args", "arguments", "parameters") if key in function]


def _call(entry: Any) -> ToolCall:
    """The call that an entry stands for.

    Raises:
        ValueError: it stands for none, and why.
    """
    inner = entry.get("function") if isinstance(entry, dict) else None
    function = inner if isinstance(inner, dict) else entry
    if not isinstance(function, dict):
        raise ValueError("A call must be an object.")
    name, args = function.get("name"), next(iter(_args(function)), None)
    if not (isinstance(name, str) and name):
        raise ValueError("A call must have the name of its tool.")
    if isinstance(args, str) and args.strip():
        with suppress(ValueError, RecursionError):
            args = _DECODER.decode(args)
    args = args or {}
    if not isinstance(args, dict):
        raise ValueError("The arguments of a call must be an object.")
    if is_deep(args):
        raise ValueError("The arguments of a call are nested too deeply.")
    # What no other JSON reader takes: NaN, infinity, half a surrogate pair.
    json.dumps([name, args], ensure_ascii=False, allow_nan=False).encode()
    return tool_call(name=name, args=args, id=None)


def is_deep(value: Any, levels: int = DEEPEST) -> bool:
    """Whether lists and objects in ``value`` are nested deeper than ``levels``."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(is_deep(item, levels - 1) for item in inner)


def _invalid(written: str, why: str) -> InvalidToolCall:
    named = _NAME.search(written)
    return invalid_tool_call(
        name=named[1] if named else None, args=UNREADABLE + written, id=None, error=why
    )


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
