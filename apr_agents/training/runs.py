"""Runs through the very graph and backends that serve, with the tokens of every model call."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
from langchain_core.messages import AnyMessage, HumanMessage
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from apr_agents.backends.base import Backend, Delta, Request
from apr_agents.backends.gate import Gate
from apr_agents.backends.local import LocalBackend, Tokenizing
from apr_agents.backends.scripted import ScriptedBackend
from apr_agents.errors import BackendFailed
from apr_agents.graph.build import create_parallel_agent
from apr_agents.limits import Limits
from apr_agents.trace.trajectory import Trajectory
from apr_agents.training.forward import choose_attention
from apr_agents.training.scripts import Rules, Script, fault_of, from_trajectory
from apr_agents.training.trie import Pair

AT_ONCE = 256
"""Runs in progress, and model calls in flight."""

UNBOUNDED = Limits(
    max_total_threads=200,
    max_concurrency=AT_ONCE,
    max_tokens_per_thread=2**20,
    max_total_tokens=2**30,
    max_join_tokens=2**20,
    thread_timeout=1e6,
    timeout=1e6,
)
"""Limits that end no run: training sets those that it means to teach."""


class Run(NamedTuple):
    """One run, and the tokens of its model calls: thread by thread, the root's first."""

    trajectory: Trajectory
    pairs: list[Pair]


class _Notes(NamedTuple):
    """What is noted of the run at hand."""

    name: str
    pairs: dict[str, Pair]


_NOTES: ContextVar[_Notes] = ContextVar("notes")


