"""Any server with OpenAI's ``/v1/completions`` (extra ``[http]``): vLLM, SGLang, llama.cpp, ours.

Knows texts and HTTP; never protocols or graphs. An answer is asked for again only while
nothing of it has arrived.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import re
import ssl
import zlib
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit
from weakref import WeakKeyDictionary

from langchain_core.messages import AnyMessage
from pydantic import SecretStr

from apr_agents.backends.base import Backend, Delta, Request, approximate_tail, approximate_tokens
from apr_agents.backends.local import Tokenizing
from apr_agents.backends.refusal import (
    Overflow,
    Passing,
    is_error,
    message_of,
    pause_of,
    status_of,
)
from apr_agents.errors import (
    AprError,
    BackendFailed,
    InvalidOption,
    MissingExtra,
    ModelNotReady,
    PromptTooLong,
    UnknownModel,
)
from apr_agents.tokens import breaking

try:
    import httpx

    from apr_agents.backends.answer import Chunk, Output, data_of, linger
    from apr_agents.backends.capacity import Capacity
except ImportError as error:
    raise MissingExtra("http", error.name or "httpx") from error

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Template = str | Callable[[Sequence[AnyMessage]], str]

KEY = "APR_API_KEY"
"""The environment variable that holds the server's key."""

LONGEST_PAUSE = 60.0
"""Seconds between two attempts. A server that wants longer gets no further one."""

OPTIONAL = ("continuous_usage_stats", "stream_options", "skip_special_tokens", "seed", "logprobs")
OPTIONAL_WORDS = ("stop", "user")
"""What a request can do without where a server refuses it; of the second, each is also a word
of its own, and only in quotes the parameter."""

_inert = breaking(
    re.compile(
        r"<[|｜][^<>|｜\s]{1,64}[|｜]>|</?s>|<(?:bos|eos|start_of_turn|end_of_turn)>|\[/?INST\]"
    )
)
"""Breaks the control tokens of most models, for want of the tokenizer that knows them."""


