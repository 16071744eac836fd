"""What the engine is asked and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from apr_agents.errors import InvalidOption

FinishReason = Literal["stop", "end", "length", "cancelled", "failed"]


class Constraint(Protocol):
    """What may come next, such as a grammar allows."""

    def restrict(self, logits_V: Tensor) -> None:
        """Set the logits of all tokens that may not come next to minus infinity, in place."""

    def accept(self, token: int) -> None:
        """Take note of the token that came."""


@dataclass(frozen=True, kw_only=True)
class Generate:
    """One request.

    Attributes:
        ids: the prompt, at least one token.
        max_tokens: how many may be generated.
        end_ids: tokens with which the model ends; they are part of the output.
        stop_ids: tokens at which to stop; likewise.
        temperature: 0 takes the likeliest token each time.
        top_k: sample among this many likeliest tokens; 0 for all.
        top_p: sample among the likeliest tokens that together have this probability.
        min_p: sample among tokens with this share of the likeliest one's probability.
        repetition_penalty: divides the logits of tokens that have occurred, and multiplies
            those below 0; 1 for none.
        seed: of the request's own random numbers: the same seed, the same tokens, whatever
            else is in the batch.
        logprobs: also report log-probabilities: the token's, and those of this many likeliest
            ones; ``None`` for none at all.
        program: requests of one program give way to other programs; a request without one
            is a program of its own.
        stops: says after each token whether the text so far ends with a stop.
        constraint: restricts every token; for this request only.
    """

    ids: Sequence[int]
    max_tokens: int
    end_ids: frozenset[int] = frozenset()
    stop_ids: frozenset[int] = frozenset()
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    logprobs: int | None = None
    program: str = ""
    stops: Callable[[int], bool] | None = None
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        checks = {
            "ids": (len(self.ids) > 0, "at least one token"),
            "max_tokens": (self.max_tokens > 0, "a whole number of at least 1"),
            "temperature": (self.temperature >= 0, "0 or more"),
            "top_k": (self.top_k >= 0, "0 or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p < 1, "at least 0 and below 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
            "seed": (-(2**63) <= self.seed < 2**63, "a whole number of 64 bits"),
            "logprobs": (self.logprobs is None or self.logprobs >= 0, "0 or more, or None"),
        }
        for option, (holds, expected) in checks.items():
            if not holds:
                raise InvalidOption(option, getattr(self, option), expected)


class Token(NamedTuple):
    """The next token of a request.

    Attributes:
        id: the token; ``None`` where the request was cancelled or failed.
        finish: why the request ends with this token; ``None`` while it goes on.
        logprob: what the model itself gave it, before temperature, penalty and constraint,
            if asked for.
        top: the likeliest tokens and their log-probabilities, likewise.
        cached: tokens of the prompt that were computed before; with the first token.
        error: what went wrong, when ``finish`` is ``failed``.
    """

    id: int | None
    finish: FinishReason | None = None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    cached: int = 0
    error: str | None = None
