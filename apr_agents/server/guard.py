"""What every request passes first: is the server open, does the key fit, is the body too large?"""

from __future__ import annotations

import asyncio
import hmac
from hashlib import sha256
from typing import TYPE_CHECKING

from starlette.datastructures import Headers

from apr_agents.server.refusals import Refusal, stopping

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = frozenset({"/health", "/metrics"})
"""Answered without a key, and to the end."""

STALLED = 60.0
"""Seconds in which the next piece of a body must come."""

DISCARDED = 16
"""Times the limit of a body that is read, and thrown away, so that the client hears the refusal."""


class Gate:
    """Whether new requests are let in, and how many are inside.

    Attributes:
        is_closed: they are not.
        inside: requests that are being answered.
    """

    def __init__(self) -> None:
        self.is_closed, self.inside = False, 0

    def close(self) -> None:
        """Let nobody in any more. May be called from a signal handler."""
        self.is_closed = True


class Guard:
    """ASGI middleware.

    Args:
        key: what clients must show as ``Authorization: Bearer KEY``; ``None`` for no key.
        most_bytes: of a body.
    """

    def __init__(self, app: ASGIApp, *, gate: Gate, key: str | None, most_bytes: int) -> None:
        self._app, self._gate, self._most_bytes = app, gate, most_bytes
        self._key = None if key is None else sha256(key.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        if (refusal := self._refusal(Headers(scope=scope))) is not None:
            await refusal.response(scope, receive, send)
            return
        self._gate.inside += 1
        try:
            await self._app(scope, self._limited(receive), send)
        finally:
            self._gate.inside -= 1

    def _refusal(self, headers: Headers) -> Refusal | None:
        if self._gate.is_closed:
            return stopping()
        scheme, _, key = headers.get("authorization", "").partition(" ")
        # Digests of one length, so that the time tells nothing about the key.
        shown = sha256(key.strip().encode()).digest()
        if self._key is None or (
            scheme.lower() == "bearer" and hmac.compare_digest(shown, self._key)
        ):
            return None
        what = "Incorrect API key provided" if key else "You didn't provide an API key"
        return Refusal(
            401,
            f"{what}. Send it in a header: Authorization: Bearer KEY.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def _limited(self, receive: Receive) -> Receive:
        size, is_complete = 0, False

        async def limited() -> Message:
            nonlocal size, is_complete
            # Behind the body comes nothing but the news that the client is gone.
            message = await (receive() if is_complete else _in_time(receive))
            is_complete = not message.get("more_body")
            size += len(message.get("body", b""))
            if size <= self._most_bytes:
                return message
            while message.get("more_body") and size <= DISCARDED * self._most_bytes:
                message = await _in_time(receive)
                size += len(message.get("body", b""))
            raise Refusal(
                413,
                f"The body is larger than this server takes: {self._most_bytes} bytes.",
                code="request_too_large",
            )

        return limited


async def _in_time(receive: Receive) -> Message:
    try:
        async with asyncio.timeout(STALLED):
            return await receive()
    except TimeoutError as error:
        raise Refusal(
            408,
            f"Nothing came of the body for {STALLED:g} s.",
            code="request_timeout",
            headers={"Connection": "close"},
        ) from error
