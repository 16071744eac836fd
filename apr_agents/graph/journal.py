"""Results of leaves that share a node, saved as they finish.

A LangGraph task for each leaf, with a commit of its own, costs many times what a short leaf
costs. Here leaves share one task, and what has finished is written in groups: a group is
whatever finished while the one before was being written.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint

from apr_agents.types import ThreadResult

CHECKPOINTER = "__pregel_checkpointer"
"""Where LangGraph tells a node of the checkpointer of its run, its own or its parents'."""

CHANNEL = "result"


def checkpointer_of(config: RunnableConfig | None) -> BaseCheckpointSaver[Any] | None:
    """What saves the run that ``config`` belongs to, if anything does."""
    found = (config or {}).get("configurable", {}).get(CHECKPOINTER)
    return found if isinstance(found, BaseCheckpointSaver) else None


class Journal:
    """What one node's leaves have come to, in a namespace of its own beside the node's."""

    def __init__(self, saver: BaseCheckpointSaver[Any], config: RunnableConfig) -> None:
        self._saver, self._config = saver, config
        self._unwritten: list[dict[str, Any]] = []
        self._writing: asyncio.Task[None] | None = None
        self.finished: list[ThreadResult] = []

    @classmethod
    @asynccontextmanager
    async def open(
        cls, saver: BaseCheckpointSaver[Any], config: RunnableConfig
    ) -> AsyncIterator[Journal]:
        """The journal of the node that runs with ``config``, which finds it when it runs again.

        All that was added is written when it is closed, even if the node is cancelled. A node
        that is killed under ``durability="exit"`` leaves no checkpoint to go on from: its run
        starts over, and the journal stays, unread, until the conversation is deleted.

        Raises:
            Exception: the saver could not write it.
        """
        journal = await cls._find(saver, config)
        try:
            yield journal
        except BaseException:
            with suppress(Exception):
                await journal._close()
            raise
        await journal._close()

    @classmethod
    async def _find(cls, saver: BaseCheckpointSaver[Any], config: RunnableConfig) -> Journal:
        place = config["configurable"]
        namespace = f"{place['checkpoint_ns']}|journal"
        own: RunnableConfig = {
            "configurable": {"thread_id": place["thread_id"], "checkpoint_ns": namespace}
        }
        found = await _call(saver, "get_tuple", own)
        if found is not None:
            journal = cls(saver, found.config)
            journal.finished = [
                ThreadResult.model_validate(value)
                for _, channel, value in found.pending_writes or []
                if channel == CHANNEL
            ]
            return journal
        # Writes are found by the checkpoint they belong to.
        metadata = {"source": "loop", "step": -1, "parents": {}}
        return cls(saver, await _call(saver, "put", own, empty_checkpoint(), metadata, {}))

    def add(self, result: ThreadResult) -> None:
        """Have a result written, as soon as the group before it is."""
        self._unwritten.append(result.model_dump())
        if self._writing is None or self._writing.done():
            self._writing = asyncio.ensure_future(self._write_behind())

    async def _write_behind(self) -> None:
        with suppress(Exception):  # tried again with the next result, and at the end
            await self._write()

    async def _write(self) -> None:
        while self._unwritten:
            group = list(self._unwritten)
            writes = [(CHANNEL, result) for result in group]
            # Of two groups under one task id, savers keep the first.
            await _call(self._saver, "put_writes", self._config, writes, uuid.uuid4().hex)
            del self._unwritten[: len(group)]

    async def _close(self) -> None:
        """Write all that is left, however often this task is cancelled meanwhile."""
        finishing = asyncio.ensure_future(self._finish())
        cancelled: asyncio.CancelledError | None = None
        while not finishing.done():
            try:
                await asyncio.wait([finishing])
            except asyncio.CancelledError as error:  # a write that breaks off locks the database
                cancelled = error
        if cancelled is not None:
            raise cancelled
        finishing.result()

    async def _finish(self) -> None:
        if self._writing is not None:
            await self._writing
        await self._write()


async def _call(saver: BaseCheckpointSaver[Any], method: str, *arguments: Any) -> Any:
    """Call a saver where it wants to be called: on its own event loop, on this, or on a thread."""
    home = getattr(saver, "loop", None)
    coroutine = getattr(saver, f"a{method}")(*arguments)
    if home is not None and home is not asyncio.get_running_loop():
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, home))
    try:
        return await coroutine
    except NotImplementedError:
        return await asyncio.to_thread(getattr(saver, method), *arguments)
