"""The routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from sse_starlette import EventSourceResponse

from apr_agents.errors import InvalidOption
from apr_agents.server import chat, completions, refusals
from apr_agents.server.generation import Job, Run, Service
from apr_agents.server.guard import Gate, Guard
from apr_agents.server.logprobs import writer
from apr_agents.server.metrics import Metrics
from apr_agents.server.model import Model
from apr_agents.server.refusals import Refusal
from apr_agents.server.schemas import (
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    ErrorResponse,
    Health,
    ModelCard,
    ModelList,
)

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

Answer = TypeVar("Answer", bound=BaseModel, covariant=True)


class Shaped(Protocol[Answer]):
    """The answers of one request, in the shape of its endpoint."""

    async def whole(self, run: Run) -> Answer:
        """All of them, when all have ended."""

    def chunks(self, run: Run) -> AsyncIterator[BaseModel]:
        """What they grow by, as it comes."""


REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorResponse, "description": "The request is refused; the error says why."},
    "5XX": {"model": ErrorResponse, "description": "The server failed, or is shutting down."},
}
ANSWERS: dict[int | str, dict[str, Any]] = REFUSALS | {
    200: {
        "description": "The answer, or with 'stream' its chunks.",
        "content": {"text/event-stream": {}},
    }
}


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How a server is to be.

    Attributes:
        api_key: what clients must send; ``None`` lets everybody in.
        most_waiting: answers that may wait beside those that the engine can run.
        most_body_bytes: of one request.
    """

    api_key: str | None = None
    most_waiting: int = 256
    most_body_bytes: int = 4 * 2**20

    def __post_init__(self) -> None:
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.strip()):
            # Not shown: it is a secret all the same.
            raise InvalidOption("api_key", "…", "some ASCII text")
        if self.most_waiting < 0:
            raise InvalidOption("most_waiting", self.most_waiting, "0 or more")
        if self.most_body_bytes < 1:
            raise InvalidOption("most_body_bytes", self.most_body_bytes, "1 or more")


def create_app(model: Model, options: ServerOptions | None = None) -> FastAPI:
    """The HTTP application over ``model``; its state has its `Gate` and its `Service`."""
    options = options or ServerOptions()
    metrics, gate = Metrics(model.engine), Gate()
    places = model.engine.options.most_running + options.most_waiting
    service = Service(model, metrics, places=places)
    write = writer(model.fast)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(model.engine.stop)

    app = FastAPI(
        title="apr-agents",
        description="OpenAI-compatible completions over a fork-aware engine.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.gate, app.state.service = gate, service
    app.add_middleware(Guard, gate=gate, key=options.api_key, most_bytes=options.most_body_bytes)
    refusals.install(app)
    card = ModelCard(id=model.name, created=0, max_model_len=model.room)

    def of_this_model(name: str) -> None:
        if name != model.name:
            raise Refusal(
                404,
                f"The model {name!r} does not exist; this server has {model.name!r}.",
                param="model",
                code="model_not_found",
            )

    async def answered(request: Request, job: Job, shaped: Shaped[Answer]) -> Answer | Events:
        run = service.start(job)
        if job.body.stream:
            return Events(run, shaped.chunks(run))
        return await while_connected(request, run, shaped.whole(run))

    @app.post("/v1/completions", response_model=Completion, responses=ANSWERS)
    async def create_completion(body: CompletionRequest, request: Request) -> Completion | Events:
        of_this_model(body.model)
        service.check(body.answers, "prompt")
        # Tokenising may take long, and must not keep the others waiting.
        job = await asyncio.to_thread(completions.prepare, model, body)
        return await answered(request, job, completions.Completions(job, body, write))

    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses=ANSWERS)
    async def create_chat(body: ChatRequest, request: Request) -> ChatCompletion | Events:
        of_this_model(body.model)
        service.check(body.choices, "n")
        job = await asyncio.to_thread(chat.prepare, model, body)
        return await answered(request, job, chat.Chat(job, body, write))

    @app.get("/v1/models", responses=REFUSALS)
    async def list_models() -> ModelList:
        return ModelList(data=[card])

    @app.get("/v1/models/{name:path}", responses=REFUSALS)
    async def retrieve_model(name: str) -> ModelCard:
        of_this_model(name)
        return card

    @app.get("/health", responses={503: {"model": Health}})
    async def health(response: Response) -> Health:
        response.status_code = 503 if gate.is_closed else 200
        return Health(status="stopping" if gate.is_closed else "ok")

    @app.get("/metrics", response_class=PlainTextResponse)
    async def read_metrics() -> Response:
        return Response(metrics.page(), media_type=CONTENT_TYPE_LATEST)

    return app


class Events(EventSourceResponse):
    """An answer as server-sent events. The run ends when the answer or the connection does."""

    def __init__(self, run: Run, chunks: AsyncIterator[BaseModel]) -> None:
        super().__init__(_events(chunks), sep="\n")
        self._run = run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._run.close()


async def _events(chunks: AsyncIterator[BaseModel]) -> AsyncGenerator[dict[str, str], None]:
    try:
        async for chunk in chunks:
            yield {"data": chunk.model_dump_json()}
        yield {"data": "[DONE]"}
    except Refusal as refusal:  # too late for a status
        yield {"data": ErrorResponse(error=refusal.error).model_dump_json()}


async def while_connected(
    request: Request, run: Run, answer: Coroutine[Any, Any, Answer]
) -> Answer:
    """The answer; when the client goes away, the run is ended and nobody gets it."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answering, watching = asyncio.create_task(answer), asyncio.create_task(gone())
    try:
        await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise Refusal(499, "The client has closed the connection.")
        return answering.result()
    finally:
        run.close()
        for task in (answering, watching):
            task.cancel()
        await asyncio.gather(answering, watching, return_exceptions=True)
