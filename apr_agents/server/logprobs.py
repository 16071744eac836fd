"""Tokens and their log-probabilities, in OpenAI's two forms."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from apr_agents.server.generation import Chosen
from apr_agents.server.schemas import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from apr_agents.tokens import REPLACEMENT

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LOWEST = -9999.0
"""Stands for minus infinity, which JSON has not: what a constraint rules out."""


class Written(NamedTuple):
    """A token by itself: its text, in which parts of characters are ``\\ufffd``, and its bytes."""

    text: str
    bytes: list[int]


Writer: TypeAlias = Callable[[int], Written]


def writer(tokenizer: Tokenizer) -> Writer:
    """A function from a token id to what the token says."""

    @lru_cache(maxsize=65536)
    def write(token: int) -> Written:
        # Behind another one, or many tokenizers drop a space in front.
        alone = tokenizer.decode([token], skip_special_tokens=False)
        text = tokenizer.decode([token, token], skip_special_tokens=False)[len(alone) :]
        return Written(text, list(_bytes(tokenizer.id_to_token(token) or "", text)))

    return write


def for_completions(tokens: Iterable[Chosen], write: Writer) -> CompletionLogprobs:
    """The form of ``/v1/completions``; the top ones include the token itself."""
    tokens = list(tokens)
    return CompletionLogprobs(
        tokens=[write(token.id).text for token in tokens],
        token_logprobs=[_finite(token.logprob) for token in tokens],
        top_logprobs=[
            {
                write(one).text: _finite(logprob)
                # The likeliest of several that look alike.
                for one, logprob in reversed([*token.top, (token.id, token.logprob)])
            }
            for token in tokens
        ],
        text_offset=[token.offset for token in tokens],
    )


def for_chat(tokens: Iterable[Chosen], write: Writer) -> ChatLogprobs:
    """The form of ``/v1/chat/completions``."""
    content = []
    for token in tokens:
        text, octets = write(token.id)
        tops = [
            TopLogprob(token=write(one).text, logprob=_finite(logprob), bytes=write(one).bytes)
            for one, logprob in token.top
        ]
        content.append(
            TokenLogprob(
                token=text, logprob=_finite(token.logprob), bytes=octets, top_logprobs=tops
            )
        )
    return ChatLogprobs(content=content)


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST)


def _bytes(piece: str, text: str) -> bytes:
    """The bytes of a token, which may be no whole characters.

    Args:
        piece: the token as its tokenizer writes it.
        text: what it says.
    """
    if REPLACEMENT not in text:
        return text.encode()
    if octet := re.fullmatch(r"<0x([0-9A-F]{2})>", piece):
        return bytes.fromhex(octet[1])
    try:
        return bytes(_byte_level()[character] for character in piece)
    except KeyError:
        return text.encode()


@lru_cache(maxsize=1)
def _byte_level() -> dict[str, int]:
    """From the characters with which byte-level tokenizers write bytes to the bytes."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [octet for octet in range(256) if octet not in shown]
    characters = {chr(octet): octet for octet in shown}
    return characters | {chr(256 + number): octet for number, octet in enumerate(others)}
