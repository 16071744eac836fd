"""Map and reduce: 500 documents, a thread for each, 32 at a time, and one number in the end."""

import asyncio
import time

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from stand_in import StandIn, call

from apr_agents import Limits, Trajectory, create_parallel_agent

REPORTS = {f"report {n}": "All is well. " * 50 + "Alarm! " * (n % 3) for n in range(1, 501)}


def read(name: str) -> str:
    """Read a report."""
    return REPORTS[name]


def rule(messages: list[BaseMessage]) -> AIMessage:
    """What a model would decide: a thread for each report, which reads it and counts."""
    asked, last = messages[0], messages[-1]
    if asked.text in REPORTS:  # in a thread
        return call("read", name=asked.text) if last is asked else AIMessage(count(last.text))
    if last is asked:
        return call("spawn_threads", outlines=list(REPORTS))
    return AIMessage(f"{last.text.split()[-1]} alarms.")


def count(report: str) -> str:
    return str(report.count("Alarm!"))


async def main() -> None:
    agent = create_parallel_agent(
        StandIn(rule=rule, seconds=0.03),  # a real one: "openai:gpt-5"
        tools=[read],
        merge="sum",  # the parent reads one number, not 500 results
        limits=Limits(max_threads=500, max_total_threads=500, max_concurrency=32),
    )
    started = time.perf_counter()
    output = await agent.ainvoke({"messages": [HumanMessage("How many alarms were there?")]})
    seconds = time.perf_counter() - started

    metrics = Trajectory.model_validate(output["trajectory"]).metrics()
    print(output["messages"][-1].text)
    print(f"{metrics.threads} threads, {seconds:.1f} s; one after another {500 * 2 * 0.03:.0f} s")


if __name__ == "__main__":
    asyncio.run(main())
