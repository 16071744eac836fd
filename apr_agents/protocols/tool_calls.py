"""Spawn and join as tool calls, for any chat model that answers messages.

The model spawns with the tool ``spawn_threads``, gives a block up with ``discard_block`` and,
in a thread with a result schema, ends with ``conclude``. Whatever else it calls is a tool of
its own, or refused in one line. A thread starts from its outline as a human message; its
result comes back as the answer to the call. Only tool calls of the model's own messages
count, so nothing in a document or in a tool's result can spawn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, get_args

from langchain_core.messages import AIMessage
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from apr_agents.errors import InvalidOption
from apr_agents.protocols.base import (
    Decision,
    Discard,
    Ended,
    Malformed,
    Profile,
    Shown,
    Spawn,
    Use,
    Visibility,
)
from apr_agents.types import LANE, Note, Outline, ToolCall

SPAWN, DISCARD, CONCLUDE, RECALL = "spawn_threads", "discard_block", "conclude", "recall_thread"

MISFIT = "the result does not fit"

LONGEST = 200
"""Characters of a model's own words in what it is told about a mistake."""


def spawn_description(visibility: Visibility, threads: int) -> str:
    """What a model reads about ``spawn_threads`` when it may start so many threads."""
    sees = "this conversation" if visibility == "prefix" else "only its outline"
    return (
        f"Work on independent subtasks at the same time. Each outline starts a thread that sees "
        f"{sees} and returns a short result; you get all results at once, in this order. Use it "
        "when the task has parts that do not need each other's results; small tasks and chains of "
        f"dependent steps are faster without it. At most {threads} threads in one call."
    )


class ThreadOutline(BaseModel):
    """One subtask."""

    text: str = Field(description="What this thread is to do, complete in itself.")
    tools: list[str] | None = Field(
        default=None, description="Names of the tools it may use; leave out for all."
    )


def _as_list(outlines: Any) -> Any:
    """Some models write the list as a string: JSON, or one outline."""
    if not isinstance(outlines, str):
        return outlines
    try:
        read = json.loads(outlines)
    except (ValueError, RecursionError):
        return [outlines]
    if isinstance(read, list):
        return read
    return [read] if isinstance(read, str | dict) else [outlines]


Outlines = Annotated[
    list[str | ThreadOutline],
    Field(min_length=1, description="One subtask for each thread."),
    BeforeValidator(_as_list),
]
Joins = Literal["all", "first_success", "k_of_n", "vote"]
JoinName = Annotated[
    Joins,
    Field(
        description="Wait for all threads, for the first success, for k of them, or for a "
        "majority that agrees; the others are stopped."
    ),
]
Threads = Annotated[int, Field(ge=1, description="How many, when join is k_of_n.")]


class SpawnArgs(BaseModel):
    """Arguments of ``spawn_threads``."""

    outlines: Outlines
    join: JoinName | None = None
    k: Threads = 1

    @model_validator(mode="before")
    @classmethod
    def _needed(cls, args: Any) -> Any:
        """Models fill in what they need not: no block is lost to a join without a meaning."""
        if not isinstance(args, dict):
            return args
        needed = {"outlines": args.get("outlines")}
        if args.get("join") in get_args(Joins):
            needed["join"] = args["join"]
        if args.get("join") == "k_of_n" and "k" in args:
            needed["k"] = args["k"]
        return needed

    def spawn(self, answers: str | None) -> Spawn:
        """The decision; outlines that say the same count once."""
        distinct: dict[tuple[str, tuple[str, ...] | None], None] = {}
        for outline in self.outlines:
            asked = ThreadOutline(text=outline) if isinstance(outline, str) else outline
            if asked.text.strip():
                tools = None if asked.tools is None else tuple(asked.tools)
                distinct.setdefault((asked.text.strip(), tools))
        outlines = [Outline(str(i), *outline) for i, outline in enumerate(distinct, start=1)]
        join = f"{self.k}_of_n" if self.join == "k_of_n" else self.join
        return Spawn(outlines, join, answers)


