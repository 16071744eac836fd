"""Parallel reasoning as tools, for any LangChain agent: spawn threads, read their transcripts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Unpack

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.prebuilt import ToolRuntime
from pydantic import Field

from apr_agents.backends import resolve
from apr_agents.backends.base import Backend
from apr_agents.graph.build import ThreadOptions, block_graph, create_runner
from apr_agents.graph.chat import artifact
from apr_agents.graph.runner import Runner
from apr_agents.graph.state import Thread
from apr_agents.protocols.threadweaver import ThreadWeaver
from apr_agents.protocols.tool_calls import (
    RECALL,
    SPAWN,
    JoinName,
    Outlines,
    SpawnArgs,
    Threads,
    spawn_description,
)
from apr_agents.types import Block, ThreadResult

SLICE = 4000
"""Characters of a transcript that one recall returns."""


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
        UnknownModel, MissingExtra, InvalidOption: as `create_parallel_agent`.
    """
    if not isinstance(model, BaseChatModel):
        backend = resolve(model)
        if isinstance(backend, Backend):
            options.setdefault("protocol", ThreadWeaver(visibility="isolated"))
    runner = create_runner(model, tools, **options)
    block = block_graph(runner)
    # Else the block would be listed beside its threads, under the name of the agent around it.
    unnamed: RunnableConfig = {"metadata": {"lc_agent_name": None}}

    async def arun(
        outlines: Outlines,
        join: JoinName = "all",
        k: Threads = 1,
        runtime: ToolRuntime = None,  # type: ignore[assignment]  # absent outside an agent
    ) -> tuple[str, dict[str, Any]]:
        asked = _ask(runner, SpawnArgs(outlines=outlines, join=join, k=k), runtime)
        return _answer(await block.ainvoke(asked, unnamed))

    def run(
        outlines: Outlines,
        join: JoinName = "all",
        k: Threads = 1,
        runtime: ToolRuntime = None,  # type: ignore[assignment]  # absent outside an agent
    ) -> tuple[str, dict[str, Any]]:
        asked = _ask(runner, SpawnArgs(outlines=outlines, join=join, k=k), runtime)
        return _answer(block.invoke(asked, unnamed))

    return StructuredTool.from_function(
        run,
        arun,
        name=SPAWN,
        description=spawn_description(runner.mind.says.visibility, runner.budget),
        response_format="content_and_artifact",
        handle_tool_error=True,
        handle_validation_error=True,
    )


def recall_tool() -> BaseTool:
    """The tool ``recall_thread``: reads a finished thread's full transcript, in slices.

    It finds the threads of every join in the agent's messages, whichever way they were
    spawned.
    """

    def run(
        thread_id: str,
        start: Annotated[int, Field(ge=0, description="Character to start at.")] = 0,
        runtime: ToolRuntime = None,  # type: ignore[assignment]  # absent outside an agent
    ) -> str:
        """Read the full transcript of a finished thread, such as 0.2: what it did and found."""
        threads = {
            thread.id: thread for result in _results(_messages(runtime)) for thread in result.walk()
        }
        if thread_id not in threads:
            return f"There is no thread {thread_id}, only: {', '.join(threads) or 'none'}."
        text = threads[thread_id].transcript
        end = min(len(text), start + SLICE)
        more = f" Go on with start={end}." if end < len(text) else ""
        return f"[{thread_id}, characters {start}-{end} of {len(text)}.{more}]\n{text[start:end]}"

    return StructuredTool.from_function(run, name=RECALL)


def _messages(runtime: ToolRuntime | None) -> list[AnyMessage]:
    """The messages of the agent around a tool; none outside an agent."""
    state = runtime.state if runtime is not None else None
    return list(state.get("messages", [])) if isinstance(state, dict) else []


def _ask(runner: Runner, asked: SpawnArgs, runtime: ToolRuntime | None) -> dict[str, Any]:
    """The agent around the tool as a root that asks for a block."""
    call_id = (runtime.tool_call_id if runtime is not None else None) or ""
    messages = _messages(runtime)
    calling = [i for i, message in enumerate(messages) if _number(message, call_id) is not None]
    messages = messages[: calling[-1] + 1] if calling else messages
    thread = runner.start(messages or [HumanMessage("(no conversation)")])
    results = _results(messages)
    asked_last = max((i for i, m in enumerate(messages) if isinstance(m, HumanMessage)), default=0)
    spent = _results(messages[asked_last:])
    earlier = _asked_before(messages[-1], call_id) if messages else 0
    thread.children = len(results) + earlier
    thread.allowance = thread.allowance.less(
        tokens=sum(result.tokens for result in spent),
        threads=sum(1 for result in spent for _ in result.walk()) + earlier,
    )
    return {"thread": thread.model_dump(), "spawn": asked.spawn(call_id)._asdict()}


def _answer(output: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """What the agent reads, and the results in full."""
    step = Thread.model_validate(output["thread"]).steps[-1]
    if isinstance(step, Block):
        return step.joined, artifact(step.threads)
    return step.context, artifact([])


def _results(messages: Sequence[AnyMessage]) -> list[ThreadResult]:
    """The results of all joins in ``messages``."""
    artifacts = (m.artifact for m in messages if isinstance(m, ToolMessage) and m.name == SPAWN)
    return [
        ThreadResult.model_validate(thread)
        for found in artifacts
        if isinstance(found, dict)
        for thread in found.get("threads", [])
    ]


def _number(message: AnyMessage, call_id: str) -> int | None:
    """Which of the message's calls has this id."""
    calls = message.tool_calls if isinstance(message, AIMessage) else []
    return next((i for i, call in enumerate(calls) if call["id"] == call_id), None)


def _asked_before(message: AnyMessage, call_id: str) -> int:
    """Threads that the message's calls before this one ask for: those run at the same time."""
    number = _number(message, call_id)
    if number is None:
        return 0
    assert isinstance(message, AIMessage)
    before = [call["args"] for call in message.tool_calls[:number] if call["name"] == SPAWN]
    return sum(len(args["outlines"]) for args in before if isinstance(args.get("outlines"), list))
