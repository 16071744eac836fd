"""A model that behaves ideally on work of a known shape, and errs the more the longer its context.

It writes ThreadWeaver's tags. Its work is to count parts: each costs tokens and is worth 1 if
nothing goes wrong in it, and something else if it does. So an answer is right if all parts were.
"""

from __future__ import annotations

import re
from itertools import pairwise
from random import Random
from typing import NamedTuple

from apr_agents.backends.base import Request
from apr_agents.backends.scripted import tokens
from apr_agents.protocols.threadweaver import ThreadWeaver
from apr_agents.simulation.scenario import Workload
from apr_agents.types import Outline

_SHARE = re.compile(r"([0-9]+): parts ([0-9]+)-([0-9]+)( apart)?")
_BUDGET = re.compile(r"\nThreads: ([0-9]+)\n<think>\n\Z")
_RESULT = re.compile(r"<Thread>\n[0-9]+:(.*?)</Thread>", re.DOTALL)


class _Share(NamedTuple):
    """Parts ``first`` to ``last`` of a user's work, as questions and outlines name them.

    Attributes:
        apart: only what can be done apart.
    """

    user: int
    first: int
    last: int
    apart: bool = False

    @classmethod
    def read(cls, text: str, start: int = 0) -> _Share:
        """The first one in ``text`` from ``start`` on."""
        found = _SHARE.search(text, start)
        assert found is not None
        return cls(int(found[1]), int(found[2]), int(found[3]), bool(found[4]))

    def __str__(self) -> str:
        return f"{self.user}: parts {self.first}-{self.last}" + (" apart" if self.apart else "")

    @property
    def parts(self) -> int:
        return self.last - self.first + 1

    def split(self, count: int) -> list[_Share]:
        """So many runs of nearly equal length, each apart from the others."""
        ends = [self.first + self.parts * i // count for i in range(count + 1)]
        return [_Share(self.user, first, end - 1, apart=True) for first, end in pairwise(ends)]


def question(workload: Workload, user: int) -> str:
    """What a user asks; the number tells users apart."""
    return f"{_Share(user, 1, workload.parts)}\n" + "." * workload.prompt


class IdealModel:
    """Splits its work into as many threads as it may use, and goes through what is left of it.

    Whoever is asked a question (the root; a thread that sees its own outline only) splits if
    it may use two threads, has two parts, and the parts can be done apart: into
    ``min(budget, parts)`` threads. A thread that sees its parent's context was told no budget, and
    does not split again.
    """

    def __init__(self, workload: Workload, *, seed: int = 0) -> None:
        self.workload, self.seed = workload, seed

    def reply(self, request: Request, context: int) -> str:
        """What it writes behind a prompt of ``context`` tokens."""
        prompt = request.prompt
        luck = _Luck(self.workload, f"{self.seed}/{prompt[:40]}/{request.key}")
        before, opened, header = prompt.rpartition("\n<Thread>\n")
        if opened and header[:-1].isdigit():
            outline = f"<Outline>{header} "
            share = _Share.read(before, before.rfind(outline))
            text, worth = self._go_through(share, luck, context)
            return f"{text}\n{worth}</Thread>"
        share = _Share.read(prompt)
        budget = _BUDGET.search(prompt)
        if budget is None:
            text, worth = self._go_on(share, prompt.rpartition("</Outlines>")[2], luck, context)
        elif self._splits(share, int(budget[1])):
            shares = share.split(min(int(budget[1]), share.parts))
            return ThreadWeaver().block(
                [Outline(str(i), str(each)) for i, each in enumerate(shares, 1)]
            )
        else:
            text, worth = self._go_through(share, luck, context)
        return f"{text}\n</think>\n{worth}"

    def _splits(self, share: _Share, budget: int) -> bool:
        return budget > 1 and share.parts > 1 and self.workload.apart > 0

    def _go_through(self, share: _Share, luck: _Luck, context: int) -> tuple[str, int]:
        """One part after the other; what was written, and what it comes to."""
        each = self.workload.apart if share.apart else self.workload.tokens
        off = sum(luck.miss(context + each * done, each) for done in range(1, share.parts + 1))
        return "." * (each * share.parts), share.parts + off

    def _go_on(self, share: _Share, joined: str, luck: _Luck, context: int) -> tuple[str, int]:
        """Read what the threads came to, do what had to wait for them, and add up."""
        results = [_number(result) for result in _RESULT.findall(joined)]
        if not results:  # it was not allowed any
            return self._go_through(share, luck, context)
        behind = 0 if share.apart else (self.workload.tokens - self.workload.apart) * share.parts
        text = f"\n</Parallel>\n{'.' * behind}\n{'+'.join(map(str, results))}"
        written = len(tokens(text))
        off = luck.miss(context + written, written)
        return text, sum(results) + off


class _Luck:
    """What goes wrong in one model call: the same in every run with its seed."""

    def __init__(self, workload: Workload, seed: str) -> None:
        self.workload, self._random = workload, Random(seed)

    def miss(self, context: int, tokens: int) -> int:
        """By how much a piece of work that ends in this context is off; 0 if it is right."""
        wrong = self.workload.wrong(context)
        if not wrong or self._random.random() < (1 - wrong) ** tokens:
            return 0
        return self._random.randrange(1, 10**9)


def _number(result: str) -> int:
    """What a thread came to; nothing if it tells why it did not."""
    last = result.rpartition("\n")[2].strip()
    return int(last) if last.isdigit() else 0
