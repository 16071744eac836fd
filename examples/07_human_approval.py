"""Threads that need a person: their questions come all at once, each answer goes to its own."""

import re

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt
from stand_in import StandIn, call

from apr_agents import create_parallel_agent

CONFIG: RunnableConfig = {"configurable": {"thread_id": "invoices"}}


def pay(invoice: str) -> str:
    """Pay an invoice, once a person agrees."""
    agreed = interrupt(f"Pay {invoice}?")
    return f"{invoice} is paid" if agreed else f"{invoice} is not paid: refused"


def rule(messages: list[BaseMessage]) -> AIMessage:
    """What a model would decide: a thread for each invoice, and in it one payment."""
    asked, last = messages[0], messages[-1]
    if last is not asked:
        return AIMessage(last.text)
    if asked.text.startswith("Pay "):
        return call("pay", invoice=asked.text.removeprefix("Pay "))
    invoices = re.findall(r"\w+-\d+", asked.text)
    return call("spawn_threads", outlines=[f"Pay {invoice}" for invoice in invoices])


def main() -> None:
    agent = create_parallel_agent(
        StandIn(rule=rule),  # a real one: "openai:gpt-5"
        tools=[pay],
        checkpointer=InMemorySaver(),  # what waits for a person has to be saved
    )
    question = "These came in: acme-17, initech-4 and umbrella-9."
    output = agent.invoke({"messages": [HumanMessage(question)]}, CONFIG)

    answers = {}
    for asked in sorted(output["__interrupt__"], key=lambda asked: str(asked.value)):
        answers[asked.id] = "umbrella" not in asked.value  # here a person would decide
        print(f"{asked.value} {'yes' if answers[asked.id] else 'no'}")
    output = agent.invoke(Command(resume=answers), CONFIG)
    print(output["messages"][-1].text)


if __name__ == "__main__":
    main()
