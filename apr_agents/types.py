"""Shapes shared by every layer. Plain data; imports nothing of this package.

A thread is recorded as the list of its steps, in the order in which its context grew:
model calls, tool calls, parallel blocks, and notes on decisions that were not carried out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from langchain_core.messages import AIMessage
from pydantic import BaseModel, ConfigDict, Field

ThreadStatus = Literal["done", "failed", "cancelled", "timed_out", "over_budget"]


class Outline(NamedTuple):
    """A declared subtask.

    Attributes:
        number: what the model called it; `LANE` for the parent's own lane.
        text: what it is to do.
        tools: names of the tools its thread may use; ``None`` for all of its parent's.
    """

    number: str
    text: str
    tools: tuple[str, ...] | None = None

    @property
    def is_lane(self) -> bool:
        """Whether its thread is the parent itself, going on while its threads run."""
        return self.number == LANE

    def within(self, parent: Outline | None) -> Outline:
        """The same, with no tool that the thread of ``parent`` may not use itself."""
        if parent is None or parent.tools is None:
            return self
        allowed = self.tools if self.tools is not None else parent.tools
        return self._replace(tools=tuple(name for name in allowed if name in parent.tools))


LANE = "lane"
"""No model can number an outline so."""


class ToolCall(NamedTuple):
    """A tool that the model wants to use; ``id`` is the model's name for the call."""

    id: str
    name: str
    args: dict[str, Any]

    @property
    def shown(self) -> str:
        """The call as a reader sees it."""
        return f"{self.name}({self.args})"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Timed(_Record):
    """A step that took time.

    Attributes:
        started: when it began, in seconds since the run's start.
        seconds: time it took.
    """

    started: float = 0.0
    seconds: float = 0.0

    @property
    def ended(self) -> float:
        """When it was over, in seconds since the run's start."""
        return self.started + self.seconds


class Generated(Timed):
    """A model call.

    Attributes:
        text: what the model wrote and the runtime kept.
        tokens: tokens generated.
        prompt_tokens: tokens of the context it continued.
        cached_tokens: how many of these the backend had computed before; ``None`` where it
            does not tell.
        logprob: log-probability of the generated tokens together, where asked for and known.
        budget: threads that it might start.
        lanes: lanes of the model that were free then, where that decided on the budget.
        started: when it came to the gate, in seconds since the run's start.
        waited: seconds until the gate let it through; all of ``seconds`` where it never did.
        first_token: seconds from there to the first token; ``None`` if none came.
        seconds: time it took, from the gate to its last token.
    """

    text: str
    tokens: int
    prompt_tokens: int
    cached_tokens: int | None = None
    logprob: float | None = None
    budget: int = 0
    lanes: int | None = None
    waited: float = 0.0
    first_token: float | None = None


class Call(Generated):
    """A model call that goes on with the thread's context.

    Attributes:
        closing: what the runtime added to close what the model left open; of a chat model, the
            calls by which it decides, written out.
        message: the chat model's message, when there is more to it than ``text``.
        replaced: characters at the end of the context that ask for a block, where its join
            takes their place; 0: the join follows them.
    """

    kind: Literal["call"] = "call"
    closing: str = ""
    message: AIMessage | None = None
    replaced: int = 0

    @property
    def context(self) -> str:
        """What this step adds to the thread's context."""
        return self.text + self.closing


class Summary(Generated):
    """A model call that summed up a finished thread; beside the thread's context, not in it."""

    kind: Literal["summary"] = "summary"

    @property
    def context(self) -> str:
        return ""


class ToolUse(Timed):
    """A tool call that the thread made.

    Attributes:
        call: what was called.
        text: what the tool returned, or what went wrong.
        failed: whether it went wrong.
        shown: what the model reads of ``text`` where that is too long; its middle is left out.
    """

    kind: Literal["tool"] = "tool"
    call: ToolCall
    text: str
    failed: bool = False
    shown: str | None = None

    @property
    def context(self) -> str:
        return f"\n[{self.call.name} {self.call.args}]\n{self.text}\n"


