"""Threads as a projection of LangGraph's event streams (``version="v3"``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from langgraph.stream import StreamChannel, StreamTransformer

from apr_agents.types import ThreadStatus


@dataclass
class ThreadHandle:
    """A thread as its run goes on: a live object.

    Attributes:
        id: the thread's id.
        path: where in the graph it runs.
        outline: its subtask; empty if the thread began in an earlier run, which was interrupted.
        status: how it ended; ``None`` while it runs.
        text: what its model has written so far.
        output: its conclusion, once it has ended.
    """

    id: str
    path: tuple[str, ...]
    outline: str
    status: ThreadStatus | None = None
    text: str = ""
    output: str | None = None

    @property
    def name(self) -> str:
        return self.id


class ThreadsTransformer(StreamTransformer):
    """Lists the threads of a run, and among an agent's ``subagents`` if it has that list.

    Agents of this package and those with its middleware have it. A graph of one's own around
    them needs it said: ``transformers=[ThreadsTransformer]``, in ``compile`` or with the call.
    """

    _native = True
    required_stream_modes = ("custom",)

    def __init__(self, scope: tuple[str, ...] = ()) -> None:
        super().__init__(scope)
        self._lists: list[StreamChannel[Any]] = [StreamChannel()]
        self._handles: dict[tuple[tuple[str, ...], str], ThreadHandle] = {}

    def init(self) -> dict[str, Any]:
        return {"threads": self._lists[0]}

    def _on_register(self, mux: Any) -> None:
        found = mux.extensions.get("subagents")
        if isinstance(found, StreamChannel) and found not in self._lists:
            self._lists.append(found)

    def process(self, event: Any) -> bool:
        data, path = event["params"]["data"], tuple(event["params"]["namespace"])
        if event["method"] == "custom" and isinstance(data, Mapping) and "id" in data:
            self._hear(data, path)
        return True

    def _hear(self, event: Mapping[str, Any], path: tuple[str, ...]) -> None:
        key = (path, event["id"])
        handle = self._handles.get(key)
        if handle is None and "." in event["id"]:
            outline = event["text"] if event["type"] == "started" else ""
            handle = self._handles[key] = ThreadHandle(event["id"], path, outline)
            for listed in self._lists:
                listed.push(handle)
        if handle is not None and event["type"] == "token":
            handle.text += event["text"]
        elif handle is not None and event["type"] == "finished":
            handle.status, handle.output = event["status"], event["text"]


class AgentThreadsTransformer(ThreadsTransformer):
    """The same for a graph that has no list of subagents yet: it gets one of its threads."""

    def init(self) -> dict[str, Any]:
        self._lists.append(StreamChannel())
        return {"threads": self._lists[0], "subagents": self._lists[1]}
