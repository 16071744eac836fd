"""What a thread sees of its own threads and tools. All is kept in full in the record."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from apr_agents.errors import InvalidOption
from apr_agents.protocols.base import Shown
from apr_agents.types import ThreadResult

LEAST = 24
"""Tokens below which cutting a thread's text says less than summing several up together."""

LONGEST_REASON = 300
"""Characters that tell why a thread is not done."""


class MergePolicy(ABC):
    """Chooses the text that stands for a thread in its parent's context."""

    name: str
    summary_tokens: int | None = None
    """Have each finished thread summed up by the model, in at most so many tokens."""

    @abstractmethod
    def show(self, result: ThreadResult) -> tuple[str, bool]:
        """The text for a thread that is done, and whether it is the thread's text verbatim."""

    def reduce(self, conclusions: Sequence[str]) -> str | None:
        """One text for all threads that are done; ``None``: each is shown."""
        return None


@dataclass(frozen=True)
class Full(MergePolicy):
    """Every thread in full: the join of ThreadWeaver's paper."""

    name: str = "full"

    def show(self, result: ThreadResult) -> tuple[str, bool]:
        return result.transcript, True


@dataclass(frozen=True)
class Conclusions(MergePolicy):
    """Results only: what each thread came to."""

    name: str = "conclusions"

    def show(self, result: ThreadResult) -> tuple[str, bool]:
        return result.conclusion, False


@dataclass(frozen=True)
class Summaries(MergePolicy):
    """The model sums each finished thread up, in at most ``summary_tokens`` tokens.

    Where a join has too many threads for that, it sums groups of summaries up, level by level.
    """

    summary_tokens: int = 96
    name: str = "summary"

    def show(self, result: ThreadResult) -> tuple[str, bool]:
        return result.conclusion, False


@dataclass(frozen=True)
class Reduction(MergePolicy):
    """Conclusions reduced to one by a rule, without a model.

    Args:
        rule: from the conclusions, in outline order, to the text; ``None`` when it does not
            apply to them, and each is shown.
    """

    name: str
    rule: Callable[[Sequence[str]], str | None]

    def show(self, result: ThreadResult) -> tuple[str, bool]:
        return result.conclusion, False

    def reduce(self, conclusions: Sequence[str]) -> str | None:
        return self.rule(conclusions)


def count_equal(conclusions: Sequence[str]) -> str:
    """How often each conclusion occurs, the most frequent first."""
    tally = Counter(" ".join(text.split()) for text in conclusions)
    return "\n".join(f"{count} × {text}" for text, count in tally.most_common())


def union(conclusions: Sequence[str]) -> str:
    """Every line or comma-separated item of the conclusions, once, in order."""
    items = (item.strip() for text in conclusions for item in re.split(r"[\n,]", text))
    return ", ".join(dict.fromkeys(item for item in items if item))


def add_up(conclusions: Sequence[str]) -> str | None:
    """The sum of conclusions that are numbers."""
    numbers = [text.strip() for text in conclusions]
    if not numbers or not all(re.fullmatch(r"[+-]?\d{1,30}(\.\d{1,30})?", n) for n in numbers):
        return None
    return str(sum(map(Decimal, numbers)))


POLICIES: dict[str, MergePolicy] = {
    policy.name: policy
    for policy in (
        Full(),
        Conclusions(),
        Summaries(),
        Reduction("count", count_equal),
        Reduction("union", union),
        Reduction("sum", add_up),
    )
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


def show(policy: MergePolicy, results: Sequence[ThreadResult], verdict: str | None) -> list[Shown]:
    """What the parent sees of ``results``, in their order; a thread that is not done has one line.

    Args:
        verdict: what the join policy says for all of them.
    """
    done = [result for result in results if result.status == "done" and not result.is_lane]
    reduced = verdict if verdict is not None else policy.reduce([r.conclusion for r in done])
    shown = []
    for result in results:
        number, asked = result.outline[:2] if result.outline else ("", "")
        if result.is_lane:
            shown.append(Shown(number, result.transcript, True, result.id))
        elif result.status == "done":
            if reduced is None:
                shown.append(Shown(number, *policy.show(result), result.id, asked))
            elif result is done[0]:
                shown.append(Shown(number, reduced))
        elif verdict is None or result.status != "cancelled":
            why = " ".join((result.reason or "").split())[:LONGEST_REASON]
            shown.append(Shown(number, f"({result.status}: {why})", False, result.id, asked))
    return shown


def fit(
    shown: Sequence[Shown],
    room: int,
    *,
    join: Callable[[Sequence[Shown]], str],
    count: Callable[[str], int],
    tail: Callable[[str, int], str],
) -> str:
    """The join of ``shown`` in at most ``room`` tokens: long texts are cut to their ends.

    Texts that are shorter than their share leave the rest to longer ones. Where not even
    the frame of the join fits, equal texts are counted, or one line says how many there were.
    """
    text = join(shown)
    if count(text) <= room:
        return text
    lengths = [count(one.text) for one in shown]
    frame = count(join([one._replace(text="", verbatim=False) for one in shown]))
    share = _share(lengths, room - frame)
    while share > 0:
        cut = [
            one if length <= share else one._replace(text=f"…{tail(one.text, share - 1)}")
            for one, length in zip(shown, lengths, strict=True)
        ]
        text = join(cut)
        over = count(text) - room
        if over <= 0:
            return text
        # Tokens at the seams: what is cut need not be as long as it was.
        share -= max(1, over // len(shown))
    for text in (
        f"{len(shown)} results:\n{count_equal([one.text for one in shown])}",
        f"{len(shown)} results, too many to be shown here",
    ):
        line = join([Shown("1", text)])
        if count(line) <= room:
            return line
    return tail(line, room)


def shortened(
    text: str,
    room: int,
    *,
    count: Callable[[str], int],
    tail: Callable[[str, int], str],
) -> str:
    """``text`` in at most ``room`` tokens: its start, how much is left out, and its end."""
    total = count(text)
    kept = room if total > room else 0
    while kept > 0:
        start = text[: len(text) - len(tail(text, total - kept // 2))]
        left_out = f"\n[… {total - kept} of {total} tokens are left out here …]\n"
        cut = start + left_out + tail(text, kept - kept // 2)
        over = count(cut) - room
        if over <= 0:
            return cut
        kept -= over
    return text if total <= room else tail(text, room)


def _share(lengths: Sequence[int], room: int) -> int:
    """The longest share such that texts cut to it fill no more than ``room``."""
    left = room
    for position, length in enumerate(sorted(lengths)):
        share = left // (len(lengths) - position)
        if length > share:
            return share
        left -= length
    return max(lengths, default=0)