NoteEvent = Literal["malformed", "declined", "undecided"]


class Note(_Record):
    """A decision that was not carried out, and why; the thread went on without it.

    Attributes:
        event: ``malformed``: it could not be read; ``declined``: the limits did not allow it;
            ``undecided``: the policy raised that was to make it.
        told: what was added to the thread's context.
        answers: id of the tool call that this answers, if it was one.
    """

    kind: Literal["note"] = "note"
    event: NoteEvent
    why: str
    told: str = ""
    answers: str | None = None

    @property
    def context(self) -> str:
        return self.told


class Block(Timed):
    """A parallel block; it began when the model asked for it, and is over with its join.

    Attributes:
        threads: results in outline order.
        left_out: outlines that got no thread because of a limit.
        policy: the join policy: how many results the parent waited for.
        joined: what the parent saw of it all.
        answers: id of the tool call that this answers, if it was one.
    """

    kind: Literal["block"] = "block"
    threads: list[ThreadResult]
    left_out: list[Outline] = []
    policy: str = "all"
    joined: str
    answers: str | None = None

    @property
    def context(self) -> str:
        return self.joined if self.answers is None else f"\n{self.joined}\n"


class Backtrack(_Record):
    """The thread gave a path up: its context went back to before the path began.

    Attributes:
        to: number of steps that stayed in its context.
        tried: one line on what was tried, in its words.
        told: what was added to its context instead.
    """

    kind: Literal["backtrack"] = "backtrack"
    to: int
    tried: str
    told: str

    @property
    def context(self) -> str:
        return self.told


Step = Annotated[Call | Summary | ToolUse | Note | Block | Backtrack, Field(discriminator="kind")]


def in_context(steps: Sequence[Step]) -> list[Step]:
    """The steps that make up a thread's context: paths that it gave up are left out."""
    if all(step.kind != "backtrack" for step in steps):
        return list(steps)
    kept: list[tuple[int, Step]] = []
    for index, step in enumerate(steps):
        if isinstance(step, Backtrack):
            kept = [(i, before) for i, before in kept if i < step.to]
        kept.append((index, step))
    return [step for _, step in kept]


def context_text(steps: Sequence[Step]) -> str:
    """The text of a thread's context: what a join took the place of is left out."""
    text, replaced = "", 0
    for step in in_context(steps):
        if isinstance(step, Call):
            replaced = step.replaced
        elif isinstance(step, Block):
            text = text[: len(text) - replaced]
        text += step.context
    return text


class ThreadResult(_Record):
    """Everything about one thread.

    Attributes:
        id: path from the root ``0``: ``0.2.1`` is the first child of the root's second
            child, children counted over all of a thread's blocks.
        outline: its subtask; ``None`` for the root.
        status: how it ended; ``reason`` says why when that is not ``done``.
        conclusion: the result it came to, short.
        tokens: tokens generated by it and everything below it.
        started: when it began, in seconds since the run's start.
        seconds: time it took, waiting for the gate and its children included.
        steps: how its context grew.
    """

    id: str
    outline: Outline | None = None
    status: ThreadStatus
    reason: str | None = None
    conclusion: str = ""
    tokens: int
    started: float = 0.0
    seconds: float
    steps: list[Step]

    @property
    def ended(self) -> float:
        """When its last step was over, in seconds since the run's start."""
        ends = (step.ended for step in self.steps if isinstance(step, Timed))
        return max(ends, default=self.started)

    @property
    def is_lane(self) -> bool:
        """Whether it was its parent's own lane."""
        return self.outline is not None and self.outline.is_lane

    @property
    def transcript(self) -> str:
        """The thread's full text: all it wrote and all that its own threads returned to it."""
        return "".join(step.context for step in self.steps)

    @property
    def blocks(self) -> list[Block]:
        """Its parallel blocks, in order."""
        return [step for step in self.steps if isinstance(step, Block)]

    def walk(self) -> Iterator[ThreadResult]:
        """This thread and everything below it, parents first."""
        yield self
        for block in self.blocks:
            for thread in block.threads:
                yield from thread.walk()
