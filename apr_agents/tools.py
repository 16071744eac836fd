"""Parallel reasoning as tools, for any LangChain agent: spawn threads, read their transcripts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Unpack

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, StructuredTool, ToolException
from langgraph.prebuilt import ToolRuntime
from pydantic import Field, ValidationError

from apr_agents.backends import resolve
from apr_agents.backends.base import Backend
from apr_agents.errors import InvalidOption
from apr_agents.graph.build import ThreadOptions, block_graph, create_runner
from apr_agents.graph.chat import artifact
from apr_agents.graph.runner import Runner
from apr_agents.graph.state import Thread
from apr_agents.limits import Allowance
from apr_agents.protocols import resolve_protocol
from apr_agents.protocols.threadweaver import ThreadWeaver
from apr_agents.protocols.tool_calls import (
    EMPTY,
    RECALL,
    SPAWN,
    JoinName,
    Outlines,
    SpawnArgs,
    Threads,
    ToolCalls,
    correction,
    spawn_description,
    unreadable,
)
from apr_agents.types import Block, ThreadResult

SLICE = 4000
"""Characters of a transcript that one recall returns."""

LISTED = 20
"""Ids of threads that recall lists when it is asked for one that is not there."""


def spawn_tool(
    model: str | Backend | BaseChatModel,
    tools: Sequence[BaseTool | Callable[..., Any]] = (),
    **options: Unpack[ThreadOptions],
) -> BaseTool:
    """The tool ``spawn_threads``: runs threads at once and returns what they came to.

    It works in every agent that calls tools: ``create_agent``, a ``ToolNode``, a graph of one's
    own. Its message carries the full results as its artifact, where `recall_tool` finds
    them. In an agent's state, limits hold for all calls since the last human message
    together, and thread ids count on.

    Args:
        model: of the threads, as for `create_parallel_agent`.
        tools: what the threads may call.
        options: as for `create_parallel_agent`. A thread of a model that continues text is
            asked its outline as if that were the question.

    Raises:
        UnknownModel, ModelNotReady, MissingExtra, InvalidOption: as `create_parallel_agent`.
    """
    runner = _runner(model, tools, options)
    block = block_graph(runner)
    # Else the block would be listed beside its threads, under the name of the agent around it.
    unnamed: RunnableConfig = {"metadata": {"lc_agent_name": None}}

    async def arun(
        outlines: Outlines,
        join: JoinName | None = None,
        k: Threads = 1,
        runtime: ToolRuntime[Any, Any] = None,  # type: ignore[assignment]  # absent outside an agent
    ) -> tuple[str, dict[str, Any]]:
        asked = _ask(runner, SpawnArgs(outlines=outlines, join=join, k=k), runtime)
        return _answer(await block.ainvoke(asked, unnamed))

    def run(
        outlines: Outlines,
        join: JoinName | None = None,
        k: Threads = 1,
        runtime: ToolRuntime[Any, Any] = None,  # type: ignore[assignment]  # absent outside an agent
    ) -> tuple[str, dict[str, Any]]:
        asked = _ask(runner, SpawnArgs(outlines=outlines, join=join, k=k), runtime)
        return _answer(block.invoke(asked, unnamed))

    most = Allowance.of(runner.limits).block_size(runner.limits)
    return StructuredTool.from_function(
        run,
        arun,
        name=SPAWN,
        description=spawn_description(runner.mind.says.visibility, most),
        response_format="content_and_artifact",
        handle_tool_error=True,
        handle_validation_error=_corrected,
    )


def recall_tool() -> BaseTool:
    """The tool ``recall_thread``: reads a finished thread's full transcript, in slices.

    It finds the threads of every join in the agent's messages, whichever way they were
    spawned.
    """

    def run(
        thread_id: str,
        start: Annotated[int, Field(ge=0, description="Character to start at.")] = 0,
        runtime: ToolRuntime[Any, Any] = None,  # type: ignore[assignment]  # absent outside an agent
    ) -> str:
        """Read the full transcript of a finished thread, such as 0.2: what it did and found."""
        results = (result for message in _messages(runtime) for result in _join(message))
        threads = {thread.id: thread for result in results for thread in result.walk()}
        thread = threads.get(thread_id.strip(" []"))
        if thread is None:
            more = [f"… {len(threads)} in all"] if len(threads) > LISTED else []
            there = ", ".join([*list(threads)[:LISTED], *more]) or "none"
            raise ToolException(f"There is no thread {thread_id}, only: {there}.")
        text = thread.transcript
        if start >= len(text) > 0:
            raise ToolException(f"Thread {thread.id} has {len(text)} characters only.")
        end = min(len(text), start + SLICE)
        more_at = f" Go on with start={end}." if end < len(text) else ""
        shown = f"[{thread.id}, characters {start}-{end} of {len(text)}.{more_at}]"
        return f"{shown}\n{text[start:end]}"

    return StructuredTool.from_function(
        run,
        name=RECALL,
        handle_tool_error=True,
        handle_validation_error=f'{RECALL} takes {{"thread_id": "0.2"}} and start, from 0 up.',
    )


def _runner(
    model: str | Backend | BaseChatModel,
    tools: Sequence[BaseTool | Callable[..., Any]],
    options: ThreadOptions,
) -> Runner:
    if isinstance(model, BaseChatModel) or not isinstance(resolve(model), Backend):
        return create_runner(model, tools, **options)
    protocol = resolve_protocol(options.get("protocol")) or ThreadWeaver("isolated")
    if protocol.visibility != "isolated":
        takes = "'isolated': the agent has no text that its threads could go on with"
        raise InvalidOption("visibility", protocol.visibility, takes)
    if options.get("parent_lane"):
        takes = "left out for a model that continues text: it cannot go on for the agent"
        raise InvalidOption("parent_lane", True, takes)
    isolated: ThreadOptions = {**options, "protocol": protocol}
    return replace(create_runner(model, tools, **isolated), host=ToolCalls())


def _ask(runner: Runner, asked: SpawnArgs, runtime: ToolRuntime[Any, Any] | None) -> dict[str, Any]:
    """The agent around the tool as a root that asks for a block.

    Raises:
        ToolException: it asks for nothing.
    """
    call_id = (runtime.tool_call_id if runtime is not None else None) or ""
    spawn = asked.spawn(call_id)
    if not spawn.outlines:
        raise ToolException(correction(EMPTY))
    messages, own, sizes = _asking(_messages(runtime), call_id)
    sizes[own] = len(spawn.outlines)
    sizes = [min(size, runner.limits.block_size(None)) for size in sizes]
    thread = runner.start(_seen(runner, messages))
    lanes = own if runner.parent_lane else 0
    thread.children = sum(len(_join(message)) for message in messages) + sum(sizes[:own]) + lanes
    thread.allowance = _share(_left(thread.allowance, messages), sizes, own)
    # Plain data, for a run that is saved.
    outlines = [tuple(outline) for outline in spawn.outlines]
    return {"thread": thread.to_data(), "spawn": {**spawn._asdict(), "outlines": outlines}}


def _answer(output: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """What the agent reads, and the results in full."""
    step = Thread.of(output["thread"]).steps[-1]
    if isinstance(step, Block):
        return step.joined, artifact(step.threads)
    return step.context, artifact([])


def _corrected(error: Any) -> str:
    """What a model reads whose arguments do not fit."""
    return correction(unreadable(error) if isinstance(error, ValidationError) else str(error))


# --- the conversation around a tool ----------------------------------------------------


def _messages(runtime: ToolRuntime[Any, Any] | None) -> list[AnyMessage]:
    """The messages of the agent around a tool; none outside an agent."""
    state = runtime.state if runtime is not None else []
    if isinstance(state, dict):
        return list(state.get("messages", []))
    return list(state if isinstance(state, list) else getattr(state, "messages", []))


def _asking(messages: list[AnyMessage], call_id: str) -> tuple[list[AnyMessage], int, list[int]]:
    """The messages up to the one with the call; which of its spawn calls this is, and how many
    threads each asks for. They run at the same time.
    """
    for end in range(len(messages), 0, -1):
        message = messages[end - 1]
        calls = message.tool_calls if isinstance(message, AIMessage) else []
        spawns = [call for call in calls if call["name"] == SPAWN]
        for own, call in enumerate(spawns):
            if call["id"] == call_id:
                return messages[:end], own, [_size(each["args"]) for each in spawns]
    return [*messages, AIMessage("")], 0, [0]


def _size(args: dict[str, Any]) -> int:
    try:
        return len(SpawnArgs.model_validate(args).spawn(None).outlines)
    except ValidationError:
        return 0


def _seen(runner: Runner, messages: list[AnyMessage]) -> list[AnyMessage]:
    """What threads may see of the conversation."""
    nothing = HumanMessage("(no conversation)")
    if runner.mind.says.visibility == "isolated" and not runner.parent_lane:
        return [nothing]
    return messages if any(message.text.strip() for message in messages) else [nothing, *messages]


def _left(allowance: Allowance, messages: Sequence[AnyMessage]) -> Allowance:
    """What the blocks since the last human message have left."""
    asked = max((i for i, m in enumerate(messages) if isinstance(m, HumanMessage)), default=0)
    waited = [0.0]  # for each of the agent's messages: the blocks of one ran at the same time
    for message in messages[asked:]:
        if isinstance(message, AIMessage):
            waited.append(0.0)
        results = _join(message)
        waited[-1] = max([waited[-1], *(result.seconds for result in results)])
        allowance = allowance.less(
            tokens=sum(result.tokens for result in results),
            threads=sum(not below.is_lane for result in results for below in result.walk()),
        )
    return allowance.less(seconds=sum(waited))


def _share(allowance: Allowance, sizes: Sequence[int], own: int) -> Allowance:
    """What one of several blocks of these sizes may spend, all at the same time."""
    before, total = sum(sizes[:own]), max(1, sum(sizes))

    def part(whole: int) -> int:
        return whole * (before + sizes[own]) // total - whole * before // total

    return replace(allowance, tokens=part(allowance.tokens), threads=part(allowance.threads))


def _join(message: AnyMessage) -> list[ThreadResult]:
    """The results in full, if the message is a join."""
    found = message.artifact if isinstance(message, ToolMessage) and message.name == SPAWN else None
    threads = found.get("threads", []) if isinstance(found, dict) else []
    return [ThreadResult.model_validate(thread) for thread in threads]
