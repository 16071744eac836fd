"""What a run cost and what the parallelism saved: in tokens, in seconds, in money."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from apr_agents.types import Block, Call, Generated, ThreadResult

SHINGLE = 5
"""Words or symbols that make a shingle."""

_WORD = re.compile(r"\w+|[^\w\s]")


class Prices(NamedTuple):
    """What a million tokens cost, in any currency.

    Attributes:
        prompt: tokens that a model reads.
        completion: tokens that it generates.
        cached: tokens that it reads and had computed before; ``None``: the same as others.
    """

    prompt: float
    completion: float
    cached: float | None = None

    def of(self, call: Generated) -> float:
        """What a model call cost."""
        cached = call.cached_tokens or 0
        kept = self.prompt if self.cached is None else self.cached
        read = (call.prompt_tokens - cached) * self.prompt + cached * kept
        return (read + call.tokens * self.completion) / 1e6


class Metrics(BaseModel):
    """Measures of one run. Tokens are generated tokens unless said otherwise.

    Attributes:
        total_tokens: all tokens generated, by every thread.
        prompt_tokens: tokens of all prompts: each call reads its whole context.
        prefix_hit_share: share of the prompt tokens that did not have to be computed, of those
            calls whose backend tells; ``None`` where none does.
        critical_path: longest dependent chain: a thread's own tokens, and for each of its
            blocks the longest of the block's threads, recursively.
        peak_context: the longest context (prompt and output) that any model call saw.
        parallel_efficiency: ``1 - critical_path / total_tokens``; 0 for a sequential run.
        work_span: ``total_tokens / critical_path``; 1 for a sequential run.
        activated: whether anything was spawned.
        threads: threads that ran, the root and lanes of parents not counted.
        parallel_ratio: share of the tokens generated inside parallel blocks.
        outline_balance: mean over blocks of mean / longest thread; ``None`` without a block.
        redundancy: mean over blocks of the share of the threads' shingles (`SHINGLE` words or
            symbols in a row) that another thread of the block wrote as well: 0 when no two
            have one in common, 1 for equal threads; ``None`` without a block.
        speedup: token-latency speedup: tokens of a sequential baseline / critical path;
            ``None`` without a baseline.
        estimated_speedup: the same against an estimate: a sequential run would write all that
            the threads wrote, one after the other, but no summaries of threads. ``None`` for
            a run without a token.
        seconds: wall-clock time of the run.
        gate_wait: seconds that model calls waited at the gate, all calls together.
        queueing: seconds from the gate to the first token, all calls together: the model's own
            queue and its work on the prompt.
        cost: what the tokens cost; ``None`` without prices.
    """

    model_config = ConfigDict(frozen=True)

    total_tokens: int
    prompt_tokens: int
    prefix_hit_share: float | None
    critical_path: int
    peak_context: int
    parallel_efficiency: float
    work_span: float
    activated: bool
    threads: int
    parallel_ratio: float
    outline_balance: float | None
    redundancy: float | None
    speedup: float | None
    estimated_speedup: float | None
    seconds: float
    gate_wait: float
    queueing: float
    cost: float | None


def measure(
    root: ThreadResult, *, baseline_tokens: int | None = None, prices: Prices | None = None
) -> Metrics:
    """Measure the run whose root thread is ``root``.

    Args:
        baseline_tokens: what a sequential run of the same question generated.
        prices: of the model's tokens.
    """
    threads = list(root.walk())
    calls = [step for thread in threads for step in _calls(thread)]
    total = sum(call.tokens for call in calls)
    written = sum(call.tokens for call in calls if isinstance(call, Call))
    span = critical_path(root)
    blocks = [block for thread in threads for block in thread.blocks]
    own = sum(call.tokens for call in _calls(root))
    return Metrics(
        total_tokens=total,
        prompt_tokens=sum(call.prompt_tokens for call in calls),
        prefix_hit_share=_hit_share(calls),
        critical_path=span,
        peak_context=max((call.prompt_tokens + call.tokens for call in calls), default=0),
        parallel_efficiency=1 - span / total if total else 0.0,
        work_span=total / span if span else 1.0,
        activated=len(threads) > 1,
        threads=sum(not thread.is_lane for thread in threads) - 1,
        parallel_ratio=(total - own) / total if total else 0.0,
        outline_balance=fmean(map(_balance, blocks)) if blocks else None,
        redundancy=fmean(map(_redundancy, blocks)) if blocks else None,
        speedup=baseline_tokens / span if baseline_tokens is not None and span else None,
        estimated_speedup=written / span if span else None,
        seconds=root.seconds,
        gate_wait=sum(call.waited for call in calls),
        queueing=sum(call.first_token or 0.0 for call in calls),
        cost=sum(map(prices.of, calls)) if prices is not None else None,
    )


def critical_path(thread: ThreadResult) -> int:
    """Tokens of the longest dependent chain through ``thread`` and everything below it."""
    own = sum(call.tokens for call in _calls(thread))
    return own + sum(max(map(critical_path, block.threads), default=0) for block in thread.blocks)


def _calls(thread: ThreadResult) -> list[Generated]:
    return [step for step in thread.steps if isinstance(step, Generated)]


def _hit_share(calls: Sequence[Generated]) -> float | None:
    told = [(call.cached_tokens, call.prompt_tokens) for call in calls]
    known = [(hit, asked) for hit, asked in told if hit is not None]
    asked = sum(asked for _, asked in known)
    return sum(hit for hit, _ in known) / asked if asked else None


def _balance(block: Block) -> float:
    lengths = [thread.tokens for thread in block.threads]
    longest = max(lengths, default=0)
    return sum(lengths) / len(lengths) / longest if longest else 1.0


def _redundancy(block: Block) -> float:
    threads_with: Counter[tuple[str, ...]] = Counter()
    for thread in block.threads:
        threads_with.update(shingles(thread))
    written = threads_with.total()
    repeated = sum(threads for threads in threads_with.values() if threads > 1)
    return repeated / written if written else 0.0


def shingles(thread: ThreadResult) -> set[tuple[str, ...]]:
    """The shingles of what a thread wrote itself; of a short text, the text."""
    words = _WORD.findall("".join(step.text for step in thread.steps if isinstance(step, Call)))
    if len(words) <= SHINGLE:
        return {tuple(words)} if words else set()
    return set(zip(*(words[i:] for i in range(SHINGLE)), strict=False))
