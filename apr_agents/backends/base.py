"""What continues text: the interface. Knows prompts and tokens; never protocols or graphs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from langchain_core.messages import AnyMessage


@dataclass(frozen=True, kw_only=True)
class Request:
    """One model call.

    Attributes:
        prompt: the context to continue.
        max_tokens: how many tokens may be generated, at least 1.
        stops: texts at which to stop; the stop itself is part of the output.
        key: names the call (thread id and number of the call); with a temperature it
            decides the random seed, so that the same run repeats.
        run: names the run that the call belongs to, for a server that treats runs fairly.
        temperature: 0 takes the likeliest token each time; ``None``: as the backend is set.
        logprobs: tell the log-probability of the output, if the backend can.
    """

    prompt: str
    max_tokens: int
    stops: tuple[str, ...] = ()
    key: str = ""
    run: str = ""
    temperature: float | None = None
    logprobs: bool = False


class Delta(NamedTuple):
    """The next piece of an output.

    Attributes:
        text: what was generated, possibly empty.
        tokens: how many tokens that took.
        prompt_tokens: length of the prompt, with the first piece.
        ended: the model ended by itself (its end token): no stop, no limit.
        cached_tokens: tokens of the prompt that the model had computed before, with the piece
            that tells; ``None`` where it does not tell.
        logprob: of these tokens together, if asked for and known.
        ids: the tokens themselves, where the backend tells; else empty.
    """

    text: str
    tokens: int
    prompt_tokens: int = 0
    ended: bool = False
    cached_tokens: int | None = None
    logprob: float | None = None
    ids: tuple[int, ...] = ()


def approximate_tokens(text: str) -> int:
    """Tokens in ``text``, at four characters each."""
    return -(-len(text) // 4)


def approximate_tail(text: str, tokens: int) -> str:
    """The last ``tokens`` tokens of ``text``, at four characters each."""
    return text[max(0, len(text) - 4 * tokens) :] if tokens > 0 else ""


class Backend(ABC):
    """Something that continues text, such as a local model or a completions server."""

    name: str
    most_threads: int | None = None
    """The largest thread budget the model was trained to read; ``None`` when any number will do."""
    context_length: int | None = None
    """Tokens that a prompt and its continuation may have together, where that is known."""
    tells_logprobs: bool = False
    """Whether it can tell the log-probability of its output."""

    def count(self, text: str) -> int:
        """Tokens in ``text``; a quarter of its characters where the tokenizer is not at hand."""
        return approximate_tokens(text)

    def tail(self, text: str, tokens: int) -> str:
        """The end of ``text``, about ``tokens`` tokens long."""
        return approximate_tail(text, tokens)

    async def free_lanes(self) -> int | None:
        """Requests it could compute at once beside those it has; ``None`` where it cannot tell."""
        return None

    @abstractmethod
    def render(self, messages: Sequence[AnyMessage]) -> str:
        """The text of a conversation, ready to be continued.

        The model's own control tokens are made inert inside messages.
        """

    @abstractmethod
    def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        """Generate. Closing the iterator cancels the request down to the model.

        Raises:
            PromptTooLong: the prompt leaves no room in the model's context.
            BackendFailed: the model could not finish.
        """

    async def aclose(self) -> None:  # noqa: B027  most backends hold nothing
        """Free what the backend holds. It may be used again afterwards."""
