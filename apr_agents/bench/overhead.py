"""What a fan-out costs beside the model calls, system by system.

Each case is measured in a process of its own, after a small run that pays for imports and
first uses. This module runs in the command and in that process; only the latter loads `systems`.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from selectors import DefaultSelector, SelectorKey
from typing import TYPE_CHECKING, NamedTuple

from apr_agents.bench.apart import report, run_apart
from apr_agents.bench.cases import Case, Checkpointer, System
from apr_agents.errors import AprError

if TYPE_CHECKING:
    from apr_agents.bench.systems import Ask, ScriptedModel


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a case cost.

    Attributes:
        cpu_ms_per_child: CPU time of the process, all threads, over ``n``.
        peak_rss_mb: the most memory the process ever had, imports included.
        checkpoint_bytes: what the run added: growth of the file, or the serialized blobs.
        longest_block_ms: the longest time the event loop was held up without a break.
    """

    system: System
    n: int
    checkpointer: Checkpointer
    cpu_ms_per_child: float
    wall_seconds: float
    peak_rss_mb: float
    checkpoint_bytes: int
    latency: float
    workload: str
    longest_block_ms: float


class WrongCalls(AprError):
    """A system did not make the model calls that the task takes, so its cost says nothing."""

    def __init__(self, wanted: object, got: object) -> None:
        super().__init__(f"{got} instead of {wanted}")
        self.wanted, self.got = wanted, got


def measure_apart(case: Case) -> Row:
    """Measure in a fresh process.

    Raises:
        MissingExtra: the system or the checkpointer is not installed.
        MeasurementFailed: anything else that went wrong.
    """
    return Row(**run_apart(__name__, asdict(case), what=str(case)))


def measure(case: Case, directory: Path) -> Row:
    """Measure in this process. ``directory`` is for the checkpoints' file.

    Raises:
        MissingExtra: the system or the checkpointer is not installed.
        WrongCalls: the system did something else than it was asked to.
    """
    watch = LoopWatch()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(watch)) as runner:
        runs, saved = runner.run(_runs(case, directory, watch))
    best = min(runs, key=lambda run: run.cpu)
    return Row(
        system=case.system,
        n=case.n,
        checkpointer=case.checkpointer,
        cpu_ms_per_child=best.cpu * 1000 / case.n,
        wall_seconds=best.wall,
        peak_rss_mb=_peak_rss() / 1e6,
        checkpoint_bytes=saved,
        latency=case.latency,
        workload=case.workload,
        longest_block_ms=best.longest_block * 1000,
    )


class Run(NamedTuple):
    """Seconds that one run took."""

    cpu: float
    wall: float
    longest_block: float


class LoopWatch(DefaultSelector):
    """An event loop's selector that sees how long the loop stays away from it."""

    longest, since = 0.0, 0.0

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        self.look()
        try:
            return super().select(timeout)
        finally:
            self.since = time.perf_counter()

    def start(self) -> None:
        self.longest, self.since = 0.0, time.perf_counter()

    def look(self) -> None:
        self.longest = max(self.longest, time.perf_counter() - self.since)


async def _runs(case: Case, directory: Path, watch: LoopWatch) -> tuple[list[Run], int]:
    """The measured runs, and the bytes that the first of them saved."""
    from apr_agents.bench.systems import SYSTEMS, ScriptedModel, opened

    how = SYSTEMS[case.system]
    model = ScriptedModel(says_split=how.says_split, latency=case.latency)
    async with opened(case.checkpointer, directory) as store:
        ask = how.build(model, case, store.saver)
        await _run(ask, model, tuple(min(2, width) for width in case.shape), "warm-up", watch)
        before = await store.size()
        runs = [await _run(ask, model, case.shape, "0", watch)]
        saved = await store.size() - before
        for number in range(1, case.repeat):
            if store.saver is not None:  # or a growing store would slow down run after run
                await store.saver.adelete_thread(str(number - 1))
            runs.append(await _run(ask, model, case.shape, str(number), watch))
    return runs, saved


async def _run(
    ask: Ask, model: ScriptedModel, shape: tuple[int, ...], thread_id: str, watch: LoopWatch
) -> Run:
    from apr_agents.bench.systems import Tally, answer, task

    model.tally = Tally()
    gc.collect()
    watch.start()
    wall, cpu = time.perf_counter(), time.process_time()
    got = await ask(task(shape), {"configurable": {"thread_id": thread_id}})
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    watch.look()
    if (model.tally, got) != (Tally.of(shape), answer(shape)):
        raise WrongCalls((Tally.of(shape), answer(shape)), (model.tally, got))
    return Run(cpu, wall, watch.longest)


def _peak_rss() -> int:
    """The most bytes that this process ever held in memory."""
    with suppress(OSError), open("/proc/self/status") as status:
        # On Linux a child's ru_maxrss starts at what its parent had: wrong under a big parent.
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    report(
        lambda data, directory: asdict(
            measure(Case(**data | {"shape": tuple(data["shape"])}), directory)
        )
    )