EMPTY = f"the outlines of {SPAWN} are empty"


def unreadable(error: ValidationError) -> str:
    """What is wrong with arguments of ``spawn_threads``, in one line."""
    return f"the arguments of {SPAWN} cannot be read ({_first(error)})"


def correction(why: str) -> str:
    """What a model reads whose ``spawn_threads`` was not carried out."""
    return f'Not done: {why}. It takes {{"outlines": ["first subtask", "second subtask"]}}.'


class DiscardArgs(BaseModel):
    """Arguments of ``discard_block``."""

    tried: str = Field(description="One line on what was tried and why it led nowhere.")


class ToolCalls:
    """The protocol of chat models.

    Args:
        visibility: ``"isolated"``: a thread sees the system prompt and its outline;
            ``"prefix"``: its parent's messages as well.
    """

    name = "tool_calls"
    profile = Profile(
        says=f"calls the tool {SPAWN}",
        sees="the system prompt and its outline",
        returns="the call's answer: a line for each thread",
        paper="–",
    )

    def __init__(self, visibility: Visibility = "isolated") -> None:
        if visibility not in ("prefix", "isolated"):
            raise InvalidOption("visibility", visibility, "'prefix' or 'isolated'")
        self.visibility = visibility

    def controls(
        self, *, threads: int, discardable: bool, result: type[BaseModel] | None
    ) -> tuple[dict[str, Any], ...]:
        """The tools by which a model says what it decides.

        Args:
            threads: how many one call may spawn; 0 offers no such tool.
            discardable: whether the model may give its latest block up.
            result: what a thread must return, if that has a schema.
        """
        return _controls(self.visibility, threads, discardable, result)

    def read(
        self,
        message: AIMessage,
        *,
        may_spawn: bool,
        discardable: bool,
        result: type[BaseModel] | None,
        tools: Collection[str],
        notes: Sequence[Note],
    ) -> list[Decision]:
        """What ``message`` decides: never raises, whatever a model calls.

        Args:
            tools: names of the thread's tools.
            notes: what the thread has been told so far. A spawn or a result is corrected once.
        """
        corrected = any(note.why.startswith(MISFIT) for note in notes)
        respawns = any(note.told == correction(note.why) for note in notes)
        decisions: list[Decision] = []
        spawns: list[Spawn] = []
        for number, call in enumerate(message.tool_calls):
            name, args, call_id = call["name"], call["args"], call["id"] or f"call_{number}"
            if name == SPAWN and name not in tools:
                read = _spawn(args, call_id, may_spawn=may_spawn, corrected=respawns)
                spawns += [read] if isinstance(read, Spawn) else []
                decisions += [] if isinstance(read, Spawn) else [read]
            elif name == DISCARD and discardable:
                tried = args.get("tried")
                return [Discard(" ".join(tried.split()) if isinstance(tried, str) else "")]
            elif name == CONCLUDE and result is not None:
                concluded = _concluded(result, args, call_id, corrected)
                if isinstance(concluded, Ended) or concluded.fatal:
                    return [concluded]
                decisions.append(concluded)
            elif name in tools:
                decisions.append(Use(ToolCall(call_id, name, args)))
            else:
                why = f"there is no tool {_short(name)} here"
                told = f"Not done: {why}, only: {', '.join(tools) or 'none'}."
                decisions.append(Malformed(why, told, call_id))
        for number, invalid in enumerate(message.invalid_tool_calls):
            why = f"the arguments of {_short(invalid['name'])} are no valid JSON"
            told = f"Not done: {why}. Correct them or go on without."
            decisions.append(Malformed(why, told, invalid["id"] or f"invalid_{number}"))
        if spawns:
            decisions[:0] = _together(spawns)
        if decisions:
            return decisions
        return [Ended() if result is None else _concluded(result, message.text, None, corrected)]

    def join(self, shown: Sequence[Shown]) -> str:
        """The answer to ``spawn_threads``."""
        return "\n".join(f"[{one.id or one.number}] {one.text}".rstrip() for one in shown)

    def decline(self) -> str:
        """The answer when no thread may start."""
        return "No thread was started: the limits of this run allow none. Go on by yourself."

    def backtrack(self, tried: str) -> str:
        """What the model reads in place of a block that it gave up."""
        return f"(An earlier attempt was given up: {tried or 'a block of threads'})"

    def lane(self) -> Outline:
        """The outline of the parent's own lane."""
        text = (
            "Your threads are running. Meanwhile, go on with the part of the task that is "
            "nobody's yet; their results follow when you stop."
        )
        return Outline(LANE, text)

    def conclusion(self, text: str) -> str:
        """The result a thread came to: its last message."""
        return text.strip()


