"""The one event loop that all sync callers of this process share.

A backend that batches requests wants them together. With one loop per call, ten sync
callers would be ten loops with ten gates.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator
from contextlib import aclosing
from typing import Any, TypeVar

T = TypeVar("T")

_starting = threading.Lock()
_started: list[asyncio.AbstractEventLoop] = []


def background_loop() -> asyncio.AbstractEventLoop:
    """The shared loop, running in a daemon thread; started when first asked for."""
    with _starting:
        if not _started:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="apr-agents", daemon=True).start()
            _started.append(loop)
        return _started[0]


def run_in_background(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run ``coroutine`` on the shared loop and wait for its result.

    Raises:
        RuntimeError: called on the shared loop itself, which it would block for ever.
    """
    loop = background_loop()
    if asyncio._get_running_loop() is loop:
        coroutine.close()
        raise RuntimeError(
            "A sync call inside a sync call would wait for itself: both run on the same event "
            "loop. Await the async method instead, such as ainvoke or astream."
        )
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


class _End:
    """Follows the last item."""


def iterate_in_background(items: AsyncGenerator[T, None]) -> Generator[T, None, None]:
    """The items of an async generator that runs on the shared loop, within one task.

    It runs ahead of the caller. Closing the iterator cancels the task and waits until it
    has ended.
    """
    arrived: queue.SimpleQueue[T | _End] = queue.SimpleQueue()

    async def pump() -> None:
        try:
            async with aclosing(items):
                async for item in items:
                    arrived.put(item)
        finally:
            arrived.put(_End())

    async def start() -> asyncio.Task[None]:
        return asyncio.create_task(pump())

    async def stop(task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.wait([task])

    async def result(task: asyncio.Task[None]) -> None:
        await task

    task = run_in_background(start())
    try:
        while not isinstance(item := arrived.get(), _End):
            yield item
        run_in_background(result(task))
    finally:
        run_in_background(stop(task))
