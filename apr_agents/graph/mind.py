"""How a thread thinks with one kind of model: the interface. One variant per file.

A mind turns a thread into model calls and a model's output into decisions. It knows a
protocol and a backend; never limits, gates or graphs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from langchain_core.messages import AnyMessage, BaseMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool

from apr_agents.backends.base import Delta
from apr_agents.graph.state import Thread
from apr_agents.protocols.base import Cut, Decision, Shown, Visibility, question_at
from apr_agents.tokens import well_formed
from apr_agents.types import Call, Outline

M = TypeVar("M", bound=BaseMessage)

Base = str | list[AnyMessage]
"""The context that a thread starts from."""


@dataclass
class Output:
    """What one model call has given so far, and how long that took; see `Generated`.

    Attributes:
        waited: ``None`` until the gate lets it through.
        ended: the model ended by itself.
    """

    text: str = ""
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    logprob: float | None = None
    budget: int = 0
    lanes: int | None = None
    started: float = 0.0
    waited: float | None = None
    first_token: float | None = None
    seconds: float = 0.0
    ended: bool = False

    @property
    def measured(self) -> dict[str, Any]:
        """What its step records beside its text."""
        return {
            "tokens": self.tokens,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "logprob": self.logprob,
            "budget": self.budget,
            "lanes": self.lanes,
            "started": self.started,
            "waited": self.seconds if self.waited is None else self.waited,
            "first_token": self.first_token,
            "seconds": self.seconds,
        }


def cut(output: Output, limit: int) -> Cut:
    """The decision of an output that broke off, where ``limit`` tokens were allowed."""
    spent = output.tokens >= limit
    return Cut(f"its {limit} tokens ran out" if spent else "the model's context is full")


class Turn(ABC):
    """One model call of a thread.

    Attributes:
        said: id of the message that came, if it was one.
    """

    said: str | None = None

    @abstractmethod
    def estimate(self) -> int:
        """Tokens that its prompt has, about."""

    @abstractmethod
    def stream(self, config: RunnableConfig | None) -> AsyncGenerator[Delta, None]:
        """Generate, up to a decision. Closing the iterator cancels the request."""

    @abstractmethod
    def read(self, output: Output) -> tuple[Call, list[Decision]]:
        """The step to record and the decisions in it; of a broken output, what there is."""


class Speech(Protocol):
    """What every protocol says."""

    @property
    def name(self) -> str: ...

    @property
    def visibility(self) -> Visibility: ...

    def lane(self) -> Outline:
        """The outline of the parent's own lane."""

    def join(self, shown: Sequence[Shown]) -> str:
        """What the parent reads of its threads."""

    def decline(self) -> str:
        """What it reads instead when no thread may start."""

    def backtrack(self, tried: str) -> str:
        """What it reads in place of a path it gave up."""


class Model(Protocol):
    """What is known about every model."""

    @property
    def name(self) -> str: ...

    @property
    def most_threads(self) -> int | None: ...

    @property
    def context_length(self) -> int | None: ...

    @property
    def tells_logprobs(self) -> bool: ...

    def count(self, text: str) -> int:
        """Tokens in ``text``."""

    def tail(self, text: str, tokens: int) -> str:
        """The end of ``text``, about ``tokens`` tokens long."""

    async def free_lanes(self) -> int | None:
        """Calls it could take beside those it has; ``None`` where it cannot tell."""


class Mind(ABC):
    """A model and the protocol it speaks."""

    backend: Model
    says: Speech
    tools: Mapping[str, BaseTool] = {}

    @abstractmethod
    def begin(self, messages: Sequence[AnyMessage], budget: int) -> Base:
        """The root's context: the conversation, and how many threads may be used."""

    @abstractmethod
    def enter(self, parent: Thread, outline: Outline, budget: int) -> Base:
        """The context of the thread for one outline of ``parent``."""

    @abstractmethod
    def turn(self, thread: Thread, limit: int, budget: int) -> Turn:
        """The thread's next model call: ``limit`` tokens at most, ``budget`` threads to use."""

    @abstractmethod
    def summary(self, thread: Thread, limit: int) -> Turn:
        """A model call that sums a finished thread up; its call's text is the summary."""

    @abstractmethod
    def digest(self, thread: Thread, texts: Sequence[str], limit: int) -> Turn:
        """A model call that sums up what several threads of ``thread`` came to."""

    @abstractmethod
    def conclusion(self, thread: Thread) -> str:
        """The result that a thread came to."""

    @abstractmethod
    def answer(self, thread: Thread) -> str | None:
        """The root's answer, in its model's words; ``None`` when it gave none."""


def sound(data: Any) -> Any:
    """``data`` with well-formed texts only."""
    match data:
        case str():
            return well_formed(data)
        case list():
            return [sound(item) for item in data]
        case dict():
            return {sound(key): sound(value) for key, value in data.items()}
        case _:
            return data


def sound_message(message: M) -> M:
    """The message with a sound content."""
    content = sound(message.content)
    if content == message.content:
        return message
    return message.model_copy(update={"content": content})


def asked(base: Base) -> str:
    """The question of a conversation."""
    assert isinstance(base, list)
    return base[question_at(base)].text


def asking(base: Base, question: str) -> list[AnyMessage]:
    """A conversation with another question in the place of its own; its pictures stay."""
    assert isinstance(base, list)
    messages, at = base, question_at(base)
    content: str | list[Any] = question
    if isinstance(messages[at].content, list):
        others = [block for block in messages[at].content_blocks if block["type"] != "text"]
        content = [*others, {"type": "text", "text": question}]
    return [*messages[:at], HumanMessage(content), *messages[at + 1 :]]


def as_text(base: Base) -> str:
    """A context as a reader sees it."""
    return base if isinstance(base, str) else "\n\n".join(message.text for message in base)
