"""``/v1/completions``: text goes on."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from apr_agents.server.generation import Job, Piece, Run
from apr_agents.server.logprobs import Writer, for_completions
from apr_agents.server.model import Model
from apr_agents.server.schemas import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
)

MAX_TOKENS = 16
"""OpenAI's default here."""


def prepare(model: Model, body: CompletionRequest) -> Job:
    """What a request asks of the engine.

    Raises:
        Refusal: it asks for what this model cannot do.
    """
    prompts = _prompts(model, body)
    wanted = MAX_TOKENS if body.max_tokens is None else body.max_tokens
    return Job(
        model, body, prompts, kind="cmpl", wanted=wanted, param="prompt", logprobs=body.logprobs
    )


class Completions:
    """Shapes the answers of one request.

    Args:
        write: what tokens say.
    """

    def __init__(self, job: Job, body: CompletionRequest, write: Writer) -> None:
        self._job, self._body, self._write = job, body, write
        n = body.choices
        fast = job.model.fast
        self._echoes = [
            fast.decode(job.prompts[index // n], skip_special_tokens=True) if body.echo else ""
            for index in range(len(job.choices))
        ]

    async def whole(self, run: Run) -> Completion:
        """All answers, when all have ended."""
        pieces: list[list[Piece]] = [[] for _ in self._job.choices]
        async with aclosing(run.pieces()) as grown:
            async for index, piece in grown:
                pieces[index].append(piece)
        choices = []
        for index, own in enumerate(pieces):
            text = "".join(piece.text for piece in own)
            tokens = [token for piece in own for token in piece.tokens]
            choices.append(self._choice(index, self._echoes[index] + text, Piece(text, tokens)))
        return self._job.answer(Completion, choices, self._job.usage)

    async def chunks(self, run: Run) -> AsyncGenerator[Completion, None]:
        """The answers as they grow."""
        job = self._job
        for index, echo in enumerate(self._echoes):
            if echo:
                echoed = CompletionChoice(index=index, text=echo)
                yield job.answer(Completion, [echoed], job.usage_now)
        async with aclosing(run.pieces()) as grown:
            async for index, piece in grown:
                if piece.text or piece.tokens or job.choices[index].finish:
                    choice = self._choice(index, piece.text, piece)
                    yield job.answer(Completion, [choice], job.usage_now)
        if usage := job.usage_at_end:
            yield job.answer(Completion, [], usage)

    def _choice(self, index: int, text: str, piece: Piece) -> CompletionChoice:
        choice = self._job.choices[index]
        return CompletionChoice(
            index=index,
            text=text,
            logprobs=self._logprobs(piece),
            finish_reason=choice.finish,
            stop_reason=choice.stop,
        )

    def _logprobs(self, piece: Piece) -> CompletionLogprobs | None:
        if self._body.logprobs is None:
            return None
        return for_completions(piece.tokens, self._write)


def _prompts(model: Model, body: CompletionRequest) -> list[list[int]]:
    prompts = body.prompt if isinstance(body.prompt, list) else [body.prompt]
    if isinstance(prompts[0], int):
        prompts = [prompts]
    special = body.add_special_tokens is not False
    return [
        model.encode(prompt, add_special_tokens=special)
        if isinstance(prompt, str)
        else list(prompt)
        for prompt in prompts
    ]
