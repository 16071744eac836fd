"""Running the tools that threads call. Knows LangGraph's tool node; never threads."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.errors import GraphBubbleUp
from langgraph.prebuilt import ToolNode
from langgraph.types import Command

from apr_agents.graph.chat import ChatMind
from apr_agents.graph.mind import sound
from apr_agents.graph.state import Thread
from apr_agents.graph.tracing import marks
from apr_agents.types import ToolCall, ToolUse


class Toolbox:
    """The tools of an agent, with everything LangGraph injects into them."""

    def __init__(self, mind: ChatMind) -> None:
        self._mind = mind
        self._node = ToolNode(list(mind.tools.values()), handle_tool_errors=True)

    async def use(
        self, thread: Thread, call: ToolCall, config: RunnableConfig | None, *, durable: bool
    ) -> ToolUse:
        """Make one call of ``thread``. What goes wrong in the tool becomes its text.

        A tool that asks for the state gets the thread's messages; their joins carry the full
        results of the threads.

        Args:
            durable: whether an interrupt can be answered; where it cannot, it fails the call.

        Raises:
            GraphBubbleUp: the tool interrupts the run.
        """
        started = thread.clock()
        asked: dict[str, Any] = {
            "__type": "tool_call_with_context",
            "tool_call": {"type": "tool_call", **call._asdict()},
            "state": {"messages": self._mind.messages(thread, artifacts=True)},
        }
        failed = False
        try:
            marked: RunnableConfig = {**(config or {}), **marks(config, thread.id)}
            text, failed = _text(await self._node.ainvoke(asked, marked), call)
        except GraphBubbleUp:
            if durable:
                raise
            text, failed = "It asked for a human, but nothing is saved here to wait with.", True
        except Exception as error:
            text, failed = f"{type(error).__name__}: {error}", True
        seconds = thread.clock() - started
        return ToolUse(call=call, text=sound(text), failed=failed, started=started, seconds=seconds)


def _text(returned: Any, call: ToolCall) -> tuple[str, bool]:
    """What the model reads of a tool's return, and whether that is an error."""
    if isinstance(returned, dict):
        returned = returned.get("messages", [])
    texts = []
    for item in returned if isinstance(returned, list) else [returned]:
        update = item.update if isinstance(item, Command) else {"messages": [item]}
        found = update.get("messages", []) if isinstance(update, dict) else []
        texts += [message for message in found if isinstance(message, ToolMessage)]
    failed = any(message.status == "error" for message in texts)
    return "\n".join(message.text for message in texts), failed
