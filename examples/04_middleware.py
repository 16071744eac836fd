"""A ReAct agent that exists already gets threads: one more line, its middleware."""

import re

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from stand_in import StandIn, call

from apr_agents import ParallelReasoningMiddleware


def euros(cents: int) -> str:
    """Write an amount of cents in euros."""
    return f"{cents / 100:.2f} euros"


def rule(messages: list[BaseMessage]) -> AIMessage:
    """What a model would decide: a thread for each bill, then the agent's own tool."""
    last = messages[-1]
    if isinstance(last, HumanMessage):
        return call("spawn_threads", outlines=re.findall(r"[(\d][-+*()\d]+", last.text))
    if last.name == "spawn_threads":
        return call("euros", cents=int(last.text.split()[-1]))
    return AIMessage(f"All together {last.text}.")


def main() -> None:
    agent = create_agent(
        model=StandIn(rule=rule),  # a real one: "openai:gpt-5"
        tools=[euros],
        middleware=[ParallelReasoningMiddleware("bundled", merge="sum")],
    )
    question = "Three bills, in cents: (12*7)+5, ((45-38)*6)+9 and (9*9)-14. How much is that?"
    output = agent.invoke({"messages": [HumanMessage(question)]})
    for message in output["messages"]:
        for asked in getattr(message, "tool_calls", []):
            print(f"call: {asked['name']} {asked['args']}")
        if message.text:
            print(f"{message.type}: {message.text}")


if __name__ == "__main__":
    main()
