"""Multiverse's tags (Multiverse: your language models secretly decide how to parallelize).

Map, process, reduce. The model writes what is to be found out and splits that::

    <Parallel>
    <Goal>
    <Outline>1: …</Outline>
    <Outline>2: …</Outline>
    </Goal>

Each thread continues the same context behind ``<Path>\\n1:`` up to ``</Path>``, and may open a
block of its own, with outlines 1.1, 1.2, …. With all paths back the model writes
``<Conclusion>…</Conclusion></Parallel>``.
"""

from __future__ import annotations

from apr_agents.protocols.base import Profile
from apr_agents.protocols.tags import TagProtocol, Tags


class Multiverse(TagProtocol):
    """The protocol of Multiverse's models."""

    name = "multiverse"
    profile = Profile(
        says="<Parallel>, and in <Goal> an <Outline> for each thread",
        sees="everything before, the whole goal, no sibling",
        returns="a <Path> for each, in outline order; the model writes the <Conclusion>",
        paper="Yang et al. 2025, arXiv 2506.09991",
    )
    tags = Tags(
        block="Parallel",
        outlines="Goal",
        outline="Outline",
        thread="Path",
        conclusion="Conclusion",
        think=("think", "Think"),
    )
