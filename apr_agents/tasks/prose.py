"""Text that says nothing that matters, for documents in which something is to be found."""

from __future__ import annotations

import random
from collections.abc import Iterator

CHARACTERS_PER_TOKEN = 4
"""What a token of English prose is taken for where no tokenizer is at hand."""

SENTENCE = 55
"""Characters of a sentence, about."""

_WHO = (
    "The baker", "The captain", "A neighbour", "The gardener", "A student", "The old clerk",
    "The postman", "A visitor", "The doctor", "The miller", "A fisherman", "The teacher",
)  # fmt: skip
_DID = (
    "walked along", "painted", "waited at", "wrote about", "came back to", "remembered",
    "photographed", "passed", "swept", "looked for", "talked about", "slept near",
)  # fmt: skip
_WHAT = (
    "the harbour", "the narrow bridge", "the orchard", "the railway station", "the market",
    "the stone wall", "the library", "the quiet street", "the mill", "the field behind the barn",
    "the long avenue", "the lake",
)  # fmt: skip
_WHEN = (
    "in the morning", "before it rained", "after lunch", "late in autumn", "on the way home",
    "while the bells rang", "without a word", "as every year", "until dusk", "with a lantern",
)  # fmt: skip


def sentences(rng: random.Random, characters: int) -> Iterator[str]:
    """Sentences of about so many characters in all, spaces between them counted."""
    while characters > SENTENCE / 2:
        sentence = " ".join(map(rng.choice, (_WHO, _DID, _WHAT, _WHEN))) + "."
        characters -= len(sentence) + 1
        yield sentence


def hide(rng: random.Random, hidden: list[str], tokens: int) -> list[str]:
    """About ``tokens`` tokens of sentences, with those of ``hidden`` among them, in their order."""
    room = CHARACTERS_PER_TOKEN * tokens - sum(len(each) + 1 for each in hidden)
    shown = list(sentences(rng, room))
    places = sorted(rng.randint(0, len(shown)) for _ in hidden)
    for place, each in reversed(list(zip(places, hidden, strict=True))):
        shown.insert(place, each)
    return shown
