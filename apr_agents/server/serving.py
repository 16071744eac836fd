"""From an application to a process that serves it, and that lets its clients finish in the end."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from apr_agents.errors import InvalidOption

if TYPE_CHECKING:
    from fastapi import FastAPI

    from apr_agents.server.guard import Gate
    from apr_agents.server.model import Model

FAREWELL = 5
"""Seconds for the last bytes to be sent once everything has ended."""


def is_public(host: str) -> bool:
    """Whether other machines may reach ``host``; they may for any name but localhost."""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        InvalidOption: nothing can listen there.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InvalidOption("address", f"{host}:{port}", f"one to listen at ({why})") from error
    # Connections inherit it. Without it, a token waits until the client has acknowledged the one
    # before, which takes 40 ms; and event loops do not see that a socket from here is TCP.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


class Server(uvicorn.Server):
    """Serves until the first SIGTERM or SIGINT, then finishes what has begun.

    From the signal on, new requests are refused with 503; those under way have ``grace``
    seconds, then they are told that the server stops. A second signal ends it at once.

    Args:
        grace: seconds.
        on_start: called when the server answers.
    """

    def __init__(
        self, app: FastAPI, model: Model, *, grace: float, on_start: Callable[[], None]
    ) -> None:
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=FAREWELL
        )
        super().__init__(config)
        self._gate: Gate = app.state.gate
        self._model, self._grace, self._on_start = model, grace, on_start
        self._deadline: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._gate.is_closed:
            self.should_exit = self.force_exit = True
        self._gate.close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_start()

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second."""
        if self._gate.is_closed and not self.should_exit:
            self._deadline = self._deadline or time.monotonic() + self._grace
            if self._gate.inside and time.monotonic() >= self._deadline:
                await asyncio.to_thread(self._model.engine.stop)
            self.should_exit = not self._gate.inside or time.monotonic() >= self._deadline
        return await super().on_tick(counter)
