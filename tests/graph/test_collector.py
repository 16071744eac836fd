"""What the garbage collector has to look at while hundreds of threads run."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any
from weakref import ref

import pytest

from apr_agents.graph.build import create_parallel_agent
from apr_agents.graph.collector import MANY, spare_what_exists
from apr_agents.limits import Limits


class Ring:
    """Refers to itself."""

    def __init__(self) -> None:
        self.ring = self


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """As in a process where nothing is frozen, before and after."""

    def thaw() -> None:
        gc.unfreeze()
        spare_what_exists.cache_clear()

    thaw()
    yield
    thaw()


def test_an_agent_for_many_threads_has_what_exists_passed_over_once(scripted: Any) -> None:
    limits = Limits(max_total_threads=MANY)
    create_parallel_agent(scripted({}), limits=limits)
    frozen = gc.get_freeze_count()
    assert frozen > 10_000
    later = [Ring() for _ in range(100)]
    create_parallel_agent(scripted({}), limits=limits)
    assert gc.get_freeze_count() <= frozen
    left = ref(later[0])
    later.clear()
    gc.collect()
    assert left() is None


def test_an_agent_for_fewer_threads_leaves_the_collector_alone(scripted: Any) -> None:
    create_parallel_agent(scripted({}), limits=Limits(max_total_threads=MANY - 1))
    assert gc.get_freeze_count() == 0
