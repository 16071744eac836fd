"""The same model at a temperature that is too high for it: one sample, and what helps."""

from typing import Any

from langchain_core.messages import HumanMessage

from apr_agents import BestOfN, Limits, SelfConsistency, Strategy, create_parallel_agent

QUESTION = "((((((12*7)+5)-2)+61)-17)*3)+((((45-38)*6)+9)*4)"
SAMPLES = 12


def run(strategy: Strategy) -> dict[str, Any]:
    agent = create_parallel_agent(
        "bundled",
        strategy=strategy,
        temperature=2.0,
        limits=Limits(max_threads=SAMPLES, max_concurrency=SAMPLES),
    )
    output: dict[str, Any] = agent.invoke({"messages": [HumanMessage(QUESTION)]})
    return output


def main() -> None:
    for name, strategy in {
        "one sample": SelfConsistency(n=1),
        "the vote": SelfConsistency(n=SAMPLES),
        "the likeliest": BestOfN(n=SAMPLES, score="logprob"),
    }.items():
        output = run(strategy)
        (block,) = output["trajectory"]["root"]["steps"]
        samples = [t["conclusion"] for t in block["threads"] if t["status"] == "done"]
        print(f"{name}: {output['messages'][-1].text}, of {', '.join(samples)}")


if __name__ == "__main__":
    main()
