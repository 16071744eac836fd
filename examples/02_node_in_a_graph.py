"""The agent as one node of a graph over messages that exists already."""

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.graph import END, START, MessagesState, StateGraph

from apr_agents import create_parallel_agent

Update = dict[str, list[AnyMessage]]


def restate(state: MessagesState) -> Update:
    """What the user typed, as the bare sum that the agent is to solve."""
    typed = state["messages"][-1].text
    return {"messages": [HumanMessage(typed.removeprefix("What is ").removesuffix("?"))]}


def report(state: MessagesState) -> Update:
    question, answer = state["messages"][-2:]
    return {"messages": [AIMessage(f"{question.text} = {answer.text}")]}


def main() -> None:
    builder = StateGraph(MessagesState)
    builder.add_node("restate", restate)
    builder.add_node("solve", create_parallel_agent("bundled"))
    builder.add_node("report", report)
    builder.add_edge(START, "restate")
    builder.add_edge("restate", "solve")
    builder.add_edge("solve", "report")
    builder.add_edge("report", END)
    graph = builder.compile()

    output = graph.invoke({"messages": [HumanMessage("What is 25+42?")]})
    for message in output["messages"]:
        print(f"{message.type}: {message.text}")


if __name__ == "__main__":
    main()
