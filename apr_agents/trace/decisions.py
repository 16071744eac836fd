"""Why a run split or did not: every decision, what was known, what the other way costs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

from apr_agents.trace.metrics import critical_path
from apr_agents.types import Block, Call, Note, ThreadResult

Choice = Literal["split", "alone", "declined", "malformed"]


class SplitDecision(NamedTuple):
    """One decision to split or not: one for each model call that might start a thread or tried.

    Attributes:
        thread: id of the thread that decided.
        step: index of its model call among the thread's steps.
        budget: threads that it might start.
        lanes: lanes of the model that were free then, where that decided on the budget.
        choice: ``split``; ``alone``: it went on by itself; ``declined``: it wanted to split and
            the limits did not allow it; ``malformed``: what it wanted could not be read.
        why: of the last two, the reason.
        threads: how many threads started.
        tokens: what the choice added to the critical path: of a split, the tokens of the
            block's longest chain; else, of the model call.
        otherwise: an estimate of what the other way would have added. For a split: all tokens
            of the block's threads, written one after the other. Else: the call's tokens,
            shared out evenly among as many threads as it might start; no split adds less.
    """

    thread: str
    step: int
    budget: int
    lanes: int | None
    choice: Choice
    why: str
    threads: int
    tokens: int
    otherwise: int


def decisions(root: ThreadResult) -> list[SplitDecision]:
    """Every decision of a run to split or not, thread by thread, parents first.

    Records of version 1 do not tell budgets: they have those decisions only that led to a
    split or tried to.
    """
    return [decision for thread in root.walk() for decision in _decisions(thread)]


def _decisions(thread: ThreadResult) -> Iterator[SplitDecision]:
    steps = thread.steps
    calls = [index for index, step in enumerate(steps) if isinstance(step, Call)]
    for index, following in pairwise([*calls, len(steps)]):
        call, *results = steps[index:following]
        assert isinstance(call, Call)
        choice: Choice = "alone"
        why, threads, tokens, otherwise = "", 0, call.tokens, -(-call.tokens // (call.budget or 1))
        for step in results:
            match step:
                case Note(event="malformed" | "declined" as refused) if choice != "split":
                    choice, why = refused, step.why
                case Block():
                    choice, why, threads = "split", "", len(step.threads)
                    tokens = max(map(critical_path, step.threads), default=0)
                    otherwise = sum(each.tokens for each in step.threads)
        if call.budget or choice != "alone":
            yield SplitDecision(
                thread.id, index, call.budget, call.lanes, choice, why, threads, tokens, otherwise
            )
