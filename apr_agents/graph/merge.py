"""What a parent sees of its threads. Nothing is lost: full transcripts stay in the record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from apr_agents.errors import InvalidOption
from apr_agents.protocols.base import Shown
from apr_agents.types import ThreadResult

LONGEST_CONCLUSION = 600
"""Characters of a conclusion that `Conclusions` shows; of a longer one, its end."""


class MergePolicy(Protocol):
    """Chooses the text that stands for a thread in its parent's context."""

    @property
    def name(self) -> str: ...

    @property
    def summary_tokens(self) -> int | None:
        """Have each finished thread summed up by the model, in at most so many tokens."""

    def show(self, result: ThreadResult) -> tuple[str, bool]:
        """The text for a thread that is done, and whether it is the thread's text verbatim."""


@dataclass(frozen=True)
class Full:
    """Every thread in full: the join of ThreadWeaver's paper."""

    name: str = "full"
    summary_tokens: int | None = None

    def show(self, result: ThreadResult) -> tuple[str, bool]:
        return result.transcript, True


@dataclass(frozen=True)
class Conclusions:
    """Results only: what each thread came to."""

    name: str = "conclusions"
    summary_tokens: int | None = None

    def show(self, result: ThreadResult) -> tuple[str, bool]:
        text = result.conclusion
        return text if len(text) <= LONGEST_CONCLUSION else f"…{text[-LONGEST_CONCLUSION:]}", False


@dataclass(frozen=True)
class Summaries:
    """The model sums each finished thread up, in at most ``summary_tokens`` tokens."""

    summary_tokens: int = 96
    name: str = "summary"

    def show(self, result: ThreadResult) -> tuple[str, bool]:
        return result.conclusion, False


POLICIES: dict[str, MergePolicy] = {
    policy.name: policy for policy in (Full(), Conclusions(), Summaries())
}


def resolve_merge(merge: str | MergePolicy | None) -> MergePolicy:
    """The policy called ``merge``; ``None`` takes ``"conclusions"``."""
    if merge is None:
        return Conclusions()
    if not isinstance(merge, str):
        return merge
    if merge not in POLICIES:
        raise InvalidOption("merge", merge, f"one of {', '.join(sorted(POLICIES))}")
    return POLICIES[merge]


def show(policy: MergePolicy, result: ThreadResult) -> Shown:
    """What the parent sees of ``result``; a thread that is not done is told in one line."""
    number = result.outline.number if result.outline else ""
    if result.status == "done":
        return Shown(number, *policy.show(result))
    return Shown(number, f"({result.status}: {result.reason})")
