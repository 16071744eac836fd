"""How a model says *spawn* and *join*: the interface. Knows text; never graphs or backends.

A protocol for models that continue text owns a context that grows at its end: the prompt,
what the model wrote, what its threads returned. It reads decisions out of generated text
only, so tags in a question or in a thread's result stay inert.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple

from langchain_core.messages import AnyMessage, HumanMessage

from apr_agents.types import LANE, Outline, ThreadStatus, ToolCall

Visibility = Literal["prefix", "isolated"]

DEEPEST = 16
"""Blocks within blocks that are told apart in a written trace."""


class Spawn(NamedTuple):
    """The model asks for threads.

    Attributes:
        outlines: distinct, in the model's order.
        join: the join policy it asks for; ``None`` leaves that to the agent.
        answers: id of the tool call that says so, if it is one.
        alike: whether all outlines say the same, so that those beyond a limit are not missed.
        replaced: characters at the end of the text that say so and that the join takes the
            place of; 0: the join follows them.
    """

    outlines: list[Outline]
    join: str | None = None
    answers: str | None = None
    alike: bool = False
    replaced: int = 0


class Use(NamedTuple):
    """The model wants to use a tool."""

    call: ToolCall


class Discard(NamedTuple):
    """The model gives up the path that began with its latest block, and says what it tried."""

    tried: str


class Ended(NamedTuple):
    """The thread has ended by itself.

    Attributes:
        conclusion: if it stated one apart from its text.
        reason: why, when its status is not ``done``.
    """

    conclusion: str | None = None
    status: ThreadStatus = "done"
    reason: str | None = None


class Malformed(NamedTuple):
    """A decision that cannot be read: the thread goes on sequentially.

    Attributes:
        why: what is wrong with it.
        told: what the model is told about it.
        answers: id of the tool call it was, if it was one.
        fatal: the thread has been told before and ends.
    """

    why: str
    told: str = ""
    answers: str | None = None
    fatal: bool = False


class Cut(NamedTuple):
    """The output broke off before there was a decision in it; ``why`` it did."""

    why: str


class Undecided(NamedTuple):
    """A function of the user's raised that was to decide something, and ``why`` tells what."""

    why: str


Decision = Spawn | Use | Discard | Ended | Malformed | Cut | Undecided


class Shown(NamedTuple):
    """What the parent sees of one thread, or of several.

    Attributes:
        number: number of its outline.
        text: what stands for it.
        verbatim: whether ``text`` is the thread's own continuation of its header, white
            space included.
        id: of the thread, if it is one.
        asked: text of its outline.
    """

    number: str
    text: str
    verbatim: bool = False
    id: str = ""
    asked: str = ""


class TraceThread(NamedTuple):
    """A thread of a written trace.

    Attributes:
        number: number of its outline.
        text: all that it wrote, as it stands, its own blocks included.
        conclusion: the result it came to, as a run would record it.
        blocks: its own parallel blocks, in order.
    """

    number: str
    text: str
    conclusion: str
    blocks: list[TraceBlock]


class TraceBlock(NamedTuple):
    """A parallel block of a written trace.

    Attributes:
        outlines: numbered ones, the first of each number, in order.
        threads: the first of each number, in order; fewer than outlines if some are missing.
        conclusion: what was concluded from them inside the block; ``None`` if nothing was.
        span: where it begins and ends, in the text that it is part of.
    """

    outlines: list[Outline]
    threads: list[TraceThread]
    conclusion: str | None
    span: tuple[int, int]


class Profile(NamedTuple):
    """A protocol in a few words.

    Attributes:
        says: how the model asks for threads.
        sees: what a thread sees.
        returns: what comes back to the parent.
        paper: where it is from.
    """

    says: str
    sees: str
    returns: str
    paper: str


class Parser(ABC):
    """Reads one thread's generated text as it arrives."""

    @abstractmethod
    def feed(self, text: str) -> Decision | None:
        """Take the next piece of generated text; a decision as soon as one is complete.

        Text behind the decision is dropped: it was written before its answer was known.
        """

    @abstractmethod
    def finish(self) -> Decision:
        """The model stopped by itself. Never raises."""

    @property
    @abstractmethod
    def text(self) -> str:
        """Everything taken so far, up to the decision; the tag that ends a thread is left out."""


