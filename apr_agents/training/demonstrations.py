"""From demonstrations to tries: the very text that inference will see, as token segments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from langchain_core.messages import HumanMessage

from apr_agents.protocols.base import Shown
from apr_agents.protocols.threadweaver import ThreadWeaver
from apr_agents.tasks.base import Block, Demonstration
from apr_agents.training.trie import Segment

Encode = Callable[[str], list[int]]
MergeName = Literal["full", "conclusions", "summary"]


def to_trie(
    demonstration: Demonstration,
    encode: Encode,
    *,
    eos_id: int,
    merge: MergeName = "conclusions",
    summaries: bool = False,
) -> Segment:
    """The trie of every model call of one ideal run, its question given as it stands.

    Args:
        encode: from text to token ids, without special tokens added.
        eos_id: the token with which the model ends.
        merge: what the join shows of each thread.
        summaries: also teach each thread to sum itself up when asked.
    """
    protocol = ThreadWeaver()
    [message] = protocol.prepare([HumanMessage(demonstration.question)], demonstration.budget)
    prompt = encode(message.text + protocol.opening())
    ending = f"{demonstration.thinking}\n</think>\n{demonstration.answer}"
    block = demonstration.block
    if block is None:
        return _given(prompt, _written([*encode(ending), eos_id]))

    def thread(index: int) -> Segment:
        closings = [_written(encode("</Thread>"))]
        if summaries:
            summary = _written(encode(block.conclusions[index] + protocol.summary_stop))
            closings.append(_given(encode(protocol.summary_opening), summary))
        text = _written(encode(block.threads[index]), *closings)
        return _given(encode(protocol.thread_header(block.outlines[index])), text)

    threads = map(thread, range(len(block.outlines)))
    # The joined copy is context, not a target: each thread learned its text in its own branch.
    joined = encode(protocol.join(_shown(block, merge, protocol)))
    tail = _written([*encode(f"</Parallel>\n{ending}"), eos_id])
    opened = _written(encode(protocol.block(block.outlines)), *threads, _given(joined, tail))
    return _given(prompt, opened)


def _shown(block: Block, merge: MergeName, protocol: ThreadWeaver) -> list[Shown]:
    texts = {
        "full": block.threads,
        "conclusions": tuple(map(protocol.conclusion, block.threads)),
        "summary": block.conclusions,
    }[merge]
    return [
        Shown(outline.number, text, verbatim=merge == "full")
        for outline, text in zip(block.outlines, texts, strict=True)
    ]


def _given(ids: list[int], *children: Segment) -> Segment:
    return Segment(tuple(ids), supervised=False, children=children)


def _written(ids: list[int], *children: Segment) -> Segment:
    return Segment(tuple(ids), supervised=True, children=children)
