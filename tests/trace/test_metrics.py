from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_agents.trace.metrics import Prices, critical_path, measure
from apr_agents.types import Block, Call, Generated, Note, Summary, ThreadResult
from tests.trace.runs import block, call, roots, thread


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


def flat(root: ThreadResult) -> list[tuple[int, Generated]]:
    """Every model call, and how many levels below the root it was made."""
    found, stack = [], [(0, root)]
    while stack:
        level, each = stack.pop()
        for step in each.steps:
            if isinstance(step, Call | Summary):
                found.append((level, step))
            elif isinstance(step, Block):
                stack += [(level + 1, child) for child in step.threads]
    return found


prices = st.builds(Prices, *[st.floats(0, 100)] * 2, st.none() | st.floats(0, 100))


@settings(max_examples=200)
@given(roots, st.none() | st.integers(0, 500), st.none() | prices)
def test_metrics_equal_a_brute_force_count(
    root: ThreadResult, baseline: int | None, price: Prices | None
) -> None:
    metrics = measure(root, baseline_tokens=baseline, prices=price)
    seen = flat(root)
    calls = [call for _, call in seen]
    total = sum(call.tokens for call in calls)
    span = longest_chain(root)
    blocks = [step for each in root.walk() for step in each.blocks]
    threads = sum(len(step.threads) for step in blocks)
    assert metrics.total_tokens == total == root.tokens
    assert metrics.prompt_tokens == sum(call.prompt_tokens for call in calls)
    assert metrics.critical_path == critical_path(root) == span <= total
    assert metrics.peak_context == max(
        (call.prompt_tokens + call.tokens for call in calls), default=0
    )
    assert metrics.threads == threads
    assert metrics.activated is (threads > 0)
    assert metrics.seconds == 1.5
    assert metrics.gate_wait == pytest.approx(sum(call.waited for call in calls))
    firsts = [call.first_token for call in calls if call.first_token is not None]
    assert metrics.queueing == pytest.approx(sum(firsts))
    told = [call for call in calls if call.cached_tokens is not None]
    asked = sum(call.prompt_tokens for call in told)
    hits = sum(call.cached_tokens or 0 for call in told)
    assert metrics.prefix_hit_share == (pytest.approx(hits / asked) if asked else None)
    balances = []
    for step in blocks:
        sizes = [sum(call.tokens for _, call in flat(child)) for child in step.threads]
        balances.append(sum(sizes) / len(sizes) / max(sizes) if any(sizes) else 1.0)
    mean = sum(balances) / len(balances) if balances else None
    assert metrics.outline_balance == (None if mean is None else pytest.approx(mean))
    if total:
        inside = sum(call.tokens for level, call in seen if level)
        written = sum(call.tokens for call in calls if isinstance(call, Call))
        assert metrics.parallel_efficiency == pytest.approx((total - span) / total)
        assert metrics.parallel_ratio == pytest.approx(inside / total)
        assert metrics.work_span == pytest.approx(total / span)
        assert metrics.speedup == (None if baseline is None else pytest.approx(baseline / span))
        assert metrics.estimated_speedup == pytest.approx(written / span)
    else:
        assert (metrics.parallel_efficiency, metrics.work_span) == (0.0, 1.0)
        assert (metrics.speedup, metrics.estimated_speedup) == (None, None)
    if price is None:
        assert metrics.cost is None
    else:
        cost = 0.0
        for each in calls:
            cached, read = each.cached_tokens or 0, each.prompt_tokens - (each.cached_tokens or 0)
            kept = price.prompt if price.cached is None else price.cached
            cost += read * price.prompt + cached * kept + each.tokens * price.completion
        assert metrics.cost == pytest.approx(cost / 1_000_000)


