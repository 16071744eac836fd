"""One thread at work: call the model until its protocol reads a decision.

Knows a mind, the policies and the limits; never LangGraph.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from langchain_core.messages import AnyMessage
from langchain_core.runnables import RunnableConfig

from apr_agents.backends.base import Delta
from apr_agents.backends.gate import STARTED_TOGETHER, Gate
from apr_agents.errors import EmptyQuestion, InvalidOption
from apr_agents.graph import tracing
from apr_agents.graph.join import NOT_NEEDED, JoinPolicy, Races, resolve_join
from apr_agents.graph.merge import (
    LEAST,
    Conclusions,
    MergePolicy,
    fit,
    shortened,
    show,
)
from apr_agents.graph.mind import (
    Base,
    Mind,
    Output,
    Speech,
    Turn,
    as_text,
    asked,
    asking,
    sound_message,
)
from apr_agents.graph.state import Race, Thread, now
from apr_agents.graph.telling import note, tell, undecided
from apr_agents.limits import Allowance, Limits
from apr_agents.protocols.base import (
    Cut,
    Decision,
    Discard,
    Ended,
    Malformed,
    Shown,
    Spawn,
    Undecided,
    Use,
)
from apr_agents.protocols.tool_calls import ToolCalls
from apr_agents.strategies.base import Strategy
from apr_agents.trace.events import Emit
from apr_agents.trace.trajectory import Trajectory
from apr_agents.types import (
    Backtrack,
    Block,
    Call,
    Outline,
    Summary,
    ThreadResult,
    ThreadStatus,
    ToolCall,
    ToolUse,
)

Failure = tuple[ThreadStatus, str]

CANCELLED = "the call was cancelled"


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
    use: Callable[[Thread, ToolCall, RunnableConfig | None], Awaitable[ToolUse]] | None = None
    saved: bool = False


@dataclass(frozen=True)
class Runner:
    """The live side of an agent: what its threads need to think.

    Attributes:
        parent_lane: whether a parent goes on with a lane of its own while its threads run.
        host: how to speak to the root, where that is an agent around it rather than ``mind``.
        strategy: what decides for the root in the place of its model.
    """

    mind: Mind
    merge: MergePolicy
    join_policy: JoinPolicy
    limits: Limits
    gate: Gate
    parent_lane: bool = False
    host: Speech | None = None
    strategy: Strategy | None = None
    races: Races = field(default_factory=Races)

    async def free_lanes(self) -> int | None:
        """Lanes of the model that are free now, where the limits depend on it."""
        return await self.mind.backend.free_lanes() if self.limits.max_threads == "auto" else None

    def _budget(self, allowance: Allowance) -> int:
        """Threads that a prompt announces."""
        allowed = allowance.block_size(self.limits)
        most = self.mind.backend.most_threads
        return allowed if most is None else min(allowed, most)

    # --- the life of a thread ------------------------------------------------

    def start(self, messages: Sequence[AnyMessage], lanes: int | None = None) -> Thread:
        """The root thread for a conversation, while ``lanes`` lanes of the model are free."""
        if not any(message.text.strip() for message in messages):
            raise EmptyQuestion
        allowance = Allowance.of(self.limits, lanes)
        base: Base = [*map(sound_message, messages)]
        if self.strategy is None:
            base = self.mind.begin(messages, self._budget(allowance))
        return Thread(run=uuid.uuid4().hex, base=base, allowance=allowance, began=now())

    async def reason(self, thread: Thread, scene: Scene) -> None:
        """Let ``thread`` think until it waits for threads or tools, or has ended.

        Raises:
            Exception: the root's model call failed. Any other thread ends as ``failed``.
        """
        if not thread.steps:
            thread.started = thread.clock()
            outline = thread.outline.text if thread.outline else ""
            tell(scene.emit, thread, "started", text=outline)
        while thread.status is None and not thread.waits:
            if self.strategy is not None and thread.is_root:
                await self._decide(self.strategy, thread, scene)
            else:
                await self._think(thread, scene)
        if thread.status == "done" and not thread.is_root:
            await self._summarize(thread, scene)

    async def live(self, thread: Thread, scene: Scene) -> ThreadResult:
        """The whole life of a thread and of all below it, in this coroutine."""
        if not tracing.is_heard(scene.config):
            return await self._live(thread, scene)
        return await tracing.live(
            thread, scene.config, lambda config: self._live(thread, replace(scene, config=config))
        )

    async def _live(self, thread: Thread, scene: Scene) -> ThreadResult:
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
        began = thread.clock()
        tell(scene.emit, thread, "tool", began, call=call.id, text=call.shown)
        use = await self._used(thread, call, scene)
        status: ThreadStatus = "failed" if use.failed else "done"
        tell(scene.emit, thread, "returned", use.ended, call=call.id, text=use.text, status=status)
        return use

    async def _used(self, thread: Thread, call: ToolCall, scene: Scene) -> ToolUse:
        assert scene.use is not None
        started = thread.clock()
        try:
            async with asyncio.timeout(thread.allowance.seconds) as deadline:
                with self.races.running(thread, deadline):
                    return await scene.use(thread, call, scene.config)
        except TimeoutError:
            _, why = self._out_of_time(thread)
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            why = CANCELLED
        text, seconds = f"It was stopped: {why}.", thread.clock() - started
        return ToolUse(call=call, text=text, failed=True, started=started, seconds=seconds)

    def _out_of_time(self, thread: Thread) -> Failure:
        """What broke a call off: the time that ``thread`` has, or a race that it lost."""
        if self.races.lost(thread.run, thread.id):
            return "cancelled", NOT_NEEDED
        return "timed_out", f"it took longer than {thread.allowance.seconds:.3g} s"

    async def spawn(self, thread: Thread, spawn: Spawn, emit: Emit) -> None:
        """Have ``thread`` wait for a block, as far as the limits allow."""
        outlines = [outline.within(thread.outline) for outline in spawn.outlines]
        allowed = thread.allowance.block_size(self.limits)
        if thread.allowance.share(max(1, min(allowed, len(outlines))), self.limits).next_call < 1:
            allowed = 0
        if not allowed:
            why = f"{len(outlines)} threads asked for, none allowed"
            told = self._speech(thread).decline()
            return note(emit, thread, "declined", why, told, spawn.answers)
        thread.outlines = outlines[:allowed]
        thread.left_out = [] if spawn.alike else outlines[allowed:]
        if self.parent_lane:
            thread.outlines = [*thread.outlines, self.mind.says.lane().within(thread.outline)]
        thread.policy, thread.answers = self._policy(spawn.join).name, spawn.answers
        thread.lanes = await self.free_lanes()
        tell(emit, thread, "spawned", threads=thread.child_ids)

    def children(self, thread: Thread) -> Iterator[Thread]:
        """The threads of the block that ``thread`` waits for, made one by one."""
        if not thread.outlines:
            return
        allowance = thread.allowance.share(len(thread.outlines), self.limits, thread.lanes)
        budget = self._budget(allowance)
        racing = [outline for outline in thread.outlines if not outline.is_lane]
        race = Race(thread.policy, len(racing))
        for child_id, outline in zip(thread.child_ids, thread.outlines, strict=True):
            yield Thread(
                run=thread.run,
                id=child_id,
                outline=outline,
                race=race,
                base=self._base(thread, outline, budget),
                allowance=allowance,
                began=thread.began,
                started=thread.reached,
            )

    def _base(self, thread: Thread, outline: Outline, budget: int) -> Base:
        if self.strategy is not None and thread.is_root:
            return self.mind.begin(asking(thread.base, outline.text), budget)
        return self.mind.enter(thread, outline, budget)

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
        by_id, asked = {use.call.id: use for use in uses}, thread.reached
        room = self._room(thread, self.limits.max_tool_tokens, parts=len(thread.uses))
        thread.steps += [self._fitted(by_id[call.id], room) for call in thread.uses]
        if thread.outlines:
            await self._join_block(thread, results, asked, scene)
        # Threads and tools ran at the same time.
        waited = max([result.seconds for result in results] + [use.seconds for use in uses])
        thread.seconds += waited
        thread.allowance = thread.allowance.less(seconds=waited)
        thread.uses = []

    async def _join_block(
        self, thread: Thread, results: Sequence[ThreadResult], asked: float, scene: Scene
    ) -> None:
        by_id = {result.id: result for result in results}
        ordered = [by_id[child_id] for child_id in thread.child_ids]
        thread.allowance = thread.allowance.less(
            tokens=sum(result.tokens for result in ordered),
            threads=sum(not below.is_lane for result in ordered for below in result.walk()),
        )
        if fault := self.races.joined(thread):
            undecided(scene.emit, thread, _raised(f"join policy {thread.policy}", fault))
        joined = await self._joined(thread, ordered, scene)
        thread.steps.append(
            Block(
                threads=ordered,
                left_out=thread.left_out,
                policy=thread.policy,
                joined=joined,
                answers=thread.answers,
                started=asked,
                seconds=thread.clock() - asked,
            )
        )
        thread.children += len(ordered)
        thread.outlines, thread.left_out, thread.answers = [], [], None
        tell(scene.emit, thread, "merged", text=joined)

    def result(self, thread: Thread, emit: Emit) -> ThreadResult:
        """The record of a thread that has ended."""
        calls = [step for step in thread.steps if isinstance(step, Call | Summary)]
        below = [child for step in thread.steps if step.kind == "block" for child in step.threads]
        summary = calls[-1].text if calls and calls[-1].kind == "summary" else None
        assert thread.status is not None
        result = ThreadResult(
            id=thread.id,
            outline=thread.outline,
            status=thread.status,
            reason=thread.reason,
            conclusion=summary or self._conclusion(thread),
            tokens=sum(call.tokens for call in calls) + sum(child.tokens for child in below),
            started=thread.started,
            seconds=thread.seconds,
            steps=thread.steps,
        )
        self._finish(thread, result)
        tell(
            emit,
            thread,
            "finished",
            status=result.status,
            reason=result.reason,
            text=result.conclusion,
            tokens=result.tokens,
        )
        return result

    def _finish(self, thread: Thread, result: ThreadResult) -> None:
        if thread.race is not None and not result.is_lane:
            policy = self._policy(thread.race.policy)
            self.races.finished(thread.run, result, policy, thread.race.threads)

    def trajectory(self, thread: Thread, emit: Emit) -> Trajectory:
        """The record of a run whose root has ended."""
        result = self.result(thread, emit)
        allowance = Allowance.of(self.limits, thread.allowance.lanes)
        return Trajectory(
            began=datetime.fromtimestamp(thread.began, UTC),
            question=as_text(thread.base),
            answer=self._answer(thread),
            model=self.mind.backend.name,
            protocol=self.mind.says.name,
            merge=self.merge.name,
            budget=0 if self.strategy else self._budget(allowance),
            root=result,
        )

    async def _decide(self, strategy: Strategy, thread: Thread, scene: Scene) -> None:
        """What the strategy has the root do next."""
        for decision in strategy.decide(asked(thread.base), thread.steps):
            await self._follow(thread, decision, scene.emit)

    def findings(self, thread: Thread) -> str:
        """What a root without an answer has found by then: a line for each latest thread."""
        blocks = [step for step in thread.steps if isinstance(step, Block)]
        shown = show(Conclusions(), blocks[-1].threads, None) if blocks else []
        room, backend = self.limits.max_join_tokens, self.mind.backend
        return fit(shown, room, join=ToolCalls().join, count=backend.count, tail=backend.tail)

    # --- one model call --------------------------------------------------------

    async def _think(self, thread: Thread, scene: Scene) -> None:
        """One model call and what follows from it."""
        limit = thread.allowance.next_call
        if limit < 1:
            what = "tokens" if thread.allowance.calls > 0 else "model calls"
            return _end(thread, "over_budget", f"no {what} left")
        budget = self._budget(thread.allowance)
        turn = self.mind.turn(thread, limit, budget)
        output, failure = await self._call(thread, turn, scene, budget)
        call, decisions = turn.read(output)
        thread.steps.append(call)
        thread.said = turn.said if call.text.strip() else None
        if failure is None and not (output.tokens or output.ended):
            failure = ("failed", "the backend generated nothing")
        if failure is not None:
            return _end(thread, *failure)
        for decision in decisions:
            await self._follow(thread, decision, scene.emit)

    async def _follow(self, thread: Thread, decision: Decision, emit: Emit) -> None:
        """Do what the model decided, as far as the limits allow."""
        match decision:
            case Spawn():
                await self.spawn(thread, decision, emit)
            case Use(call):
                thread.uses = [*thread.uses, call]
            case Discard(tried):
                self._backtrack(thread, tried, emit)
            case Malformed(why, told, answers, fatal):
                note(emit, thread, "malformed", why, told, answers)
                if fatal:
                    _end(thread, "failed", why)
            case Cut(why):
                _end(thread, "over_budget", why)
            case Undecided(why):
                undecided(emit, thread, why)
            case Ended(conclusion, status, reason):
                thread.concluded = conclusion
                _end(thread, status, reason)

    def _backtrack(self, thread: Thread, tried: str, emit: Emit) -> None:
        to = thread.latest_block
        if to is None:
            return note(emit, thread, "malformed", "there is no block to give up")
        told = self.mind.says.backtrack(tried)
        thread.steps.append(Backtrack(to=to, tried=tried, told=told))
        tell(emit, thread, "backtracked", text=tried)

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
            thread.steps.append(Summary(text=text, **output.measured))
        return text

    async def _call(
        self, thread: Thread, turn: Turn, scene: Scene, budget: int = 0
    ) -> tuple[Output, Failure | None]:
        """Generate; what came, and why it broke off if it did."""
        output = Output(budget=budget, lanes=thread.allowance.lanes, started=thread.clock())
        failure: Failure | None = None
        estimate = turn.estimate() if self.gate.tokens_per_second else 0
        # The rest of the configuration reaches the model through the context of the node.
        config = tracing.marks(scene.config, thread.id)
        try:
            async with asyncio.timeout(thread.allowance.seconds) as deadline:
                with self.races.running(thread, deadline):
                    async with (
                        self.gate.hold(estimate) as held,
                        aclosing(turn.stream(config)) as deltas,
                    ):
                        output.waited = thread.clock() - output.started
                        admitted = output.started + output.waited
                        tell(scene.emit, thread, "admitted", admitted)
                        await _hear(deltas, output, thread, admitted, scene.emit)
                        held.spent(output.prompt_tokens + output.tokens)
        except (Exception, asyncio.CancelledError) as error:
            if _is_cancelled():
                raise asyncio.CancelledError from error
            if isinstance(error, TimeoutError) and deadline.expired():
                failure = self._out_of_time(thread)
            elif thread.is_root and not thread.waits:  # a failed digest costs it no results
                raise
            elif isinstance(error, asyncio.CancelledError):
                failure = ("cancelled", CANCELLED)
            else:
                failure = ("failed", f"{type(error).__name__}: {error}")
        output.seconds = thread.clock() - output.started
        thread.seconds += output.seconds
        thread.allowance = thread.allowance.less_own(tokens=output.tokens, seconds=output.seconds)
        return output, failure

    # --- texts -----------------------------------------------------------------

    async def _joined(self, thread: Thread, results: list[ThreadResult], scene: Scene) -> str:
        """What ``thread`` reads of its block, in no more than its join may take."""
        racing = [result for result in results if not result.is_lane]
        try:
            verdict = self._policy(thread.policy).verdict(racing)
        except Exception as error:
            verdict = None
            undecided(scene.emit, thread, _raised(f"join policy {thread.policy}", error))
        try:
            shown = show(self.merge, results, verdict)
        except Exception as error:
            shown = show(Conclusions(), results, verdict)
            undecided(scene.emit, thread, _raised(f"merge policy {self.merge.name}", error))
        if thread.left_out:
            count, limit = len(thread.left_out), len(racing)
            why = f"(not started: no more than {limit} threads were allowed; {count} left out)"
            shown.append(Shown(thread.left_out[0].number, why))
        room = self._room(thread, self.limits.max_join_tokens)
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

    def _fitted(self, use: ToolUse, room: int) -> ToolUse:
        """A tool call whose result the model reads in at most ``room`` tokens."""
        backend = self.mind.backend
        shown = shortened(use.text, room, count=backend.count, tail=backend.tail)
        return use if shown == use.text else use.model_copy(update={"shown": shown})

    def _room(self, thread: Thread, most: int, *, parts: int = 1) -> int:
        """Tokens that each of some parts may add, and all of them half of what the context has
        left at most.
        """
        calls = [step for step in thread.steps if isinstance(step, Call)]
        longest = self.mind.backend.context_length
        if longest is None or not calls or not parts:
            return most
        left = longest - calls[-1].prompt_tokens - calls[-1].tokens
        return max(1, min(most, left // 2 // parts))

    def _speech(self, thread: Thread) -> Speech:
        return self.host if self.host is not None and thread.is_root else self.mind.says

    def _conclusion(self, thread: Thread) -> str:
        if thread.is_root:
            return self._answer(thread) or ""
        return self.mind.conclusion(thread)

    def _answer(self, thread: Thread) -> str | None:
        return self.mind.answer(thread) if self.strategy is None else thread.concluded


async def _hear(
    deltas: AsyncGenerator[Delta, None],
    output: Output,
    thread: Thread,
    admitted: float,
    emit: Emit,
) -> None:
    async for text, tokens, prompt_tokens, ended, cached, logprob, _ in deltas:
        if cached is not None:
            output.cached_tokens = (output.cached_tokens or 0) + cached
        if logprob is not None:
            output.logprob = (output.logprob or 0.0) + logprob
        output.text += text
        output.tokens += tokens
        output.prompt_tokens += prompt_tokens
        output.ended = ended
        if text or tokens:
            at = thread.clock()
            if output.first_token is None:
                output.first_token = max(0.0, at - admitted)
            tell(emit, thread, "token", at, text=text, tokens=tokens)


def _raised(policy: str, error: Exception) -> str:
    return f"the {policy} raised {type(error).__name__}: {error}"


def _is_cancelled() -> bool:
    """Whether this task is what is cancelled, rather than something that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _end(thread: Thread, status: ThreadStatus, reason: str | None = None) -> None:
    thread.status, thread.reason = status, reason
