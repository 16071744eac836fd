"""How a model says *spawn* and *join*: the interface. Knows text; never graphs or backends.

A protocol for models that continue text owns a context that only ever grows: the
prompt, what the model wrote, what its threads returned. It reads decisions out of
generated text only, so tags in a question or in a thread's result stay inert.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple

from langchain_core.messages import AnyMessage

from apr_agents.types import Outline, ToolCall

Visibility = Literal["prefix", "isolated"]


class Spawn(NamedTuple):
    """The model asks for threads.

    Attributes:
        outlines: distinct, in the model's order.
        join: the join policy it asks for; ``None`` leaves that to the agent.
        answers: id of the tool call that says so, if it is one.
    """

    outlines: list[Outline]
    join: str | None = None
    answers: str | None = None


class Use(NamedTuple):
    """The model wants to use a tool."""

    call: ToolCall


class Discard(NamedTuple):
    """The model gives up the path that began with its latest block, and says what it tried."""

    tried: str


class Ended(NamedTuple):
    """The thread has ended by itself; ``conclusion`` if it stated one apart from its text."""

    conclusion: str | None = None


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


Decision = Spawn | Use | Discard | Ended | Malformed | Cut


class Shown(NamedTuple):
    """What the parent sees of one thread, or of several.

    Attributes:
        number: number of its outline.
        text: what stands for it.
        verbatim: whether ``text`` is the thread's own continuation of its header, white
            space included.
        id: of the thread, if it is one.
    """

    number: str
    text: str
    verbatim: bool = False
    id: str = ""


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
    summary_opening: str
    """What is appended to a thread's context to have the model sum it up."""
    summary_stop: str
    """What ends such a summary."""
    visibility: Visibility
    """Whether a thread sees its parent's whole context or only its own outline."""
    stops: tuple[str, ...]
    """Texts at which a backend may stop early; the parser decides without them too."""

    @abstractmethod
    def prepare(self, messages: Sequence[AnyMessage], budget: int) -> list[AnyMessage]:
        """The messages to render: tags made inert, the budget of threads announced."""

    @abstractmethod
    def opening(self) -> str:
        """What follows the rendered prompt, before the model writes."""

    @abstractmethod
    def parser(self, *, thread: bool, written: str) -> Parser:
        """A parser for a thread or for the root that already wrote ``written``."""

    @abstractmethod
    def lane(self) -> Outline:
        """The outline of the parent's own lane."""

    @abstractmethod
    def thread_header(self, outline: Outline) -> str:
        """What is appended to a context to start the thread of ``outline``."""

    @abstractmethod
    def join(self, shown: Sequence[Shown]) -> str:
        """What is appended to the parent's context when its threads are back."""

    @abstractmethod
    def decline(self) -> str:
        """What is appended instead when no thread may start; the model goes on by itself."""

    @abstractmethod
    def backtrack(self, tried: str) -> str:
        """What is appended to the context before a path when the model gave the path up."""

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
