"""What a run cost and what the parallelism saved, counted in tokens."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from apr_agents.types import Block, Call, Summary, ThreadResult


class Metrics(BaseModel):
    """Measures of one run. Tokens are generated tokens unless said otherwise.

    Attributes:
        total_tokens: all tokens generated, by every thread.
        critical_path: longest dependent chain: a thread's own tokens, and for each of its
            blocks the longest of the block's threads, recursively.
        peak_context: the longest context (prompt and output) that any model call saw.
        parallel_efficiency: ``1 - critical_path / total_tokens``; 0 for a sequential run.
        work_span: ``total_tokens / critical_path``; 1 for a sequential run.
        activated: whether anything was spawned.
        threads: threads that ran, the root not counted.
        parallel_ratio: share of the tokens generated inside parallel blocks.
        outline_balance: mean over blocks of mean / longest thread; ``None`` without a block.
        speedup: token-latency speedup: tokens of a sequential baseline / critical path;
            ``None`` without a baseline.
        seconds: wall-clock time of the run.
    """

    model_config = ConfigDict(frozen=True)

    total_tokens: int
    critical_path: int
    peak_context: int
    parallel_efficiency: float
    work_span: float
    activated: bool
    threads: int
    parallel_ratio: float
    outline_balance: float | None
    speedup: float | None
    seconds: float


def measure(root: ThreadResult, *, baseline_tokens: int | None = None) -> Metrics:
    """Measure the run whose root thread is ``root``."""
    threads = list(root.walk())
    calls = [step for thread in threads for step in _calls(thread)]
    total = sum(call.tokens for call in calls)
    span = critical_path(root)
    balances = [_balance(block) for thread in threads for block in thread.blocks]
    own = sum(call.tokens for call in _calls(root))
    return Metrics(
        total_tokens=total,
        critical_path=span,
        peak_context=max((call.prompt_tokens + call.tokens for call in calls), default=0),
        parallel_efficiency=1 - span / total if total else 0.0,
        work_span=total / span if span else 1.0,
        activated=len(threads) > 1,
        threads=len(threads) - 1,
        parallel_ratio=(total - own) / total if total else 0.0,
        outline_balance=sum(balances) / len(balances) if balances else None,
        speedup=baseline_tokens / span if baseline_tokens is not None and span else None,
        seconds=root.seconds,
    )


def critical_path(thread: ThreadResult) -> int:
    """Tokens of the longest dependent chain through ``thread`` and everything below it."""
    own = sum(call.tokens for call in _calls(thread))
    return own + sum(max(map(critical_path, block.threads), default=0) for block in thread.blocks)


def _calls(thread: ThreadResult) -> list[Call | Summary]:
    return [step for step in thread.steps if isinstance(step, Call | Summary)]


def _balance(block: Block) -> float:
    lengths = [thread.tokens for thread in block.threads]
    longest = max(lengths, default=0)
    return sum(lengths) / len(lengths) / longest if longest else 1.0
