"""From requests of the engine to texts, and no further: every endpoint shapes them itself."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeVar

from apr_agents.engine.post import Post
from apr_agents.engine.request import Constraint, Generate
from apr_agents.errors import InvalidOption
from apr_agents.server.refusals import failed, invalid, overloaded, stopping
from apr_agents.server.schemas import (
    LARGEST_SEED,
    LEAST_TEMPERATURE,
    PromptTokensDetails,
    Sampling,
    Usage,
)
from apr_agents.tokens import Detokenizer, StopCheck, StopFinder

if TYPE_CHECKING:
    from apr_agents.engine.request import Token
    from apr_agents.server.metrics import Metrics
    from apr_agents.server.model import Model

T = TypeVar("T")

RETRY_AFTER = 1
"""Seconds after which a client may ask again when all places are taken."""


class Chosen(NamedTuple):
    """A token and its probability, for ``logprobs``.

    Attributes:
        offset: where its text begins in the answer, in characters.
        top: the likeliest tokens at its place.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    offset: int


class Piece(NamedTuple):
    """What an answer grows by: text, and the tokens of which it consists."""

    text: str
    tokens: list[Chosen]


class Choice:
    """One answer as it grows: tokens in, text out.

    Attributes:
        tokens: how many were generated, the model's end token and those of a stop included.
        cached: tokens of the prompt that were computed before.
        finish: why it has ended; ``None`` while it grows.
        stop: the stop that ended it, if one did.
    """

    def __init__(self, model: Model, body: Sampling, prompt: Sequence[int]) -> None:
        skip = body.skip_special_tokens is not False
        self._text = Detokenizer(model.fast, prompt, skip_special=skip)
        self._stops = StopFinder(body.stops, included=bool(body.include_stop_str_in_output))
        self._chosen: deque[Chosen] = deque()
        self._read = self._given = 0
        self.tokens = self.cached = 0
        self.finish: Literal["stop", "length"] | None = None

    @property
    def stop(self) -> str | None:
        return self._stops.found

    def feed(self, token: Token) -> Piece:
        """What the next token adds. Text that may become a stop is held back until it is none."""
        text = ""
        self.cached += token.cached
        if token.id is not None:
            self.tokens += 1
            if token.finish != "end":
                if token.logprob is not None:
                    chosen = Chosen(token.id, token.logprob, token.top, self._read)
                    self._chosen.append(chosen)
                fresh = self._text.feed(token.id)
                self._read += len(fresh)
                text = self._stops.feed(fresh)
        if token.finish is not None:
            text += self._stops.feed(self._text.finish())
            text += self._stops.finish()
            stopped = token.finish != "length" or self.stop is not None
            self.finish = "stop" if stopped else "length"
        self._given += len(text)
        return Piece(text, self._tokens_of_text())

    def _tokens_of_text(self) -> list[Chosen]:
        """The tokens whose text has been given by now; those of a stop that was cut off never."""
        everything = self.finish is not None and self.stop is None
        tokens = []
        while self._chosen and (everything or self._chosen[0].offset < self._given):
            tokens.append(self._chosen.popleft())
        return tokens


class Job:
    """What one HTTP request asks of the engine, and the answers that come of it.

    Attributes:
        id: names the answer to the client.
        prompts: token ids.
        requests: ``n`` for each prompt, in order.
        choices: the answers, one for each request.
    """

    def __init__(
        self,
        model: Model,
        body: Sampling,
        prompts: Sequence[list[int]],
        *,
        kind: str,
        wanted: int | None,
        param: str,
        logprobs: int | None,
        constraint: Callable[[], Constraint] | None = None,
    ) -> None:
        self.id = f"{kind}-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.model, self.body, self.prompts = model, body, prompts
        self.requests: list[Generate] = []
        self.choices: list[Choice] = []
        seed = secrets.randbelow(LARGEST_SEED) if body.seed is None else body.seed
        temperature = 1.0 if body.temperature is None else body.temperature
        for prompt in prompts:
            max_tokens = model.answer_length(prompt, wanted, param)
            for number in range(body.choices):
                request = Generate(
                    ids=prompt,
                    max_tokens=max_tokens,
                    end_ids=frozenset() if body.ignore_eos else model.ends,
                    stops=self._check(prompt) if body.stops else None,
                    temperature=temperature if temperature >= LEAST_TEMPERATURE else 0.0,
                    top_k=max(0, body.top_k or 0),
                    top_p=1.0 if body.top_p is None else body.top_p,
                    min_p=body.min_p or 0.0,
                    repetition_penalty=body.repetition_penalty or 1.0,
                    seed=(seed + number) % (LARGEST_SEED + 1),
                    logprobs=logprobs,
                    program=body.user or self.id,
                    constraint=constraint() if constraint is not None else None,
                )
                self.requests.append(request)
                self.choices.append(Choice(model, body, prompt))

    def answer(self, shape: Callable[..., T], choices: Sequence[Any], usage: Usage | None) -> T:
        """An answer or a chunk of one, in the shape of an endpoint."""
        return shape(
            id=self.id,
            created=self.created,
            model=self.model.name,
            choices=choices,
            usage=usage,
        )

    def _check(self, prompt: list[int]) -> StopCheck:
        """What ends a request in the engine, at the very token at which its `Choice` ends."""
        skip = self.body.skip_special_tokens is not False
        text = Detokenizer(self.model.fast, prompt, skip_special=skip)
        return StopCheck(text, self.body.stops)

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        n = self.body.choices
        prompt_tokens = sum(map(len, self.prompts))
        completion_tokens = sum(choice.tokens for choice in self.choices)
        # Of the choices of a prompt, all but one find it computed by that one.
        cached = sum(
            min(choice.cached for choice in self.choices[first : first + n])
            for first in range(0, len(self.choices), n)
        )
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
        )

    @property
    def usage_now(self) -> Usage | None:
        """The usage that every chunk of a stream is to have, if it is to have one."""
        options = self.body.stream_options
        return self.usage if options is not None and options.continuous_usage_stats else None

    @property
    def usage_at_end(self) -> Usage | None:
        """The usage for the last chunk of a stream, if there is to be one."""
        options = self.body.stream_options
        return self.usage if options is not None and options.include_usage else None