def test_a_sequential_run_saves_nothing() -> None:
    metrics = measure(thread("0", [call(10, 5), call(4, 20)]), baseline_tokens=14)
    assert metrics.model_dump() == {
        "total_tokens": 14,
        "prompt_tokens": 25,
        "prefix_hit_share": None,
        "critical_path": 14,
        "peak_context": 24,
        "parallel_efficiency": 0.0,
        "work_span": 1.0,
        "activated": False,
        "threads": 0,
        "parallel_ratio": 0.0,
        "outline_balance": None,
        "redundancy": None,
        "speedup": 1.0,
        "estimated_speedup": 1.0,
        "seconds": 1.5,
        "gate_wait": 0.0,
        "queueing": 0.0,
        "cost": None,
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
    assert (empty.outline_balance, empty.redundancy) == (1.0, 0.0)


def says(id: str, text: str) -> ThreadResult:
    return thread(id, [Call(text=text, tokens=1, prompt_tokens=0)])


def redundancy(*blocks: Block) -> float | None:
    return measure(thread("0", list(blocks))).redundancy


def test_redundancy_is_the_share_of_shingles_that_another_thread_wrote_too() -> None:
    # Shingles: "a b c d e" in two threads, "b c d e f" and "b c d e g" in one each; "x y" is one.
    threads = says("0.1", "a b c d e f"), says("0.2", "a b  c\nd e g"), says("0.3", "x y")
    assert redundancy(block(*threads)) == pytest.approx(2 / 5)
    assert redundancy(block(*threads), block(*threads[:1])) == pytest.approx((2 / 5 + 0) / 2)


def test_equal_threads_are_all_redundant_and_a_thread_that_repeats_itself_is_not() -> None:
    assert redundancy(block(says("0.1", "12*7=84"), says("0.2", "12*7=84"))) == 1.0
    assert redundancy(block(says("0.1", "12*7=84 " * 3), says("0.2", "9*9=81"))) == 0.0


def test_what_a_thread_was_told_is_no_redundancy() -> None:
    told = Note(event="declined", why="", told="a b c d e")
    assert redundancy(block(thread("0.1", [told]), thread("0.2", [told]))) == 0.0


def test_an_estimated_baseline_writes_what_the_threads_wrote_but_no_summaries() -> None:
    summary = Summary(text="", tokens=4, prompt_tokens=0)
    root = thread(
        "0", [call(10), block(thread("0.1", [call(20), summary]), thread("0.2", [call(6)]))]
    )
    metrics = measure(root)
    assert metrics.estimated_speedup == (10 + 20 + 6) / (10 + 20 + 4)
    assert metrics.speedup is None


def test_waiting_is_counted_in_every_call() -> None:
    root = thread(
        "0",
        [
            call(1, waited=0.5, first_token=0.25),
            block(
                thread("0.1", [call(1, waited=1.0, first_token=2.0)]),
                thread("0.2", [call(0, waited=3.0, first_token=None)]),
            ),
        ],
    )
    metrics = measure(root)
    assert metrics.gate_wait == 0.5 + 1.0 + 3.0
    assert metrics.queueing == 0.25 + 2.0


def test_prefix_hits_are_a_share_of_the_prompts_whose_backend_tells() -> None:
    told = [call(1, 100, cached_tokens=0), call(1, 300, cached_tokens=280)]
    assert measure(thread("0", [*told, call(1, 999)])).prefix_hit_share == 280 / 400
    assert measure(thread("0", [call(1, 999)])).prefix_hit_share is None


def test_a_run_costs_what_its_tokens_cost() -> None:
    root = thread(
        "0", [call(200_000, 1_000_000), call(100_000, 3_000_000, cached_tokens=2_000_000)]
    )
    cost = measure(root, prices=Prices(prompt=1.25, completion=10.0)).cost
    assert cost == 4 * 1.25 + 0.3 * 10.0
    cheaper = measure(root, prices=Prices(prompt=1.25, completion=10.0, cached=0.125)).cost
    assert cheaper == pytest.approx(2 * 1.25 + 2 * 0.125 + 0.3 * 10.0)
