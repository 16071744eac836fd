"""The routes of the live page, for browsers on this machine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from sse_starlette import EventSourceResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from apr_agents.errors import AprError
from apr_agents.trace.html import page
from apr_agents.ui.desk import Desk, Question

HERE = ["127.0.0.1", "localhost"]
"""What the page may be called. A name of another's that leads here is refused."""

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

FAREWELL = 2
"""Seconds for the last bytes to be sent when the server is stopped."""


class ForeignPage(AprError):
    """A page of another origin tries to ask or to stop."""

    def __init__(self) -> None:
        super().__init__("Only this server's own page may do that.")


def create_app(desk: Desk, live: dict[str, Any]) -> FastAPI:
    """The page and its run.

    Args:
        live: what the question box begins with.
    """
    app = FastAPI(title="apr-agents", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HERE)
    shown = page({"live": live}, title="apr-agents")

    @app.get("/")
    async def show() -> HTMLResponse:
        return HTMLResponse(shown, headers=HEADERS)

    @app.get("/events")
    async def events() -> EventSourceResponse:
        return EventSourceResponse(_events(desk))

    @app.post("/ask", dependencies=[Depends(_own_page)])
    async def ask(question: Question) -> Response:
        desk.ask(question)
        return Response(status_code=204)

    @app.post("/stop", dependencies=[Depends(_own_page)])
    async def stop() -> Response:
        await desk.stop()
        return Response(status_code=204)

    @app.exception_handler(AprError)
    async def refuse(request: Request, error: AprError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 403 if isinstance(error, ForeignPage) else 400)

    @app.exception_handler(RequestValidationError)
    async def refuse_body(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][1:])) or "the question"
        why = first["msg"].removeprefix("Value error, ")
        return JSONResponse({"error": f"{where}: {why}."}, 422)

    return app


def _own_page(request: Request) -> None:
    """Browsers say which page a POST comes from; a form or script of another one is refused."""
    if request.headers.get("origin") != f"http://{request.headers.get('host')}":
        raise ForeignPage


async def _events(desk: Desk) -> AsyncIterator[dict[str, str]]:
    async for messages in desk.messages():
        yield {"data": json.dumps(messages)}


class Server(uvicorn.Server):
    """Serves until SIGINT or SIGTERM, which end the run as well.

    Args:
        on_start: called when the server answers.
    """

    def __init__(self, app: FastAPI, desk: Desk, *, on_start: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=FAREWELL
        )
        super().__init__(config)
        self._desk, self._on_start = desk, on_start

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True
        self._desk.close()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self._on_start()
