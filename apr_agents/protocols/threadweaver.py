"""ThreadWeaver's tags (ThreadWeaver: adaptive threading for efficient parallel reasoning).

The model thinks, and where it wants threads it writes::

    <Parallel>
    <Outlines>
    <Outline>1: …</Outline>
    <Outline>2: …</Outline>
    </Outlines>

Each thread continues the same context behind ``<Thread>\\n1:`` up to ``</Thread>`` and sees
no sibling. Its results come back as ``<Thread>`` elements in outline order; the model
itself goes on with ``</Parallel>``.
"""

from __future__ import annotations

from functools import partial

from apr_agents.protocols.base import Profile, last_line
from apr_agents.protocols.tags import TagParser, TagProtocol, Tags


class ThreadWeaver(TagProtocol):
    """The protocol of ThreadWeaver's models and of the bundled one.

    Args:
        visibility: ``"prefix"``: a thread sees its parent's whole context, as in the paper;
            ``"isolated"``: it is asked its outline as if that were the question.
    """

    name = "threadweaver"
    profile = Profile(
        says="<Parallel>, and in <Outlines> an <Outline> for each thread",
        sees="everything before, all outlines, no sibling",
        returns="a <Thread> for each, in outline order; the model goes on with </Parallel>",
        paper="Lian et al. 2025, arXiv 2512.07843",
    )
    tags = Tags(
        block="Parallel",
        outlines="Outlines",
        outline="Outline",
        thread="Thread",
        conclusion="Conclusion",
        think=("think",),
    )
    separator = ""

    def resume(self, conclusion: str) -> str:
        return f"\n</{self.tags.block}>\n"

    def conclusion(self, text: str) -> str:
        return self.stated(text) or last_line(text)


TAGS = ThreadWeaver.tags.names
inert = ThreadWeaver.tags.inert
ThreadWeaverParser = partial(TagParser, ThreadWeaver())
