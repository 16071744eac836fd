"""``max_threads="auto"``: as many threads as the model has free lanes for, when it is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from apr_agents.backends.scripted import Reply, ScriptedBackend
from apr_agents.graph.build import create_parallel_agent
from apr_agents.limits import Allowance, Limits
from apr_agents.protocols.threadweaver import ThreadWeaver
from apr_agents.types import Outline

AUTO = Limits(max_threads="auto")


class Laned(ScriptedBackend):
    """Tells its free lanes: each time the next number, in the end the last again and again."""

    def __init__(self, replies: Mapping[str, Reply | str], *free: int | None) -> None:
        super().__init__(lambda request: replies[request.key])
        self.free, self.asked = list(free), 0

    async def free_lanes(self) -> int | None:
        self.asked += 1
        return self.free.pop(0) if len(self.free) > 1 else self.free[0]

    def prompt(self, key: str) -> str:
        return next(request.prompt for request in self.requests if request.key == key)


@pytest.mark.parametrize(
    ("limits", "free", "told"),
    [
        (AUTO, 3, 3),
        (AUTO, 0, 0),
        (AUTO, 100, 8),  # no more would run at once
        (Limits(max_threads="auto", max_concurrency=32), 100, 32),
        (Limits(max_threads="auto", max_concurrency=200), 100, 64),
        (Limits(max_threads="auto", max_total_threads=2), 5, 2),
        (Limits(max_threads="auto", max_depth=0), 5, 0),
        (AUTO, None, 8),
    ],
)
async def test_the_model_is_told_as_many_threads_as_can_run(
    ask: Any, limits: Limits, free: int | None, told: int
) -> None:
    backend = Laned({"0/0": "alone</think>4"}, free)
    run = await ask(create_parallel_agent(backend, limits=limits))
    assert f"\nThreads: {told}\n" in backend.prompt("0/0")
    assert run.budget == told


async def test_without_auto_nobody_asks_for_lanes(ask: Any) -> None:
    backend = Laned({"0/0": "alone</think>4"}, 1)
    assert (await ask(create_parallel_agent(backend))).budget == 8
    assert backend.asked == 0


async def test_what_the_model_was_told_is_what_it_gets(
    ask: Any, outlines: Callable[..., str]
) -> None:
    replies = {
        "0/0": outlines(*"abcd"),
        "0.1/0": " 1</Thread>",
        "0.2/0": " 2</Thread>",
        "0/2": "</Parallel></think>4",
    }
    backend = Laned(replies, 2)
    run = await ask(create_parallel_agent(backend, limits=AUTO))
    assert [thread.id for thread in run.root.blocks[0].threads] == ["0.1", "0.2"]
    assert run.root.blocks[0].left_out == [Outline("3", "c"), Outline("4", "d")]
    assert (run.answer, run.budget) == ("4", 2)


@pytest.mark.parametrize("saver", [None, InMemorySaver()])
async def test_threads_share_the_lanes_that_are_free_when_they_start(
    ask: Any, outlines: Callable[..., str], saver: InMemorySaver | None
) -> None:
    replies = {
        "0/0": outlines("a", "b"),
        "0.1/0": "one</think>1",
        "0.2/0": outlines(*"vwxyz"),
        **{f"0.2.{i}/0": "deep</think>2" for i in range(1, 4)},
        "0.2/2": "</Parallel></think>3",
        "0/2": "</Parallel></think>4",
    }
    backend = Laned(replies, 8, 7, 5)
    agent = create_parallel_agent(
        backend, limits=AUTO, protocol=ThreadWeaver("isolated"), checkpointer=saver
    )
    run = await ask(agent, config={"configurable": {"thread_id": "1"}})
    assert run.answer == "4"
    told = {key: f"\nThreads: {n}\n" for key, n in {"0/0": 8, "0.1/0": 3, "0.2/0": 3}.items()}
    assert all(line in backend.prompt(key) for key, line in told.items())
    assert len(run.threads()["0.2"].blocks[0].threads) == 3
    assert "\nThreads: 0\n" in backend.prompt("0.2.1/0")  # the depth allows no more
    assert run.budget == 8


def test_lanes_are_divided_like_everything_else() -> None:
    root = Allowance.of(AUTO, lanes=6)
    assert (root.lanes, root.block_size(AUTO)) == (6, 6)
    child = root.share(4, AUTO, lanes=5)
    assert (child.lanes, child.block_size(AUTO)) == (1, 1)
    assert root.share(4, AUTO).block_size(AUTO) == 8
    assert root.less(threads=1).less_own(tokens=1, seconds=0).lanes == 6