class TextProtocol(ABC):
    """A protocol for models that continue text."""

    name: str
    profile: Profile
    visibility: Visibility
    """Whether a thread sees its parent's whole context or only its own outline."""

    @property
    @abstractmethod
    def summary_opening(self) -> str:
        """What is appended to a thread's context to have the model sum it up."""

    @property
    @abstractmethod
    def summary_stop(self) -> str:
        """What ends such a summary."""

    @property
    @abstractmethod
    def stops(self) -> tuple[str, ...]:
        """Texts at which a backend may stop early; the parser decides without them too."""

    def prepare(self, messages: Sequence[AnyMessage], budget: int) -> list[AnyMessage]:
        """The messages to render: tags made inert, the budget of threads announced."""
        prepared = [
            message.model_copy(update={"content": self.inert(message.text)}) for message in messages
        ]
        asked = question_at(prepared)
        announced = self.announce(prepared[asked].text, budget)
        prepared[asked] = prepared[asked].model_copy(update={"content": announced})
        return prepared

    @abstractmethod
    def inert(self, text: str) -> str:
        """``text`` with the protocol's tags broken by a space, so that they mean nothing."""

    def announce(self, question: str, budget: int) -> str:
        """The question, and how many threads may be used for it."""
        return f"{question}\nThreads: {budget}"

    @abstractmethod
    def opening(self) -> str:
        """What follows the rendered prompt, before the model writes."""

    @abstractmethod
    def parser(self, *, thread: bool, written: str) -> Parser:
        """A parser for what comes next.

        Args:
            thread: whether a thread writes it, behind its header.
            written: what the same model wrote before, and what it was told since.
        """

    def lane(self) -> Outline:
        """The outline of the parent's own lane."""
        return Outline(LANE, "the parent's own lane")

    @abstractmethod
    def block(self, outlines: Sequence[Outline]) -> str:
        """How a model asks for threads: what demonstrations show it."""

    @abstractmethod
    def resume(self, conclusion: str) -> str:
        """How it goes on behind a join, if it has to conclude something first; likewise."""

    @abstractmethod
    def end(self, result: str, *, thread: bool) -> str:
        """How it ends at ``result``, behind its text; likewise.

        Args:
            thread: whether it is a thread, behind its header.
        """

    @abstractmethod
    def thread_header(self, outline: Outline) -> str:
        """What is appended to a context to start the thread of ``outline``."""

    def question(self, outline: Outline, context: str) -> str:
        """What an isolated thread is asked, where its parent's context is ``context``."""
        return outline.text

    @abstractmethod
    def join(self, shown: Sequence[Shown]) -> str:
        """What is appended to the parent's context when its threads are back."""

    @abstractmethod
    def decline(self) -> str:
        """What is appended instead when no thread may start; the model goes on by itself."""

    def backtrack(self, tried: str) -> str:
        """What is appended to the context before a path when the model gave the path up."""
        return f"\n(given up: {self.inert(tried) or 'a block of threads'})\n"

    @abstractmethod
    def close(self, decision: Decision, text: str) -> str:
        """What the runtime adds to close what the model left open in ``text``."""

    @abstractmethod
    def conclusion(self, text: str) -> str:
        """The result a thread came to: the short end of its text."""

    @abstractmethod
    def answer(self, text: str, *, complete: bool) -> str | None:
        """The final answer in what the root wrote; ``None`` when it gave none.

        Args:
            complete: whether the root ended by itself, rather than at a limit.
        """

    @abstractmethod
    def read_trace(self, text: str) -> list[TraceBlock]:
        """The parallel blocks of a whole trace, threads and joins written out, in order.

        It is read as leniently as a model's output: tags that are missing are where the next
        one needs them. Never raises, and takes time linear in the text.
        """


def question_at(messages: Sequence[AnyMessage]) -> int:
    """Where a conversation asks its question: in its last human message, else in its last one."""
    human = (i for i, message in enumerate(messages) if isinstance(message, HumanMessage))
    return max(human, default=len(messages) - 1)


def last_line(text: str) -> str:
    """The last line of ``text`` that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
