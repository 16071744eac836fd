"""What the server says when it does not answer: OpenAI's error objects, whatever went wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from apr_agents.server.schemas import Error, ErrorResponse
from apr_agents.tokens import well_formed

LONGEST_MESSAGE = 1000
BRANCHES = {"str", "int", "float", "bool", "dict"}
"""Names that pydantic puts into a place for the kinds of value it has tried there."""

NO_OBJECT = {"missing", "model_type", "model_attributes_type", "dict_type"}
"""What pydantic finds wrong with a body that is missing, or is something else."""


class Refusal(HTTPException):
    """A request that gets an error for an answer.

    Attributes:
        error: what the client is told.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        message = well_formed(message)[:LONGEST_MESSAGE]
        param = well_formed(param)[:LONGEST_MESSAGE] if param else None
        super().__init__(status, message, headers)
        self.error = Error(message=message, type=kind, param=param, code=code)

    @property
    def body(self) -> dict[str, Any]:
        return ErrorResponse(error=self.error).model_dump()

    @property
    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status_code, self.headers)


def invalid(message: str, param: str | None = None, code: str | None = None) -> Refusal:
    """A request that can never be answered as it is."""
    return Refusal(400, message, param=param, code=code)


def overloaded(message: str, seconds: int) -> Refusal:
    """A request that may be answered ``seconds`` later."""
    return Refusal(
        429,
        message,
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(seconds)},
    )


def stopping() -> Refusal:
    """A request to a server that is about to end."""
    return Refusal(503, "The server is shutting down.", kind="server_error", code="shutting_down")


def failed(why: str) -> Refusal:
    """A request that the server could not answer, through no fault of the client's."""
    return Refusal(500, f"The server failed: {why}", kind="server_error")


def install(app: FastAPI) -> None:
    """Have every error of ``app`` answered in this form."""

    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> JSONResponse:
        return error.response

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        message = error.detail
        if error.status_code in (404, 405):
            message = f"{message}: {request.method} {request.url.path}"
        return Refusal(error.status_code, message, headers=error.headers).response

    @app.exception_handler(RequestValidationError)
    async def wrong(_: Request, error: RequestValidationError) -> JSONResponse:
        return from_validation(error.errors()).response

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return failed(type(error).__name__).response


def from_validation(errors: Sequence[Any]) -> Refusal:
    """What pydantic found wrong, in a sentence; of several readings, with the best one."""
    if errors[0]["type"] == "json_invalid":
        return invalid(f"The body is not valid JSON: {errors[0]['ctx']['error']}.")
    error = max(errors, key=lambda each: len(_param(each["loc"])))
    param = ".".join(_param(error["loc"]))
    if error["type"] == "extra_forbidden":
        param = ".".join([*_param(error["loc"][:-1]), str(error["loc"][-1])])
        return invalid(f"Unrecognized request argument supplied: {param}", param)
    if error["type"] == "missing" and param:
        return invalid(f"Missing required parameter: '{param}'.", param)
    if not param and error["type"] in NO_OBJECT:
        return invalid("The body must be a JSON object, with the content type application/json.")
    if not param:
        return invalid(f"{_message(error)}.")
    same = [_message(each) for each in errors if _param(each["loc"]) == _param(error["loc"])]
    return invalid(f"Invalid '{param}': {', or: '.join(dict.fromkeys(same))}.", param)


def _message(error: Any) -> str:
    return str(error["msg"]).removeprefix("Value error, ")


def _param(place: Sequence[str | int]) -> list[str]:
    """The place of a value in the body, such as ``messages 0 content``.

    Pydantic also puts in what it tried to read there, such as ``list[str]`` or ``TextPart``.
    """
    fields = (part for part in place[1:] if part not in BRANCHES)
    return [
        str(part)
        for part in fields
        if isinstance(part, int) or (part.isidentifier() and part.islower())
    ]
