"""Solve one question with the bundled model and look at what its threads did."""

from langchain_core.messages import HumanMessage

from apr_agents import Trajectory, create_parallel_agent

QUESTION = (
    "((((((12*7)+5)-2)+61)-17)*3)+((((45-38)*6)+9)*4)"
    "+((((((81-17)+23)*2)-60)+8)*2)+((((((9*9)-14)+55)-31)*2)-9)"
)


def main() -> None:
    agent = create_parallel_agent("bundled")
    output = agent.invoke({"messages": [HumanMessage(QUESTION)]})
    trajectory = Trajectory.model_validate(output["trajectory"])

    print(f"answer: {trajectory.answer}")
    for thread in trajectory.threads().values():
        task = thread.outline.text if thread.outline else "the question"
        print(f"thread {thread.id}: {thread.status}, {thread.tokens} tokens, {task}")
    metrics = trajectory.metrics()
    print(f"tokens in all: {metrics.total_tokens}, one after another: {metrics.critical_path}")
    print(f"longest context: {metrics.peak_context} tokens")


if __name__ == "__main__":
    main()