class CompletionsBackend(Backend):
    """Continues text with a completions server.

    The server's own stop reasons are used where it gives them. Where it does not, its first
    answer that ends without a reason is asked to go on, which shows a stop that was left
    out; from then on the stops are found here and the request is closed at one.

    The tokens are the server's count where it gives one; otherwise each piece that arrives
    counts as one. A count that comes at the end only is told with the last piece.

    Args:
        url: where the server is, such as ``http://127.0.0.1:8000/v1``.
        model: which of its models; ``None`` for its first.
        template: how a conversation becomes a text, since the server applies no chat
            template here: ``"plain"`` joins the messages by newlines; a function; or the
            directory or hub id of the model's tokenizer, for its chat template.
        api_key: for the server; without one, that of the variable ``APR_API_KEY``.
        temperature: 0 takes the likeliest token each time.
        seed: of the random numbers when ``temperature`` is above 0.
        most_threads: the largest thread budget the model was trained to read.
        context_length: tokens of the model's context, where the server does not tell.
        lanes: requests that the server runs at once, where it does not tell (vLLM's
            ``--max-num-seqs``); for `free_lanes`.
        retries: further attempts at a busy, broken or missing server.
        backoff: seconds before the first of them; each next one waits twice as long.
        connect_timeout: seconds to reach the server.
        read_timeout: seconds in which the next piece must come.

    Raises:
        UnknownModel: the URL is none.
        InvalidOption: an option has a value it cannot have.
        MissingExtra: a tokenizer needs transformers.
    """

    tells_logprobs = True

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        template: Template = "plain",
        api_key: str | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        most_threads: int | None = None,
        context_length: int | None = None,
        lanes: int | None = None,
        retries: int = 3,
        backoff: float = 0.5,
        connect_timeout: float = 10.0,
        read_timeout: float = 600.0,
    ) -> None:
        least = {"temperature": temperature, "retries": retries, "backoff": backoff}
        for option, value in least.items():
            if not 0 <= value < math.inf:
                raise InvalidOption(option, value, "0 or more")
        above = {"connect_timeout": connect_timeout, "read_timeout": read_timeout}
        for option, value in (above | {"lanes": 1 if lanes is None else lanes}).items():
            if not value > 0:
                raise InvalidOption(option, value, "a positive number")
        self.url, self._auth = _server(url, model)
        self.model, self.name = model, _name(self.url, model)
        self.temperature, self.seed, self.most_threads = temperature, seed, most_threads
        self.context_length = context_length
        self.retries, self.backoff = retries, backoff
        self._root = self.url.removesuffix("/v1")
        self._key = None if api_key is None else _key(api_key)
        self._timeout = httpx.Timeout(read_timeout, connect=connect_timeout, pool=None)
        self._write = template if callable(template) else _joined
        by_name = isinstance(template, str) and template != "plain"
        self._tokenizing = Tokenizing(_tokenizer(str(template))) if by_name else None
        self._first = _first_token(self._tokenizing.tokenizer) if self._tokenizing else ""
        self._refused: set[str] = set()
        self._says_stops = True
        self._lines: WeakKeyDictionary[asyncio.AbstractEventLoop, _Line] = WeakKeyDictionary()
        self._capacity = Capacity(self._page, lanes)

    @classmethod
    def of(cls, source: str, **options: Any) -> CompletionsBackend:
        """The backend that ``URL#MODEL`` names; ``options`` as for the class."""
        url, _, model = source.partition("#")
        return cls(url, model or None, **options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    # --- texts -------------------------------------------------------------------------

    def render(self, messages: Sequence[AnyMessage]) -> str:
        if self._tokenizing is not None:
            return self._tokenizing.render(messages)
        return self._write(
            [message.model_copy(update={"content": _inert(message.text)}) for message in messages]
        )

    def count(self, text: str) -> int:
        return self._tokenizing.count(text) if self._tokenizing else approximate_tokens(text)

    def tail(self, text: str, tokens: int) -> str:
        tail = self._tokenizing.tail if self._tokenizing else approximate_tail
        return tail(text, tokens)

    # --- one request -------------------------------------------------------------------

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        """Generate. Closing the iterator closes the connection, and so ends the request.

        Raises:
            PromptTooLong: the prompt leaves no room in the model's context.
            UnknownModel: the server has no such model, or the URL leads nowhere.
            ModelNotReady: the server refuses the key.
            BackendFailed: the server cannot be reached, is too busy, or broke off.
        """
        piece_tokens = self.count if self._tokenizing is not None else lambda text: 1
        output = Output(request, piece_tokens, self.count)
        while True:
            output.begin()
            body = await self._body(request, output)
            async with aclosing(self._chunks(body)) as chunks:
                async for chunk in chunks:
                    delta = output.take(chunk)
                    if output.is_over:
                        break
                    if delta is not None:
                        yield delta
                if output.reason is not None or "stop" in body:
                    await linger(chunks, output)
            last = output.finish(stops_sent="stop" in body)
            if output.goes_on:
                self._says_stops = False
            yield last
            if not output.goes_on:
                return

    async def _body(self, request: Request, output: Output) -> dict[str, Any]:
        if self.model is None:
            await self._choose_model()
        temperature = self.temperature if request.temperature is None else request.temperature
        body: dict[str, Any] = {
            "model": self.model,
            # The server puts the first token in front of every prompt itself.
            "prompt": request.prompt.removeprefix(self._first) + output.text,
            "max_tokens": request.max_tokens - output.tokens,
            "temperature": temperature,
            "stream": True,
            # With every piece, as vLLM and SGLang can: then the counts of an answer that is
            # closed early are right as well.
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            # A protocol's tags may be special tokens, and would be left out.
            "skip_special_tokens": False,
        }
        if temperature > 0:
            body["seed"] = zlib.crc32(f"{self.seed}/{request.key}".encode()) >> 1
        if request.run:
            body["user"] = request.run  # our server lets the requests of one user share its turns
        if request.logprobs:
            body["logprobs"] = 1  # with 0, llama.cpp tells none
        if request.stops and self._says_stops:
            body["stop"] = list(request.stops)
        for name in self._refused:
            _leave_out(body, name)
        return body

    async def _chunks(self, body: dict[str, Any]) -> AsyncGenerator[Chunk, None]:
        """The answer in pieces, to its end. What the server refuses is left out of ``body``."""
        failures, begun, finished = 0, False, False
        while True:
            try:
                client = (await self._line()).client
                async with client.stream(
                    "POST", f"{self.url}/completions", json=body, headers=self._headers()
                ) as response:
                    if response.status_code != 200:
                        text = (await response.aread()).decode("utf-8", "replace")
                        if self._adjust(body, response.status_code, text):
                            continue
                        raise await self._refusal(response, text)
                    async with aclosing(self._read(response)) as chunks:
                        async for chunk in chunks:
                            begun = begun or bool(chunk.text)
                            finished = finished or chunk.reason is not None
                            yield chunk
                    if not finished:
                        raise Passing(f"{self.url} ended an answer before its finish reason")
                return
            except (httpx.RequestError, Passing) as error:
                if finished:
                    return
                passing = self._passing(error)
            if begun:
                raise BackendFailed(
                    f"{passing.why}. Part of the answer had arrived, so it was not asked for "
                    "again: look into the server's log."
                ) from passing
            await self._pause(failures, passing)
            failures += 1

    async def _read(self, response: httpx.Response) -> AsyncGenerator[Chunk, None]:
        kind = response.headers.get("content-type", "").partition(";")[0].strip()
        if kind == "application/json":  # a server that does not stream
            yield self._chunk((await response.aread()).decode("utf-8", "replace"))
            return
        if kind != "text/event-stream":
            what = "a web page" if kind == "text/html" else f"the type {kind!r}"
            raise BackendFailed(
                f"{self.url} answers with {what} where events were expected. "
                "Check the URL: it usually ends in /v1."
            )
        async with aclosing(data_of(response)) as told:
            async for data in told:
                yield self._chunk(data)

    def _chunk(self, data: str) -> Chunk:
        try:
            event = json.loads(data)
            chunk = None if is_error(event) else Chunk.of(event)
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            raise BackendFailed(
                f"{self.url} sent an event that is none of a completion: {self._quote(data)}. "
                "Check that an OpenAI-compatible server answers there."
            ) from error
        if chunk is None:
            raise self._failure(status_of(event), data, None)
        if chunk.reason not in (None, "stop", "length"):
            raise BackendFailed(
                f"{self.url} gave the answer up: {chunk.reason!r}. Look into the server's log."
            )
        return chunk

    # --- what can go wrong -------------------------------------------------------------

    def _adjust(self, body: dict[str, Any], status: int, text: str) -> bool:
        """Take out of ``body`` what the server refuses; whether there was anything."""
        if status not in (400, 413, 422):
            return False
        if (over := Overflow.of(text, body["max_tokens"])) is not None:
            self.context_length = self.context_length or over.limit
            if not 1 <= over.room < body["max_tokens"]:
                return False
            body["max_tokens"] = over.room
            return True
        for name in (*OPTIONAL, *OPTIONAL_WORDS):
            named = rf"[\"'`]{name}[\"'`]" if name in OPTIONAL_WORDS else rf"\b{name}\b"
            if re.search(named, text) and _leave_out(body, name):
                self._refused.add(name)
                return True
        return False

    async def _refusal(self, response: httpx.Response, text: str) -> Exception:
        """What an answer other than 200 means."""
        status = response.status_code
        if status == 404:
            return await self._not_found(text)
        if response.has_redirect_location:
            target = response.headers["location"].partition("?")[0]
            return BackendFailed(f"{self.url} has moved: use {target} in its place.")
        return self._failure(status, text, pause_of(response.headers))

    def _failure(self, status: int, text: str, retry_after: float | None) -> Exception:
        said = self._quote(text)
        too_long = status in (400, 413, 422, 500)
        if too_long and (over := Overflow.of(text, 0)) is not None:
            self.context_length = self.context_length or over.limit
            return PromptTooLong(over.tokens, over.limit or self.context_length)
        if status == 429:
            return Passing(
                f"{self.url} has too much to do (429: {said}); lower max_concurrency", retry_after
            )
        if status >= 500:
            return Passing(
                f"{self.url} failed ({status}: {said}); look into the server's log", retry_after
            )
        if status in (401, 403):
            how = "refuses the API key" if self._secret() else "wants an API key"
            return ModelNotReady(
                self.name, f"{self.url} {how} ({status}); set {KEY} or pass api_key="
            )
        return BackendFailed(
            f"{self.url} refuses the request ({status}): {said}. "
            "Check that it is a completions server and what its model takes."
        )

    async def _not_found(self, text: str) -> UnknownModel:
        if text.lstrip().startswith("{") and re.search(r"\bmodel\b", self._quote(text)):
            with suppress(AprError, Passing, httpx.RequestError):
                served = ", ".join(repr(model["id"]) for model in await self._models())
                return UnknownModel(self.name, f"the server at {self.url} has only {served}")
            return UnknownModel(self.name, f"the server at {self.url} has no such model")
        why = f"there is no {self.url}/completions. A URL usually ends in /v1"
        return UnknownModel(self.name, why)

    def _passing(self, error: httpx.RequestError | Passing) -> Passing:
        """What is known of a failure that the next attempt may not meet.

        Raises:
            BackendFailed: it would meet it, too.
        """
        said = self._quote(str(error) or type(error).__name__)
        match error:
            case Passing():
                return error
            case httpx.ConnectError() | httpx.ConnectTimeout():
                why = f"cannot connect to {self.url} ({said}): start the server or correct the URL"
            case httpx.TimeoutException():
                raise BackendFailed(
                    f"{self.url} sent nothing for {self._timeout.read:g} s. It hangs or has too "
                    "much to do: look into the server's log, or raise read_timeout."
                ) from error
            case httpx.NetworkError() | httpx.RemoteProtocolError():
                why = f"{self.url} broke the connection off ({said})"
            case _:
                raise BackendFailed(f"cannot use {self.url}: {said}.") from error
        passing = Passing(why)
        passing.__cause__ = error
        return passing

    async def _pause(self, failures: int, passing: Passing) -> None:
        """Wait before the next attempt.

        Raises:
            BackendFailed: there is none.
        """
        if failures >= self.retries:
            times = "once" if failures == 0 else f"{failures + 1} times"
            raise BackendFailed(f"{passing.why}; tried {times}.") from passing
        jitter = random.uniform(0.5, 1.0)
        if passing.retry_after is None:
            seconds = min(self.backoff * 2**failures, LONGEST_PAUSE) * jitter
        elif passing.retry_after > LONGEST_PAUSE:
            raise BackendFailed(
                f"{passing.why}. It wants {passing.retry_after:.0f} s until the next request: "
                "ask again then."
            ) from passing
        else:  # not all at the same moment
            seconds = passing.retry_after + self.backoff * jitter
        await asyncio.sleep(seconds)

    def _quote(self, text: str) -> str:
        """What a server says, in one line and without the key."""
        if text.lstrip().startswith("<"):
            return "(a web page)"
        with suppress(ValueError):
            text = message_of(json.loads(text))
        if secret := self._secret():
            text = text.replace(secret, "…")
        text = " ".join(text.split()).rstrip(".")
        return (text[:300] + "…" if len(text) > 300 else text) or "(nothing said)"

    # --- the server --------------------------------------------------------------------

    async def _choose_model(self) -> None:
        """Take the server's first model."""
        failures = 0
        while True:
            try:
                first = (await self._models())[0]
                break
            except (httpx.RequestError, Passing) as error:
                await self._pause(failures, self._passing(error))
                failures += 1
        self.model = first["id"]
        self.name = _name(self.url, self.model)
        length = first.get("max_model_len")
        if self.context_length is None and isinstance(length, int):
            self.context_length = length

    async def _models(self) -> list[dict[str, Any]]:
        client = (await self._line()).client
        response = await client.get(f"{self.url}/models", headers=self._headers())
        if response.status_code == 404:
            why = f"there is no {self.url}/models. A URL usually ends in /v1; or name the model"
            raise UnknownModel(self.name, why)
        if response.status_code != 200:
            raise await self._refusal(response, response.text)
        with suppress(ValueError, TypeError, KeyError):
            models = [model for model in response.json()["data"] if isinstance(model["id"], str)]
            if models:
                return models
        raise BackendFailed(
            f"{self.url}/models names no model. Check the URL, or name one: "
            "'completions:URL#MODEL'."
        )

    async def _line(self) -> _Line:
        """The connections of the running event loop."""
        loop = asyncio.get_running_loop()
        line = self._lines.get(loop)
        if line is None:
            bounds = httpx.Limits(max_connections=None, max_keepalive_connections=64)
            client = httpx.AsyncClient(
                timeout=self._timeout, limits=bounds, auth=self._auth, verify=_certificates()
            )
            line = self._lines[loop] = _Line(client, self._keep(loop, client), asyncio.Lock())
            await anext(line.keeper)
        return line

    async def _keep(
        self, loop: asyncio.AbstractEventLoop, client: httpx.AsyncClient
    ) -> AsyncGenerator[None, None]:
        # An event loop that shuts down closes its asynchronous generators: the only notice
        # that it gives while connections can still be closed.
        try:
            yield
        finally:
            self._lines.pop(loop, None)
            await client.aclose()

    async def aclose(self) -> None:
        for loop, line in list(self._lines.items()):
            if loop is asyncio.get_running_loop():
                await line.keeper.aclose()
            elif loop.is_running():
                closing = asyncio.run_coroutine_threadsafe(line.close(), loop)
                await asyncio.wrap_future(closing)

    def _headers(self) -> dict[str, str]:
        secret = self._secret()
        return {"Authorization": f"Bearer {secret}"} if secret else {}

    def _secret(self) -> str:
        key = self._key or _key(os.environ.get(KEY, ""))
        return key.get_secret_value()

    async def free_lanes(self) -> int | None:
        """As for every backend; read from the server's metrics once a second. Never raises."""
        async with (await self._line()).asking:
            return await self._capacity.free_lanes()

    async def _page(self, path: str) -> httpx.Response | None:
        client = (await self._line()).client
        try:
            response = await client.get(self._root + path, headers=self._headers())
        except httpx.RequestError:
            return None
        return response if response.status_code == 200 else None


class _Line(NamedTuple):
    """What belongs to one event loop."""

    client: httpx.AsyncClient
    keeper: AsyncGenerator[None, None]
    asking: asyncio.Lock

    async def close(self) -> None:
        await self.keeper.aclose()


def _leave_out(body: dict[str, Any], name: str) -> bool:
    """Take a parameter out of a request; whether it was there."""
    if name == "continuous_usage_stats":
        options = body.get("stream_options", {})
        return options.pop(name, None) is not None
    return body.pop(name, None) is not None


# --- names, keys, tokenizers -----------------------------------------------------------


def _server(url: str, model: str | None) -> tuple[str, tuple[str, str] | None]:
    """The server's URL without user and password, and these."""
    shown = re.sub(r"//[^/]*@", "//", url).partition("?")[0]
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment:
        why = "its URL must look like 'http://127.0.0.1:8000/v1'"
        raise UnknownModel(_name(shown, model), why)
    auth = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
    shown = shown.rstrip("/")
    return shown if parts.path.strip("/") else f"{shown}/v1", auth


@lru_cache(maxsize=1)
def _certificates() -> ssl.SSLContext:
    """Read once: that takes longer than many a request."""
    return httpx.create_ssl_context()


def _name(url: str, model: str | None) -> str:
    return f"completions:{url}#{model}" if model else f"completions:{url}"


def _key(key: str) -> SecretStr:
    key = key.strip()
    if not (key.isascii() and key.isprintable()):
        # Not shown: it is a secret all the same.
        raise InvalidOption("api_key", "…", f"one line of ASCII, as {KEY} must")
    return SecretStr(key)


def _joined(messages: Sequence[AnyMessage]) -> str:
    return "\n".join(message.text for message in messages)


def _tokenizer(source: str) -> PreTrainedTokenizerBase:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingExtra("local", error.name or "transformers") from error
    folder = os.path.expanduser(source)
    try:
        if folder.startswith(("/", ".")) and not os.path.isdir(folder):
            raise OSError("there is no such directory")
        loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        why = str(error).strip().splitlines()[0].rstrip(".")
        expected = f"'plain', a function, or a tokenizer's directory or hub id ({why})"
        raise InvalidOption("template", source, expected) from error
    return loaded


def _first_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the tokenizer puts in front of every text by itself."""
    start = tokenizer.bos_token_id
    return str(tokenizer.bos_token) if start in tokenizer("")["input_ids"][:1] else ""
