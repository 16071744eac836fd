"""One thread at work: call the model until its protocol reads a decision.

Knows a backend, a protocol and the limits; never LangGraph.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from langchain_core.messages import AnyMessage, HumanMessage, SystemMessage

from apr_agents.backends.base import Backend, Request
from apr_agents.backends.gate import Gate
from apr_agents.errors import EmptyQuestion
from apr_agents.graph.merge import MergePolicy, show
from apr_agents.graph.state import Thread
from apr_agents.limits import Allowance, Limits
from apr_agents.protocols.base import Decision, Ended, Malformed, Shown, Spawn, TextProtocol
from apr_agents.trace.events import Emit
from apr_agents.trace.trajectory import Trajectory
from apr_agents.types import Block, Call, Note, Outline, Summary, ThreadResult, ThreadStatus


@dataclass
class _Output:
    """What one model call has given so far."""

    text: str = ""
    tokens: int = 0
    prompt_tokens: int = 0
    ended: bool = False


@dataclass(frozen=True)
class Runner:
    """The live side of an agent: what its threads need to think."""

    backend: Backend
    protocol: TextProtocol
    merge: MergePolicy
    limits: Limits
    gate: Gate
    system_prompt: str | None = None

    @property
    def budget(self) -> int:
        """Threads that a prompt announces."""
        return self._budget(Allowance.of(self.limits))

    def _budget(self, allowance: Allowance) -> int:
        allowed = allowance.block_size(self.limits)
        most = self.backend.most_threads
        return allowed if most is None else min(allowed, most)

    # --- the life of a thread ------------------------------------------------

    def start(self, messages: Sequence[AnyMessage]) -> Thread:
        """The root thread for a conversation."""
        if not any(message.text.strip() for message in messages):
            raise EmptyQuestion
        allowance = Allowance.of(self.limits)
        return Thread(base=self._prompt(messages, allowance), allowance=allowance)

    async def reason(self, thread: Thread, emit: Emit) -> None:
        """Let ``thread`` think until it waits for threads or has ended.

        Raises:
            Exception: the root's model call failed. Any other thread ends as ``failed``.
        """
        if not thread.steps:
            outline = thread.outline.text if thread.outline else ""
            emit({"type": "started", "id": thread.id, "text": outline})
        while thread.status is None and not thread.outlines:
            await self._think(thread, emit)
        if thread.status is not None and not thread.is_root:
            await self._summarize(thread, emit)

    def children(self, thread: Thread) -> list[Thread]:
        """The threads of the block that ``thread`` waits for."""
        allowance = thread.allowance.share(len(thread.outlines), self.limits)
        return [
            Thread(
                id=child_id,
                outline=outline,
                base=self._base(thread, outline, allowance),
                allowance=allowance,
            )
            for child_id, outline in zip(thread.child_ids, thread.outlines, strict=True)
        ]

    def join(self, thread: Thread, results: Sequence[ThreadResult], emit: Emit) -> None:
        """Give ``thread`` the results of its block, in outline order whatever finished first."""
        by_id = {result.id: result for result in results}
        ordered = [by_id[child_id] for child_id in thread.child_ids]
        shown = [show(self.merge, result) for result in ordered]
        if thread.left_out:
            count, limit = len(thread.left_out), len(thread.outlines)
            why = f"(not started: no more than {limit} threads were allowed; {count} left out)"
            shown.append(Shown(thread.left_out[0].number, why))
        joined = self.protocol.join(shown)
        thread.steps.append(Block(threads=ordered, left_out=thread.left_out, joined=joined))
        longest = max(result.seconds for result in ordered)
        thread.seconds += longest
        thread.allowance = thread.allowance.less(
            tokens=sum(result.tokens for result in ordered),
            threads=sum(1 for result in ordered for _ in result.walk()),
            seconds=longest,
        )
        thread.children += len(ordered)
        thread.outlines, thread.left_out = [], []
        emit({"type": "merged", "id": thread.id, "text": joined})

    def result(self, thread: Thread, emit: Emit) -> ThreadResult:
        """The record of a thread that has ended."""
        calls = [step for step in thread.steps if isinstance(step, Call | Summary)]
        below = [
            child for step in thread.steps if isinstance(step, Block) for child in step.threads
        ]
        summary = calls[-1].text if calls and isinstance(calls[-1], Summary) else None
        assert thread.status is not None
        result = ThreadResult(
            id=thread.id,
            outline=thread.outline,
            status=thread.status,
            reason=thread.reason,
            conclusion=summary or self._conclusion(thread),
            tokens=sum(call.tokens for call in calls) + sum(child.tokens for child in below),
            seconds=thread.seconds,
            steps=thread.steps,
        )
        emit(
            {
                "type": "finished",
                "id": result.id,
                "status": result.status,
                "text": result.conclusion,
                "tokens": result.tokens,
            }
        )
        return result

    def trajectory(self, thread: Thread, emit: Emit) -> Trajectory:
        """The record of a run whose root has ended."""
        result = self.result(thread, emit)
        return Trajectory(
            question=thread.base,
            answer=self._answer(thread),
            model=self.backend.name,
            protocol=self.protocol.name,
            merge=self.merge.name,
            budget=self.budget,
            root=result,
        )

    # --- one model call --------------------------------------------------------

    async def _think(self, thread: Thread, emit: Emit) -> None:
        """One model call and what follows from it."""
        parser = self.protocol.parser(thread=not thread.is_root, written=_written(thread))
        decisions: list[Decision] = []

        def hear(text: str) -> bool:
            decision = parser.feed(text)
            if decision is not None:
                decisions.append(decision)
            return decision is not None

        limit = thread.allowance.next_call
        if limit < 1:
            return _end(thread, "over_budget", "no tokens left")
        output, failure = await self._call(
            thread, thread.context, limit, self.protocol.stops, hear, emit
        )
        if output.ended and not decisions:
            decisions.append(parser.finish())
        decision = decisions[0] if decisions else None
        closing = self.protocol.close(decision, parser.text) if decision else ""
        thread.steps.append(
            Call(
                text=parser.text,
                tokens=output.tokens,
                prompt_tokens=output.prompt_tokens,
                closing=closing,
            )
        )
        if failure is None and not (output.tokens or output.ended):
            failure = ("failed", "the backend generated nothing")
        if failure is not None:
            return _end(thread, *failure)
        if isinstance(decision, Spawn):
            return self._spawn(thread, decision.outlines, emit)
        if isinstance(decision, Malformed):
            emit({"type": "malformed", "id": thread.id, "text": decision.why})
            thread.steps.append(Note(event="malformed", why=decision.why))
        if isinstance(decision, Ended) or output.ended:
            return _end(thread, "done")
        stopped = parser.text.endswith(self.protocol.stops)
        if decision is None and not stopped:
            spent = output.tokens >= limit
            why = f"its {limit} tokens ran out" if spent else "the model's context is full"
            _end(thread, "over_budget", why)

    def _spawn(self, thread: Thread, outlines: list[Outline], emit: Emit) -> None:
        allowed = thread.allowance.block_size(self.limits)
        if thread.allowance.share(max(1, min(allowed, len(outlines))), self.limits).next_call < 1:
            allowed = 0
        if not allowed:
            why = f"{len(outlines)} threads asked for, none allowed"
            thread.steps.append(Note(event="declined", why=why, told=self.protocol.decline()))
            return emit({"type": "declined", "id": thread.id, "text": why})
        thread.outlines, thread.left_out = outlines[:allowed], outlines[allowed:]
        emit({"type": "spawned", "id": thread.id, "threads": thread.child_ids})

    async def _summarize(self, thread: Thread, emit: Emit) -> None:
        """Have the model sum up a finished thread, where the merge policy wants that."""
        stop, wanted = self.protocol.summary_stop, self.merge.summary_tokens
        limit = min(wanted or 0, thread.allowance.next_call)
        if thread.status != "done" or limit < 1:
            return
        heard: list[str] = []

        def hear(text: str) -> bool:
            heard.append(text)
            return stop in "".join(heard)

        prompt = thread.context + self.protocol.summary_opening
        output, failure = await self._call(thread, prompt, limit, (stop,), hear, emit)
        text = output.text.partition(stop)[0].strip() if failure is None else ""
        if output.tokens:
            thread.steps.append(
                Summary(text=text, tokens=output.tokens, prompt_tokens=output.prompt_tokens)
            )

    async def _call(
        self,
        thread: Thread,
        prompt: str,
        max_tokens: int,
        stops: tuple[str, ...],
        hear: Callable[[str], bool],
        emit: Emit,
    ) -> tuple[_Output, tuple[ThreadStatus, str] | None]:
        """Generate until ``hear`` has heard enough; what came, and why it broke off if it did."""
        request = Request(
            prompt=prompt,
            max_tokens=max_tokens,
            stops=stops,
            key=f"{thread.id}/{len(thread.steps)}",
        )
        output = _Output()
        failure: tuple[ThreadStatus, str] | None = None
        started = time.monotonic()
        try:
            async with (
                asyncio.timeout(thread.allowance.seconds) as deadline,
                self.gate.hold(),
                aclosing(self.backend.stream(request)) as deltas,
            ):
                async for text, tokens, prompt_tokens, ended in deltas:
                    output.text += text
                    output.tokens += tokens
                    output.prompt_tokens += prompt_tokens
                    output.ended = ended
                    if tokens:
                        emit({"type": "token", "id": thread.id, "text": text, "tokens": tokens})
                    if hear(text):
                        break
        except Exception as error:
            if isinstance(error, TimeoutError) and deadline.expired():
                failure = ("timed_out", f"it took longer than {thread.allowance.seconds:.3g} s")
            elif thread.is_root:
                raise
            else:
                failure = ("failed", f"{type(error).__name__}: {error}")
        seconds = time.monotonic() - started
        thread.seconds += seconds
        thread.allowance = thread.allowance.less_own(tokens=output.tokens, seconds=seconds)
        return output, failure

    # --- texts -----------------------------------------------------------------

    def _prompt(self, messages: Sequence[AnyMessage], allowance: Allowance) -> str:
        prepared = self.protocol.prepare(messages, self._budget(allowance))
        if self.system_prompt:
            prepared = [SystemMessage(self.system_prompt), *prepared]
        prompt = self.backend.render(prepared) + self.protocol.opening()
        # A broken byte reaches Python as half a surrogate pair, which no file or model can take.
        return prompt.encode("utf-8", "replace").decode("utf-8")

    def _base(self, parent: Thread, outline: Outline, allowance: Allowance) -> str:
        isolated = self.protocol.visibility == "isolated"
        asked = [HumanMessage(outline.text)]
        context = self._prompt(asked, allowance) if isolated else parent.context
        return context + self.protocol.thread_header(outline)

    def _conclusion(self, thread: Thread) -> str:
        if thread.is_root:
            return self._answer(thread) or ""
        return self.protocol.conclusion(thread.text)

    def _answer(self, thread: Thread) -> str | None:
        return self.protocol.answer(_written(thread), complete=thread.status == "done")


def _written(thread: Thread) -> str:
    """What the model itself wrote in a thread: neither joins nor notes."""
    return "".join(step.text for step in thread.steps if isinstance(step, Call))


def _end(thread: Thread, status: ThreadStatus, reason: str | None = None) -> None:
    thread.status, thread.reason = status, reason
