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
    """

    prompt: str
    max_tokens: int
    stops: tuple[str, ...] = ()
    key: str = ""


class Delta(NamedTuple):
    """The next piece of an output.

    Attributes:
        text: what was generated, possibly empty.
        tokens: how many tokens that took.
        prompt_tokens: length of the prompt, with the first piece.
        ended: the model ended by itself (its end token): no stop, no limit.
    """

    text: str
    tokens: int
    prompt_tokens: int = 0
    ended: bool = False


class Backend(ABC):
    """Something that continues text, such as a local model or a completions server."""

    name: str
    most_threads: int | None = None
    """The largest thread budget the model was trained to read; ``None`` when any number will do."""

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
