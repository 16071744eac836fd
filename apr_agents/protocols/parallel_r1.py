"""Parallel-R1's tags (Parallel-R1: towards parallel thinking via reinforcement learning).

The model writes ``<Parallel>`` and nothing about what is to be done: a fixed number of
threads continue the same prompt behind ``<Path>``, each with another seed. Their texts come
back as ``<Path>…</Path><Path>…</Path></Parallel>``, and the model writes the ``<Summary>``.
"""

from __future__ import annotations

from collections.abc import Sequence

from apr_agents.errors import InvalidOption
from apr_agents.protocols.base import Profile, Shown, Spawn
from apr_agents.protocols.tags import TagProtocol, Tags
from apr_agents.types import Outline


class ParallelR1(TagProtocol):
    """The protocol of Parallel-R1's models. Without a temperature all paths are the same.

    Args:
        paths: threads of a block; fewer where the limits allow no more.

    Raises:
        InvalidOption: ``paths`` is no whole number of at least 1.
    """

    name = "parallel_r1"
    profile = Profile(
        says="<Parallel>",
        sees="everything before; all threads the same, with other seeds",
        returns="a <Path> for each, </Parallel>; the model writes the <Summary>",
        paper="Zheng et al. 2025, arXiv 2509.07980",
    )
    tags = Tags(block="Parallel", thread="Path", conclusion="Summary")

    def __init__(self, paths: int = 2) -> None:
        super().__init__()
        if type(paths) is not int or paths < 1:
            raise InvalidOption("paths", paths, "a whole number of at least 1")
        self.paths = paths

    def announce(self, question: str, budget: int) -> str:
        return question

    def spawn(self, text: str) -> Spawn:
        return Spawn([Outline(str(i), "") for i in range(1, self.paths + 1)], alike=True)

    def block(self, outlines: Sequence[Outline]) -> str:
        return self.tags.spawn

    def resume(self, conclusion: str) -> str:
        return f"<{self.tags.conclusion}>\n{conclusion}\n</{self.tags.conclusion}>\n"

    def thread_header(self, outline: Outline) -> str:
        return f"<{self.tags.thread}>"

    def join(self, shown: Sequence[Shown]) -> str:
        texts = (one.text if one.verbatim else self.inert(one.text) for one in shown)
        return "".join(f"<Path>{text}</Path>" for text in texts) + "</Parallel>\n"
