"""Between tokens and text: what a stream of tokens says, where it is to stop, what can be encoded.

Knows (fast) tokenizers; never models, engines or protocols.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

REPLACEMENT = "\ufffd"
"""What tokenizers make of bytes that are no character, or not yet one."""

LONGEST_CHARACTER = 4
"""Bytes, and so tokens, of a character at most."""

PATIENCE = 2 * LONGEST_CHARACTER
"""Tokens without a character after which none is waited for any more."""


class Detokenizer:
    """The text of tokens that come one at a time.

    A character of several tokens arrives whole, with the last of them. All pieces together
    are what the tokenizer makes of all tokens at once.

    Args:
        before: the tokens that these continue. Without them, many tokenizers take the first
            token for the beginning of a text and drop the space before it.
        skip_special: leave the model's control tokens out.
    """

    def __init__(
        self, tokenizer: Tokenizer, before: Sequence[int] = (), *, skip_special: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._skipped = special_ids(tokenizer) if skip_special else frozenset()
        self._known: list[int] = []
        self._pending: list[int] = []
        self._given = 0
        context = [i for i in before[-2 * PATIENCE :] if i not in self._skipped]
        # Not from the middle of a character on.
        for start in range(min(LONGEST_CHARACTER, len(context))):
            if not self._decode(context[start:]).startswith(REPLACEMENT):
                context = context[start:]
                break
        self._go_on_from(context)

    def feed(self, token: int) -> str:
        """The text that this token completes; often all of its own, sometimes none."""
        if token in self._skipped:
            return ""
        self._pending.append(token)
        text = self._decode(self._known + self._pending)
        settled = text.removesuffix(REPLACEMENT)
        fresh = settled[self._given :]
        if fresh and settled == text:
            self._go_on_from(self._pending, settled=True)
        elif len(self._pending) >= PATIENCE:  # no character: broken bytes, or no text
            self._go_on_from((self._known + self._pending)[-LONGEST_CHARACTER:])
        else:
            return ""
        return fresh

    def finish(self) -> str:
        """What is left: a character that was never completed."""
        return self._decode(self._known + self._pending)[self._given :]

    def _go_on_from(self, known: list[int], *, settled: bool = False) -> None:
        """Take ``known`` for given; if not settled, but for what may yet become a character."""
        self._known, self._pending = known, []
        text = self._decode(known)
        self._given = len(text if settled else text.removesuffix(REPLACEMENT))

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))


class StopFinder:
    """Cuts a text that comes in pieces where the first stop is complete.

    The result does not depend on how the text is cut into pieces. Of stops that end at the
    same place, the longest counts.

    Args:
        included: whether the stop belongs to the text.

    Attributes:
        found: the stop at which the text was cut; what comes then is left out.
    """

    def __init__(self, stops: Iterable[str], *, included: bool = False) -> None:
        self._stops, self._included = tuple(stops), included
        self._held = ""
        self.found: str | None = None

    def feed(self, piece: str) -> str:
        """What is now certain to be no part of a stop, or is up to the stop."""
        if self.found is not None:
            return ""
        text, self._held = self._held + piece, ""
        places = ((text.find(stop), stop) for stop in self._stops)
        ends = [(start + len(stop), start, stop) for start, stop in places if start >= 0]
        if ends:
            end, start, self.found = min(ends)
            return text[: end if self._included else start]
        kept = max((_begun(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """What was held back because a stop might have come of it."""
        held, self._held = self._held, ""
        return held


class StopCheck:
    """Says after each token whether the text so far has come to a stop."""

    def __init__(self, detokenizer: Detokenizer, stops: Iterable[str]) -> None:
        self._detokenizer, self._finder = detokenizer, StopFinder(stops)

    def __call__(self, token: int) -> bool:
        self._finder.feed(self._detokenizer.feed(token))
        return self._finder.found is not None


def special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The model's control tokens, such as the one that ends a turn."""
    added = tokenizer.get_added_tokens_decoder()
    return frozenset(i for i, token in added.items() if token.special)


def inert(tokenizer: Tokenizer) -> Callable[[str], str]:
    """A function that breaks the model's control tokens in a text by a space: still readable."""
    added = tokenizer.get_added_tokens_decoder().values()
    contents = sorted((token.content for token in added if token.special), key=len, reverse=True)
    return breaking(re.compile("|".join(map(re.escape, contents)) or r"(?!)"))


def breaking(control: re.Pattern[str]) -> Callable[[str], str]:
    """A function that breaks by a space whatever ``control`` finds."""
    return lambda text: control.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)


def well_formed(text: str) -> str:
    """``text`` with a question mark for each half of a surrogate pair.

    JSON and the bytes of a shell can hold halves; no tokenizer, file or connection takes them.
    """
    return text if text.isascii() else text.encode(errors="replace").decode()


def end_ids(*declared: int | Sequence[int] | None) -> frozenset[int]:
    """The tokens with which a model ends, from all places that declare them.

    Pass those of its config, of its generation config and of its tokenizer: chat models often
    name the end of a turn in only one of the three.
    """
    ids: set[int] = set()
    for each in declared:
        if each is not None:
            ids |= {each} if isinstance(each, int) else set(each)
    return frozenset(ids)


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of ``stop``."""
    start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while start >= 0 and not stop.startswith(text[start:]):
        start = text.find(stop[0], start + 1)
    return len(text) - start if start >= 0 else 0
