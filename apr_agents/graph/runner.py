"""One thread at work: call the model until its protocol reads a decision.

Knows a mind, the policies and the limits; never LangGraph.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from langchain_core.messages import AnyMessage
from langchain_core.runnables import RunnableConfig

from apr_agents.backends.base import Delta
from apr_agents.backends.gate import STARTED_TOGETHER, Gate
from apr_agents.errors import EmptyQuestion, InvalidOption
from apr_agents.graph.join import NOT_NEEDED, JoinPolicy, Races, resolve_join
from apr_agents.graph.merge import LEAST, MergePolicy, fit, is_lane, show
from apr_agents.graph.mind import Mind, Output, Speech, Turn, as_text
from apr_agents.graph.state import Race, Thread
from apr_agents.limits import Allowance, Limits
from apr_agents.protocols.base import (
    Cut,
    Decision,
    Discard,
    Ended,
    Malformed,
    Shown,
    Spawn,
    Use,
)
from apr_agents.trace.events import Emit
from apr_agents.trace.trajectory import Trajectory
from apr_agents.types import (
    Backtrack,
    Block,
    Call,
    Note,
    Summary,
    ThreadResult,
    ThreadStatus,
    ToolCall,
    ToolUse,
)

Failure = tuple[ThreadStatus, str]


@dataclass(frozen=True)
class Scene:
    """What surrounds a thread while it works: where its events go, what its calls inherit.

    Attributes:
        emit: takes the run's events.
        config: LangChain's configuration of the model and tool calls.
        use: makes a tool call of the thread.
        saved: whether the run is checkpointed.
    """

    emit: Emit
    config: RunnableConfig | None = None
    use: Callable[[Thread, ToolCall], Awaitable[ToolUse]] | None = None
    saved: bool = False


@dataclass(frozen=True)
class Runner:
    """The live side of an agent: what its threads need to think.

    Attributes:
        parent_lane: whether a parent goes on with a lane of its own while its threads run.
        host: how to speak to the root, where that is an agent around it rather than ``mind``.
    """

    mind: Mind
    merge: MergePolicy
    join_policy: JoinPolicy
    limits: Limits
    gate: Gate
    parent_lane: bool = False
    host: Speech | None = None
    races: Races = field(default_factory=Races)

    @property
    def budget(self) -> int:
        """Threads that a prompt announces."""
        return self._budget(Allowance.of(self.limits))

    def _budget(self, allowance: Allowance) -> int:
        allowed = allowance.block_size(self.limits)
        most = self.mind.backend.most_threads
        return allowed if most is None else min(allowed, most)

    # --- the life of a thread ------------------------------------------------

    def start(self, messages: Sequence[AnyMessage]) -> Thread:
        """The root thread for a conversation."""
        if not any(message.text.strip() for message in messages):
            raise EmptyQuestion
        allowance = Allowance.of(self.limits)
        base = self.mind.begin(messages, self._budget(allowance))
        return Thread(run=uuid.uuid4().hex, base=base, allowance=allowance)

    async def reason(self, thread: Thread, scene: Scene) -> None:
        """Let ``thread`` think until it waits for threads or tools, or has ended.

        Raises:
            Exception: the root's model call failed. Any other thread ends as ``failed``.
        """
        if not thread.steps:
            outline = thread.outline.text if thread.outline else ""
            scene.emit({"type": "started", "id": thread.id, "text": outline})
        while thread.status is None and not thread.waits:
            await self._think(thread, scene)
        if thread.status == "done" and not thread.is_root:
            await self._summarize(thread, scene)

    async def live(self, thread: Thread, scene: Scene) -> ThreadResult:
        """The whole life of a thread and of all below it, in this coroutine."""
        while True:
            await self.reason(thread, scene)
            if thread.status is not None:
                return self.result(thread, scene.emit)
            results, uses = await asyncio.gather(
                self.live_all(self.children(thread), scene), self.use_all(thread, scene)
            )
            await self.join(thread, results, uses, scene)

    async def live_all(
        self,
        threads: Iterable[Thread],
        scene: Scene,
        *,
        earlier: Sequence[ThreadResult] = (),
        keep: Callable[[ThreadResult], None] = lambda result: None,
    ) -> list[ThreadResult]:
        """Several lives at once.

        Args:
            earlier: results from before a restart; their threads do not run again.
            keep: gets each new result as soon as it is there.
        """
        results = {result.id: result for result in earlier}

        async def live(thread: Thread) -> None:
            results[thread.id] = await self.live(thread, scene)
            keep(results[thread.id])

        if earlier:
            threads = list(threads)
            for thread in threads:
                if thread.id in results:
                    self._finish(thread, results[thread.id])
        ids: list[str] = []
        async with asyncio.TaskGroup() as group:
            for thread in threads:
                ids.append(thread.id)
                if thread.id not in results:
                    group.create_task(live(thread))
                if len(ids) % STARTED_TOGETHER == 0:
                    await asyncio.sleep(0)
        return [results[thread_id] for thread_id in ids]

    async def use_all(self, thread: Thread, scene: Scene) -> list[ToolUse]:
        """All the tool calls that ``thread`` waits for, at once."""
        return await asyncio.gather(*(self.use(thread, call, scene) for call in thread.uses))

    async def use(self, thread: Thread, call: ToolCall, scene: Scene) -> ToolUse:
        """One tool call of ``thread``, within its time."""
        assert scene.use is not None
        scene.emit({"type": "tool", "id": thread.id, "text": f"{call.name}({call.args})"})
        started = time.monotonic()
        try:
            async with asyncio.timeout(thread.allowance.seconds) as deadline:
                with self.races.running(thread, deadline):
                    return await scene.use(thread, call)
        except TimeoutError:
            text = f"It did not return within {thread.allowance.seconds:.3g} s."
            if self.races.lost(thread.run, thread.id):
                text = f"It was stopped: {NOT_NEEDED}."
            seconds = time.monotonic() - started
            return ToolUse(call=call, text=text, failed=True, seconds=seconds)

    def spawn(self, thread: Thread, spawn: Spawn, emit: Emit) -> None:
        """Have ``thread`` wait for a block, as far as the limits allow."""
        outlines = [outline.within(thread.outline) for outline in spawn.outlines]
        allowed = thread.allowance.block_size(self.limits)
        if thread.allowance.share(max(1, min(allowed, len(outlines))), self.limits).next_call < 1:
            allowed = 0
        if not allowed:
            why = f"{len(outlines)} threads asked for, none allowed"
            told = self._speech(thread).decline()
            note = Note(event="declined", why=why, told=told, answers=spawn.answers)
            thread.steps.append(note)
            return emit({"type": "declined", "id": thread.id, "text": why})
        thread.outlines, thread.left_out = outlines[:allowed], outlines[allowed:]
        if self.parent_lane:
            thread.outlines = [*thread.outlines, self.mind.says.lane().within(thread.outline)]
        thread.policy, thread.answers = self._policy(spawn.join).name, spawn.answers
        emit({"type": "spawned", "id": thread.id, "threads": thread.child_ids})

    def children(self, thread: Thread) -> Iterator[Thread]:
        """The threads of the block that ``thread`` waits for, made one by one."""
        if not thread.outlines:
            return
        allowance = thread.allowance.share(len(thread.outlines), self.limits)
        budget = self._budget(allowance)
        racing = [outline for outline in thread.outlines if not outline.is_lane]
        race = Race(thread.policy, len(racing))
        for child_id, outline in zip(thread.child_ids, thread.outlines, strict=True):
            yield Thread(
                run=thread.run,
                id=child_id,
                outline=outline,
                race=race,
                base=self.mind.enter(thread, outline, budget),
                allowance=allowance,
            )

    def are_leaves(self, thread: Thread) -> bool:
        """Whether the threads that ``thread`` waits for can neither spawn nor call tools."""
        return thread.allowance.depth <= 1 and not self.mind.tools

    async def join(
        self,
        thread: Thread,
        results: Sequence[ThreadResult],
        uses: Sequence[ToolUse],
        scene: Scene,
    ) -> None:
        """Give ``thread`` what it waited for, in its own order whatever finished first."""
        by_id = {use.call.id: use for use in uses}
        thread.steps += [by_id[call.id] for call in thread.uses]
        if thread.outlines:
            await self._join_block(thread, results, scene)
        # Threads and tools ran at the same time.
        waited = max([result.seconds for result in results] + [use.seconds for use in uses])
        thread.seconds += waited
        thread.allowance = thread.allowance.less(seconds=waited)
        thread.uses = []

    async def _join_block(
        self, thread: Thread, results: Sequence[ThreadResult], scene: Scene
    ) -> None:
        by_id = {result.id: result for result in results}
        ordered = [by_id[child_id] for child_id in thread.child_ids]
        thread.allowance = thread.allowance.less(
            tokens=sum(result.tokens for result in ordered),
            threads=sum(not is_lane(below) for result in ordered for below in result.walk()),
        )
        joined = await self._joined(thread, ordered, scene)
        thread.steps.append(
            Block(
                threads=ordered,
                left_out=thread.left_out,
                policy=thread.policy,
                joined=joined,
                answers=thread.answers,
            )
        )
        self.races.joined(thread)
        thread.children += len(ordered)
        thread.outlines, thread.left_out, thread.answers = [], [], None
        scene.emit({"type": "merged", "id": thread.id, "text": joined})

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
        self._finish(thread, result)
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

    def _finish(self, thread: Thread, result: ThreadResult) -> None:
        if thread.race is not None and not is_lane(result):
            policy = self._policy(thread.race.policy)
            self.races.finished(thread.run, result, policy, thread.race.threads)

    def trajectory(self, thread: Thread, emit: Emit) -> Trajectory:
        """The record of a run whose root has ended."""
        result = self.result(thread, emit)
        return Trajectory(
            question=as_text(thread.base),
            answer=self.mind.answer(thread),
            model=self.mind.backend.name,
            protocol=self.mind.says.name,
            merge=self.merge.name,
            budget=self.budget,
            root=result,
        )

    # --- one model call --------------------------------------------------------

    async def _think(self, thread: Thread, scene: Scene) -> None:
        """One model call and what follows from it."""
        limit = thread.allowance.next_call
        if limit < 1:
            what = "tokens" if thread.allowance.calls > 0 else "model calls"
            return _end(thread, "over_budget", f"no {what} left")
        turn = self.mind.turn(thread, limit, self._budget(thread.allowance))
        output, failure = await self._call(thread, turn, scene)
        call, decisions = turn.read(output)
        thread.steps.append(call)
        thread.said = turn.said if call.text.strip() else None
        if failure is None and not (output.tokens or output.ended):
            failure = ("failed", "the backend generated nothing")
        if failure is not None:
            return _end(thread, *failure)
        for decision in decisions:
            self._follow(thread, decision, scene.emit)

    def _follow(self, thread: Thread, decision: Decision, emit: Emit) -> None:
        """Do what the model decided, as far as the limits allow."""
        match decision:
            case Spawn():
                self.spawn(thread, decision, emit)
            case Use(call):
                thread.uses = [*thread.uses, call]
            case Discard(tried):
                self._backtrack(thread, tried, emit)
            case Malformed(why, told, answers, fatal):
                emit({"type": "malformed", "id": thread.id, "text": why})
                note = Note(event="malformed", why=why, told=told, answers=answers)
                thread.steps.append(note)
                if fatal:
                    _end(thread, "failed", why)
            case Cut(why):
                _end(thread, "over_budget", why)
            case Ended(conclusion):
                thread.concluded = conclusion
                _end(thread, "done")

    def _backtrack(self, thread: Thread, tried: str, emit: Emit) -> None:
        to = thread.latest_block
        if to is None:
            why = "there is no block to give up"
            thread.steps.append(Note(event="malformed", why=why))
            return emit({"type": "malformed", "id": thread.id, "text": why})
        told = self.mind.says.backtrack(tried)
        thread.steps.append(Backtrack(to=to, tried=tried, told=told))
        emit({"type": "backtracked", "id": thread.id, "text": tried})

    def _policy(self, name: str | None) -> JoinPolicy:
        if name is None or name == self.join_policy.name:
            return self.join_policy
        try:
            return resolve_join(name)
        except InvalidOption:
            return self.join_policy

    async def _summarize(self, thread: Thread, scene: Scene) -> None:
        """Have the model sum up a finished thread, where the merge policy wants that."""
        limit = min(self.merge.summary_tokens or 0, thread.allowance.next_call)
        if limit < 1 or thread.concluded is not None:
            return
        await self._sum_up(thread, self.mind.summary(thread, limit), scene)

    async def _sum_up(self, thread: Thread, turn: Turn, scene: Scene) -> str:
        output, failure = await self._call(thread, turn, scene)
        call, _ = turn.read(output)
        text = call.text if failure is None else ""
        if output.tokens:
            summary = Summary(text=text, tokens=call.tokens, prompt_tokens=call.prompt_tokens)
            thread.steps.append(summary)
        return text

    async def _call(
        self, thread: Thread, turn: Turn, scene: Scene
    ) -> tuple[Output, Failure | None]:
        """Generate; what came, and why it broke off if it did."""
        output = Output()
        failure: Failure | None = None
        started = time.monotonic()
        estimate = turn.estimate() if self.gate.tokens_per_second else 0
        # The rest of the configuration reaches the model through the context of the node.
        metadata = (scene.config or {}).get("metadata", {})
        config: RunnableConfig = {"metadata": {**metadata, "apr_thread": thread.id}}
        try:
            async with asyncio.timeout(thread.allowance.seconds) as deadline:
                with self.races.running(thread, deadline):
                    async with (
                        self.gate.hold(estimate) as held,
                        aclosing(turn.stream(config)) as deltas,
                    ):
                        await _hear(deltas, output, thread.id, scene.emit)
                        held.spent(output.prompt_tokens + output.tokens)
        except Exception as error:
            if isinstance(error, TimeoutError) and deadline.expired():
                if self.races.lost(thread.run, thread.id):
                    failure = ("cancelled", NOT_NEEDED)
                else:
                    failure = ("timed_out", f"it took longer than {thread.allowance.seconds:.3g} s")
            elif thread.is_root and not thread.waits:  # a failed digest costs it no results
                raise
            else:
                failure = ("failed", f"{type(error).__name__}: {error}")
        seconds = time.monotonic() - started
        thread.seconds += seconds
        thread.allowance = thread.allowance.less_own(tokens=output.tokens, seconds=seconds)
        return output, failure

    # --- texts -----------------------------------------------------------------

    async def _joined(self, thread: Thread, results: list[ThreadResult], scene: Scene) -> str:
        """What ``thread`` reads of its block, in no more than its join may take."""
        racing = [result for result in results if not is_lane(result)]
        verdict = self._policy(thread.policy).verdict(racing)
        shown = show(self.merge, results, verdict)
        if thread.left_out:
            count, limit = len(thread.left_out), len(thread.outlines)
            why = f"(not started: no more than {limit} threads were allowed; {count} left out)"
            shown.append(Shown(thread.left_out[0].number, why))
        room = self._room(thread)
        if self.merge.summary_tokens is not None:
            shown = await self._digested(thread, shown, room, scene)
        says, backend = self._speech(thread), self.mind.backend
        return fit(shown, room, join=says.join, count=backend.count, tail=backend.tail)

    async def _digested(
        self, thread: Thread, shown: list[Shown], room: int, scene: Scene
    ) -> list[Shown]:
        """Groups of texts summed up, level by level, until each that is left has enough room."""
        wanted = self.merge.summary_tokens or LEAST
        count = self.mind.backend.count
        while len(shown) > 1 and sum(count(one.text) for one in shown) > room:
            groups = max(1, min(room // (2 * wanted), len(shown) // 2))
            size = -(-len(shown) // groups)
            digests = []
            for first in range(0, len(shown), size):
                group = shown[first : first + size]
                limit = min(wanted, thread.allowance.next_call)
                if limit < 1:
                    return shown
                texts = [f"[{one.id or one.number}] {one.text}" for one in group]
                text = await self._sum_up(thread, self.mind.digest(thread, texts, limit), scene)
                if not text:
                    return shown
                digests.append(Shown(f"{group[0].number}-{group[-1].number}", text))
            shown = digests
        return shown

    def _room(self, thread: Thread) -> int:
        """Tokens that a join may add: half of what the model's context has left at most."""
        calls = [step for step in thread.steps if isinstance(step, Call)]
        longest = self.mind.backend.context_length
        if longest is None or not calls:
            return self.limits.max_join_tokens
        left = longest - calls[-1].prompt_tokens - calls[-1].tokens
        return max(1, min(self.limits.max_join_tokens, left // 2))

    def _speech(self, thread: Thread) -> Speech:
        return self.host if self.host is not None and thread.is_root else self.mind.says

    def _conclusion(self, thread: Thread) -> str:
        if thread.is_root:
            return self.mind.answer(thread) or ""
        return self.mind.conclusion(thread)


async def _hear(
    deltas: AsyncGenerator[Delta, None], output: Output, thread_id: str, emit: Emit
) -> None:
    async for text, tokens, prompt_tokens, ended in deltas:
        output.text += text
        output.tokens += tokens
        output.prompt_tokens += prompt_tokens
        output.ended = ended
        if text:
            emit({"type": "token", "id": thread_id, "text": text, "tokens": tokens})


def _end(thread: Thread, status: ThreadStatus, reason: str | None = None) -> None:
    thread.status, thread.reason = status, reason
