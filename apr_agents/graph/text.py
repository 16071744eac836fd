"""Thinking with a model that continues text: a context that grows at its end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from langchain_core.messages import AnyMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableConfig

from apr_agents.backends.base import Backend, Delta, Request, approximate_tokens
from apr_agents.graph.mind import Mind, Output, Turn, as_text, cut, sound
from apr_agents.graph.state import Thread
from apr_agents.graph.tracing import stream as traced
from apr_agents.protocols.base import (
    Decision,
    Ended,
    Malformed,
    Parser,
    Spawn,
    TextProtocol,
    Visibility,
)
from apr_agents.types import Call, Note, Outline


class TextMind(Mind):
    """A backend and the protocol of its model.

    Args:
        temperature: of all calls; ``None`` for the backend's own.
        logprobs: have the backend tell how likely its output is.
        isolated: ask every thread like a root, whatever the protocol's visibility.
    """

    backend: Backend
    says: TextProtocol

    def __init__(
        self,
        backend: Backend,
        protocol: TextProtocol,
        system_prompt: str | None,
        *,
        temperature: float | None = None,
        logprobs: bool = False,
        isolated: bool = False,
    ) -> None:
        self.backend, self.says, self.system_prompt = backend, protocol, system_prompt
        self.temperature, self.logprobs = temperature, logprobs
        self.visibility: Visibility = "isolated" if isolated else protocol.visibility

    def begin(self, messages: Sequence[AnyMessage], budget: int) -> str:
        prepared = self.says.prepare(messages, budget)
        if self.system_prompt:
            prepared = [SystemMessage(self.system_prompt), *prepared]
        prompt: str = sound(self.backend.render(prepared) + self.says.opening())
        return prompt

    def enter(self, parent: Thread, outline: Outline, budget: int) -> str:
        if self._is_asked(outline):
            asked = self.says.question(outline, _context(parent))
            return self.begin([HumanMessage(asked)], budget)
        return _context(parent) + self.says.thread_header(outline)

    def _is_asked(self, outline: Outline | None) -> bool:
        """Whether a thread is asked like a root, rather than going on with its parent's text."""
        if outline is None:
            return True
        return self.visibility == "isolated" and not outline.is_lane

    def turn(self, thread: Thread, limit: int, budget: int) -> Turn:
        request = self._request(thread, _context(thread), limit, self.says.stops)
        last = thread.steps[-1] if thread.steps else None
        written = thread.written + (last.told if isinstance(last, Note) else "")
        parser = self.says.parser(thread=not self._is_asked(thread.outline), written=written)
        return _Thinking(self, request, parser)

    def summary(self, thread: Thread, limit: int) -> Turn:
        prompt = _context(thread) + self.says.summary_opening
        return _Summing(self, self._request(thread, prompt, limit, (self.says.summary_stop,)))

    def digest(self, thread: Thread, texts: Sequence[str], limit: int) -> Turn:
        asked = HumanMessage("Sum up these results, shortly:\n" + "\n".join(texts))
        prompt = self.begin([asked], 0) + self.says.summary_opening
        return _Summing(self, self._request(thread, prompt, limit, (self.says.summary_stop,)))

    def conclusion(self, thread: Thread) -> str:
        if thread.concluded is not None:
            return thread.concluded
        answered = self.answer(thread) if self._is_asked(thread.outline) else None
        return answered or self.says.conclusion(thread.text)

    def answer(self, thread: Thread) -> str | None:
        return self.says.answer(thread.written, complete=thread.status == "done")

    def _request(self, thread: Thread, prompt: str, limit: int, stops: tuple[str, ...]) -> Request:
        return Request(
            prompt=prompt,
            max_tokens=limit,
            stops=stops,
            key=f"{thread.id}/{len(thread.steps)}",
            run=thread.run,
            temperature=self.temperature,
            logprobs=self.logprobs,
        )


def _context(thread: Thread) -> str:
    return as_text(thread.base) + thread.text


class _Continuing(Turn):
    """Goes on with a text."""

    def __init__(self, mind: TextMind, request: Request) -> None:
        self.mind, self.request = mind, request

    def estimate(self) -> int:
        return approximate_tokens(self.request.prompt)


class _Thinking(_Continuing):
    """Goes on with the thread's context until its parser reads a decision."""

    def __init__(self, mind: TextMind, request: Request, parser: Parser) -> None:
        super().__init__(mind, request)
        self.parser = parser
        self.decision: Decision | None = None

    async def stream(self, config: RunnableConfig | None) -> AsyncGenerator[Delta, None]:
        async with aclosing(traced(self.mind.backend, self.request, config)) as deltas:
            async for delta in deltas:
                self.decision = self.parser.feed(delta.text)
                yield delta
                if self.decision is not None:
                    return

    def read(self, output: Output) -> tuple[Call, list[Decision]]:
        decision = self.decision
        # What follows a decision is dropped, an end too.
        ends = output.ended and decision is None
        if ends:
            decision = self.parser.finish()
        text = self.parser.text
        decisions = [decision] if decision is not None else []
        if isinstance(decision, Malformed) and ends:
            decisions.append(Ended())
        if decision is None and not text.endswith(self.request.stops):
            decisions.append(cut(output, self.request.max_tokens))
        closing = self.mind.says.close(decision, text) if decision is not None else ""
        replaced = decision.replaced if isinstance(decision, Spawn) else 0
        call = Call(
            text=text,
            closing=closing,
            replaced=replaced + len(closing) if replaced else 0,
            **output.measured,
        )
        return call, decisions


class _Summing(_Continuing):
    """Writes a summary, up to the tag that ends it."""

    async def stream(self, config: RunnableConfig | None) -> AsyncGenerator[Delta, None]:
        text = ""
        async with aclosing(traced(self.mind.backend, self.request, config)) as deltas:
            async for delta in deltas:
                yield delta
                text += delta.text
                if self.mind.says.summary_stop in text:
                    return

    def read(self, output: Output) -> tuple[Call, list[Decision]]:
        text = output.text.partition(self.mind.says.summary_stop)[0].strip()
        return Call(text=text, **output.measured), []
