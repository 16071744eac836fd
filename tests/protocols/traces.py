"""What the tests of protocols share: traces as plain data, and ways to spoil them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from apr_agents.protocols.base import Decision, TextProtocol, TraceBlock

Shape = list[tuple[dict[str, str], dict[str, Any], str | None]]


def shape(blocks: Sequence[TraceBlock]) -> Shape:
    """Outlines, results and conclusion of each block; a thread with blocks has them as well."""
    return [
        (
            {outline.number: outline.text for outline in block.outlines},
            {
                thread.number: (thread.conclusion, shape(thread.blocks))
                if thread.blocks
                else thread.conclusion
                for thread in block.threads
            },
            block.conclusion,
        )
        for block in blocks
    ]


def read(
    protocol: TextProtocol,
    *chunks: str,
    thread: bool = False,
    written: str = "",
    ends: bool = False,
) -> tuple[Decision | None, str]:
    """The decision in ``chunks`` and the text that is kept."""
    parser = protocol.parser(thread=thread, written=written)
    for chunk in chunks:
        decision = parser.feed(chunk)
        if decision is not None:
            return decision, parser.text
    return (parser.finish() if ends else None), parser.text


def mutants(
    texts: Sequence[str], pieces: Sequence[str], count: int, seed: int
) -> Iterator[tuple[str, random.Random]]:
    """Texts with parts cut out, doubled, moved, or replaced by other pieces of the grammar."""
    chance = random.Random(seed)
    for _ in range(count):
        text = chance.choice(texts)
        for _ in range(chance.randint(1, 4)):
            a, b = sorted(chance.randrange(len(text) + 1) for _ in range(2))
            b = min(b, a + chance.choice((1, 8, 40, 400)))
            match chance.randrange(5):
                case 0:
                    text = text[:a] + text[b:]
                case 1:
                    text = text[:b] + text[a:]
                case 2:
                    text = text[:a] + chance.choice(pieces) + text[a:]
                case 3:
                    text = text[:a] + chance.choice(pieces) + text[b:]
                case _:
                    c = chance.randrange(len(text) + 1)
                    text = text[:c] + text[a:b] + text[c:]
        yield text, chance