Heard: TypeAlias = tuple[int, "Token", float]
"""Which of the choices, the next token of it, and when it came."""


class Run:
    """A job under way. Whoever starts one closes it, whatever happens."""

    def __init__(self, service: Service, job: Job) -> None:
        self._service, self.job = service, job
        self._engine, self._metrics = job.model.engine, service.metrics
        self._heard: asyncio.Queue[Heard] = asyncio.Queue()
        self._numbers: dict[int, int] = {}
        self._since = dict.fromkeys(range(len(job.requests)), time.monotonic())
        try:
            for index, request in enumerate(job.requests):
                hear = partial(self._hear, service.post, index)
                self._numbers[index] = self._engine.submit(request, hear)
        except BaseException as error:
            service.give_back(len(job.requests) - len(self._numbers))
            self.close()
            if isinstance(error, InvalidOption):
                message = f"The prompt's token ids must be {error.expected}."
                raise invalid(message, "prompt") from error
            raise

    def _hear(self, post: Post[Heard], index: int, token: Token) -> None:
        """Called by the engine's thread."""
        if post.send(self._heard, (index, token, time.monotonic())):
            return
        # The loop is gone, and with it everybody who waits.
        if (number := self._numbers.get(index)) is not None:
            self._engine.cancel(number)

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece], None]:
        """What the choices grow by, as it comes: which of them, and the piece.

        Raises:
            Refusal: the engine failed, or was stopped.
        """
        while self._numbers:
            index, token, now = await self._heard.get()
            first = self.job.choices[index].tokens == 0
            if token.id is not None:
                self._metrics.token(now - self._since[index], first=first)
                self._since[index] = now
            if token.finish is not None:
                del self._numbers[index]
                self._service.give_back(1)
                self._metrics.finished(token.finish)
            if token.finish == "cancelled":
                raise stopping()
            if token.finish == "failed":
                raise failed(token.error or "no reason is known")
            yield index, self.job.choices[index].feed(token)

    def close(self) -> None:
        """Cancel what has not finished, before the engine's next step. May be called again."""
        for number in self._numbers.values():
            self._engine.cancel(number)
            self._metrics.finished("cancelled")
        self._service.give_back(len(self._numbers))
        self._numbers.clear()


class Service:
    """Starts jobs, as many as there are places.

    Args:
        places: choices that may run or wait at the same time.
    """

    def __init__(self, model: Model, metrics: Metrics, *, places: int) -> None:
        self.model, self.metrics, self.places = model, metrics, places
        self.taken = 0

    @cached_property
    def post(self) -> Post[Heard]:
        """Brings tokens to the event loop that serves."""
        return Post(asyncio.get_running_loop())

    def check(self, answers: int, param: str) -> None:
        """See that there is room for so many answers, before any work goes into them.

        Raises:
            Refusal: there are too few places, now or ever.
        """
        if answers > self.places:
            raise invalid(
                f"This request asks for {answers} answers; this server takes {self.places} at "
                "most at the same time. Divide it.",
                param,
            )
        if self.taken + answers > self.places:
            self.metrics.refused()
            raise overloaded(
                f"The server is full: {self.taken} answers run or wait, and {answers} more would "
                f"make it more than {self.places}. Try again in {RETRY_AFTER} s.",
                RETRY_AFTER,
            )

    def start(self, job: Job) -> Run:
        """Hand a job to the engine.

        Raises:
            Refusal: as `check`.
        """
        self.check(len(job.requests), "n")
        self.taken += len(job.requests)
        return Run(self, job)

    def give_back(self, places: int) -> None:
        """The opposite of what `start` takes."""
        self.taken -= places