@lru_cache(maxsize=256)
def _controls(
    visibility: Visibility, threads: int, discardable: bool, result: type[BaseModel] | None
) -> tuple[dict[str, Any], ...]:
    offered = []
    if threads:
        offered.append(_tool(SPAWN, spawn_description(visibility, threads), SpawnArgs))
    if discardable:
        description = "Forget your latest threads and their results, and try another way."
        offered.append(_tool(DISCARD, description, DiscardArgs))
    if result is not None:
        offered.append(_tool(CONCLUDE, "End your work: return its result.", result))
    return tuple(offered)


def _tool(name: str, description: str, args: type[BaseModel]) -> dict[str, Any]:
    schema = {key: value for key, value in args.model_json_schema().items() if key != "description"}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": schema},
    }


def _spawn(
    args: dict[str, Any], call_id: str, *, may_spawn: bool, corrected: bool
) -> Spawn | Malformed:
    if not may_spawn:
        told = "No more threads may start. Go on by yourself and answer."
        return Malformed("threads asked for where none may start", told, call_id)
    try:
        spawn = SpawnArgs.model_validate(args).spawn(call_id)
    except ValidationError as error:
        why = unreadable(error)
    else:
        if spawn.outlines:
            return spawn
        why = EMPTY
    again = f"Not done again: {why}. Go on by yourself and answer."
    return Malformed(why, again if corrected else correction(why), call_id)


def _together(spawns: Sequence[Spawn]) -> list[Decision]:
    """One block for all the spawn calls of a message; the first call gets its results."""
    first, *others = spawns
    distinct = dict.fromkeys(outline[1:] for spawn in spawns for outline in spawn.outlines)
    outlines = [Outline(str(i), *outline) for i, outline in enumerate(distinct, start=1)]
    why, told = f"{SPAWN} called again in one message", "Done together with the first call."
    repeated = [Malformed(why, told, other.answers) for other in others]
    return [first._replace(outlines=outlines), *repeated]


def _concluded(
    result: type[BaseModel], said: str | dict[str, Any], call_id: str | None, corrected: bool
) -> Ended | Malformed:
    try:
        text = _unfenced(said) if isinstance(said, str) else json.dumps(said)
        return Ended(result.model_validate_json(text).model_dump_json())
    except Exception as error:  # a schema may have validators of its own
        mistake = _first(error) if isinstance(error, ValidationError) else repr(error)
        why = f"{MISFIT} {result.__name__} ({mistake[:LONGEST]})"
        told = f"Not accepted: {why}. Call {CONCLUDE} with a result that fits."
        return Malformed(why, told, call_id, fatal=corrected)


def _unfenced(text: str) -> str:
    fenced = re.fullmatch(r"\s*```\w*\n(.*)```\s*", text, re.DOTALL)
    return fenced[1] if fenced else text


def _first(error: ValidationError) -> str:
    """The first mistake; of a union's, that of the branch that fits best."""
    first = max(error.errors(include_url=False, include_input=False), key=lambda e: len(e["loc"]))
    where = ".".join(map(str, first["loc"]))
    return (f"{where}: {first['msg']}" if where else first["msg"])[:LONGEST]


def _short(name: str | None) -> str:
    return repr(name or "")[:LONGEST]