class _Noting(Backend):
    """Passes requests on to a backend and notes their tokens.

    With a tokenizer it renders as a local model with that tokenizer does, whatever the backend.
    """

    def __init__(self, backend: Backend, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self.backend, self.name = backend, backend.name
        self.most_threads, self.context_length = backend.most_threads, backend.context_length
        self.tokens = Tokenizing(tokenizer) if tokenizer is not None else None

    def render(self, messages: Sequence[AnyMessage]) -> str:
        return (self.tokens or self.backend).render(messages)

    def count(self, text: str) -> int:
        return (self.tokens or self.backend).count(text)

    def tail(self, text: str, tokens: int) -> str:
        return (self.tokens or self.backend).tail(text, tokens)

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        notes = _NOTES.get()
        ids: list[int] = []
        text, ended = "", False
        # With the name of its run, each run of a question has random numbers of its own.
        named = replace(request, key=f"{notes.name}/{request.key}")
        try:
            async with aclosing(self.backend.stream(named)) as deltas:
                async for delta in deltas:
                    ids += delta.ids
                    text, ended = text + delta.text, delta.ended
                    yield delta
        finally:
            if self.tokens is not None:
                notes.pairs[request.key] = _pair(self.tokens, request.prompt, ids, text, ended)


def _pair(tokens: Tokenizing, prompt: str, ids: list[int], text: str, ended: bool) -> Pair:
    """A model call as tokens; what it wrote is read from its text where ``ids`` are not told."""
    context = tokens.encode(prompt)
    if ids:
        return Pair(context, ids)
    whole, known = tokens.encode(prompt + text), len(context)
    ids = whole[known:] if whole[:known] == context else tokens.encode(text)
    return Pair(context, [*ids, tokens.tokenizer.eos_token_id] if ended else ids)


class Recorder:
    """Runs questions on a backend and keeps the tokens of every model call.

    Args:
        tokenizer: of the model that is trained; without one, no tokens are noted.
        temperature: of all calls; ``None`` for the backend's own.
        max_tokens: that one thread may generate.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        temperature: float | None = None,
        max_tokens: int = UNBOUNDED.max_tokens_per_thread,
    ) -> None:
        self._noting = _Noting(backend, tokenizer)
        self._limits = replace(UNBOUNDED, max_tokens_per_thread=max_tokens)
        self._temperature = temperature
        self._gate, self._places = Gate(AT_ONCE), asyncio.Semaphore(AT_ONCE)
        self._agent = cache(self._create)

    async def run(self, question: str, rules: Rules, *, name: str) -> Run:
        """Answer a question.

        Args:
            name: of the run; with a temperature, another name gives another run.

        Raises:
            Exception: a model call of the root failed.
        """
        notes = _Notes(name, {})
        token = _NOTES.set(notes)
        try:
            async with self._places:
                asked = {"messages": [HumanMessage(question)]}
                output = await self._agent(rules).ainvoke(asked)
        finally:
            _NOTES.reset(token)
        # In an order that does not depend on what finished first.
        pairs = [notes.pairs[key] for key in sorted(notes.pairs, key=_place)]
        return Run(Trajectory.model_validate(output["trajectory"]), pairs)

    def _create(self, rules: Rules) -> Any:
        return create_parallel_agent(
            self._noting,
            protocol=rules.protocol,
            merge=rules.merge,
            limits=replace(self._limits, max_threads=rules.budget, max_depth=rules.depth),
            gate=self._gate,
            temperature=self._temperature,
        )


def _place(key: str) -> tuple[list[int], int]:
    thread, _, call = key.partition("/")
    return [int(number) for number in thread.split(".")], int(call)


class Rehearsal(NamedTuple):
    """How a script went: its run, or what is wrong with it."""

    run: Run | None
    fault: str | None


async def rehearse(
    scripts: Sequence[Script], tokenizer: PreTrainedTokenizerBase | None = None
) -> list[Rehearsal]:
    """Play scripts: what a model with this tokenizer would have read and written in each."""
    left = {
        str(number): {thread: iter(calls) for thread, calls in script.calls.items()}
        for number, script in enumerate(scripts)
    }

    def say(request: Request) -> str:
        name, thread, _ = request.key.rsplit("/", 2)
        said = next(left[name].get(thread, iter(())), None)
        if said is None:
            raise BackendFailed("its script says nothing more")
        return said

    recorder = Recorder(ScriptedBackend(say, chunk=2**30), tokenizer)

    async def play(name: str, script: Script) -> Rehearsal:
        try:
            run = await recorder.run(script.question, script.rules, name=name)
        except Exception as error:
            return Rehearsal(None, f"{type(error).__name__}: {error}")
        if fault := fault_of(run.trajectory):
            return Rehearsal(None, fault)
        read = from_trajectory(script.question, script.answer, run.trajectory)
        if _stripped(read) != _stripped(script):
            return Rehearsal(None, "the runtime does not read all that it writes")
        return Rehearsal(run, None)

    return await asyncio.gather(*(play(str(i), script) for i, script in enumerate(scripts)))


def _stripped(script: Script) -> dict[str, list[str]]:
    return {thread: [call.strip() for call in calls] for thread, calls in script.calls.items()}


@contextmanager
def serving(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, temperature: float = 1.0
) -> Iterator[Backend]:
    """A backend with the weights as they are now: a copy, which an engine may lay out anew.

    Its keys and values go with it, so none of older weights are ever used.
    """
    torch.cuda.empty_cache()  # an engine takes its share of what the device says is free
    most_threads = getattr(model.config, "apr_most_threads", None)
    backend = LocalBackend(
        inference_copy(model),
        tokenizer,
        name="policy",
        temperature=temperature,
        most_threads=most_threads,
    )
    try:
        yield backend
    finally:
        backend.engine.stop()
        # At once, not when the garbage collector comes by: training needs the memory.
        backend.engine.pool.keys.clear()
        backend.engine.pool.values.clear()
        backend.model.to("meta")


def inference_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy without adapters, to run or to save; on a GPU in bfloat16."""
    copied: Any = copy.deepcopy(model)
    if hasattr(copied, "merge_and_unload"):  # LoRA's wrapper
        copied = copied.merge_and_unload()
    copied.requires_grad_(False).eval()
    if model.device.type == "cuda":
        copied.to(torch.bfloat16)
    choose_attention(copied, flex=False)
    return copied  # type: ignore[no-any-return]
