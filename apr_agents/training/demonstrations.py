"""From demonstrations to tries: the exact text that inference would see, as token segments."""

from __future__ import annotations

from collections.abc import Callable

from apr_agents.protocols.threadweaver import ThreadWeaver
from apr_agents.tasks.base import Demonstration
from apr_agents.training.trie import Segment

Encode = Callable[[str], list[int]]


def to_trie(
    demonstration: Demonstration,
    encode: Encode,
    *,
    eos_id: int,
    merge: str = "conclusions",
    summaries: bool = False,
    question: str | None = None,
) -> Segment:
    """The trie of every model call of one ideal ThreadWeaver run.

    Args:
        merge: ``"conclusions"`` or ``"full"``: what the join shows of each thread.
        summaries: also teach each thread to state its conclusion when asked.
        question: the text of the question when it is not the demonstration's own.
    """
    protocol = ThreadWeaver()
    block = demonstration.block
    prompt = (
        f"{question or demonstration.question}\n{protocol.budget_line(demonstration.budget)}"
        "\n<think>\n"
    )
    ending = f"{demonstration.thinking}\n</think>\n{demonstration.answer}"
    if block is None:
        return _given(encode(prompt), _written([*encode(ending), eos_id]))
    threads = []
    for outline, text, conclusion in zip(
        block.outlines, block.threads, block.conclusions, strict=True
    ):
        endings = [_written(encode("</Thread>"))]
        if summaries:
            endings.append(
                _given(encode("<Conclusion>"), _written(encode(f"{conclusion}</Conclusion>")))
            )
        threads.append(
            _given(encode(protocol.thread_header(outline)), _written(encode(text), *endings))
        )
    shown = block.threads if merge == "full" else block.conclusions
    if merge == "conclusions":
        shown = tuple(text.rsplit("\n", 1)[-1] for text in block.threads)
    if merge == "summary":
        shown = block.conclusions
    joined = protocol.join(
        [(outline.number, text) for outline, text in zip(block.outlines, shown, strict=True)]
    )
    # The joined copy is context, not a target: each thread learned its text in its own branch.
    tail = _given(encode(joined), _written([*encode(f"</Parallel>\n{ending}"), eos_id]))
    return _given(encode(prompt), _written(encode(protocol.block(block.outlines)), *threads, tail))


def _given(ids: list[int], *children: Segment) -> Segment:
    return Segment(tuple(ids), supervised=False, children=children)


def _written(ids: list[int], *children: Segment) -> Segment:
    return Segment(tuple(ids), supervised=True, children=children)
