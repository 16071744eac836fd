from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_agents.trace.metrics import critical_path, measure
from apr_agents.types import Block, Call, Note, Outline, Step, Summary, ThreadResult


def thread(id: str, steps: Sequence[Step]) -> ThreadResult:
    below = [child for step in steps if isinstance(step, Block) for child in step.threads]
    own = sum(step.tokens for step in steps if isinstance(step, Call | Summary))
    return ThreadResult(
        id=id,
        outline=None if id == "0" else Outline(id.rpartition(".")[2], ""),
        status="done",
        tokens=own + sum(child.tokens for child in below),
        seconds=1.5,
        steps=list(steps),
    )


def call(tokens: int, prompt: int = 0) -> Call:
    return Call(text="", tokens=tokens, prompt_tokens=prompt)


def block(*threads: ThreadResult) -> Block:
    return Block(threads=list(threads), joined="")


counts = st.integers(0, 30)
calls = st.builds(call, counts, counts)
summaries = st.builds(
    lambda tokens, prompt: Summary(text="", tokens=tokens, prompt_tokens=prompt), counts, counts
)
notes = st.just(Note(event="declined", why="", told=" "))


def trees(below: st.SearchStrategy[list[Step]] | None) -> st.SearchStrategy[list[Step]]:
    choices = [calls, summaries, notes]
    if below is not None:
        choices.append(
            st.lists(below, max_size=4).map(
                lambda steps: block(*(thread(f"0.{i}", each) for i, each in enumerate(steps, 1)))
            )
        )
    return st.lists(st.one_of(choices), max_size=5)


roots = trees(trees(trees(None))).map(lambda steps: thread("0", steps))


def longest_chain(root: ThreadResult) -> int:
    """The critical path again: the longest path through an explicit graph of model calls."""
    costs: list[int] = []
    edges: list[list[int]] = []

    def node(cost: int, after: list[int]) -> int:
        costs.append(cost)
        edges.append(after)
        return len(costs) - 1

    def lay(each: ThreadResult, entry: int) -> int:
        """Add the nodes of a thread behind ``entry``; its last node."""
        last = entry
        for step in each.steps:
            if isinstance(step, Call | Summary):
                last = node(step.tokens, [last])
            elif isinstance(step, Block):
                last = node(0, [last, *[lay(child, last) for child in step.threads]])
        return last

    lay(root, node(0, []))
    finished: list[int] = []
    for cost, after in zip(costs, edges, strict=True):
        finished.append(cost + max((finished[i] for i in after), default=0))
    return max(finished)


def flat(root: ThreadResult) -> list[tuple[int, int, int]]:
    """``(level, prompt tokens, tokens)`` of every model call."""
    found, stack = [], [(0, root)]
    while stack:
        level, each = stack.pop()
        for step in each.steps:
            if isinstance(step, Call | Summary):
                found.append((level, step.prompt_tokens, step.tokens))
            elif isinstance(step, Block):
                stack += [(level + 1, child) for child in step.threads]
    return found


@given(roots, st.none() | st.integers(0, 500))
def test_metrics_equal_a_brute_force_count(root: ThreadResult, baseline: int | None) -> None:
    metrics = measure(root, baseline_tokens=baseline)
    seen = flat(root)
    total = sum(tokens for _, _, tokens in seen)
    span = longest_chain(root)
    threads = sum(len(step.threads) for each in root.walk() for step in each.blocks)
    assert metrics.total_tokens == total == root.tokens
    assert metrics.critical_path == critical_path(root) == span <= total
    assert metrics.peak_context == max((prompt + tokens for _, prompt, tokens in seen), default=0)
    assert metrics.threads == threads
    assert metrics.activated is (threads > 0)
    assert metrics.seconds == 1.5
    if total:
        inside = sum(tokens for level, _, tokens in seen if level)
        assert metrics.parallel_efficiency == pytest.approx((total - span) / total)
        assert metrics.parallel_ratio == pytest.approx(inside / total)
        assert metrics.work_span == pytest.approx(total / span)
        assert metrics.speedup == (None if baseline is None else pytest.approx(baseline / span))
    else:
        assert (metrics.parallel_efficiency, metrics.work_span) == (0.0, 1.0)
        assert metrics.speedup is None


def test_a_sequential_run_saves_nothing() -> None:
    metrics = measure(thread("0", [call(10, 5), call(4, 20)]), baseline_tokens=14)
    assert metrics.model_dump() == {
        "total_tokens": 14,
        "critical_path": 14,
        "peak_context": 24,
        "parallel_efficiency": 0.0,
        "work_span": 1.0,
        "activated": False,
        "threads": 0,
        "parallel_ratio": 0.0,
        "outline_balance": None,
        "speedup": 1.0,
        "seconds": 1.5,
    }


def test_a_nested_run_is_measured_as_by_hand() -> None:
    nested = thread(
        "0.1", [call(5), block(thread("0.1.1", [call(7)]), thread("0.1.2", [call(3)])), call(2)]
    )
    root = thread(
        "0",
        [
            call(10, 4),
            block(nested, thread("0.2", [call(16, 20)])),
            call(1, 9),
            block(thread("0.3", [call(6)])),
            call(2),
        ],
    )
    metrics = measure(root, baseline_tokens=70)
    assert metrics.total_tokens == 10 + (5 + 7 + 3 + 2) + 16 + 1 + 6 + 2
    assert metrics.critical_path == 10 + max(5 + 7 + 2, 16) + 1 + 6 + 2 == 35
    assert metrics.threads == 5
    assert metrics.peak_context == 36
    assert metrics.parallel_ratio == pytest.approx((17 + 16 + 6) / 52)
    assert metrics.outline_balance == pytest.approx((16.5 / 17 + 1 + 5 / 7) / 3)
    assert metrics.speedup == 2.0


def test_a_run_without_a_token_divides_by_nothing() -> None:
    empty = measure(thread("0", [block(thread("0.1", []))]), baseline_tokens=5)
    assert (empty.total_tokens, empty.work_span, empty.speedup) == (0, 1.0, None)
    assert empty.outline_balance == 1.0
