"""Follow the threads from an async application while they run."""

import asyncio

from langchain_core.messages import HumanMessage

from apr_agents import Event, create_parallel_agent

QUESTION = (
    "((((((12*7)+5)-2)+61)-17)*3)+((((45-38)*6)+9)*4)"
    "+((((((81-17)+23)*2)-60)+8)*2)+((((((9*9)-14)+55)-31)*2)-9)"
)


def show(event: Event) -> None:
    if event["type"] == "spawned":
        print(f"{event['id']} splits into {', '.join(event['threads'])}")
    elif event["type"] == "started" and event["text"]:  # the root has no subtask
        print(f"{event['id']} starts {event['text']}")
    elif event["type"] == "finished":
        print(f"{event['id']} is {event['status']} after {event['tokens']} tokens: {event['text']}")


async def main() -> None:
    agent = create_parallel_agent("bundled")
    events = agent.astream(
        {"messages": [HumanMessage(QUESTION)]},
        stream_mode="custom",
        subgraphs=True,  # or the threads' own events stay out: they run in subgraphs
        version="v2",
    )
    async for part in events:
        if part["type"] == "custom":
            show(part["data"])


if __name__ == "__main__":
    asyncio.run(main())
