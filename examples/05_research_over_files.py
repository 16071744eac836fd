"""Research over a folder: one thread reads each file, and none fills the context of another."""

import re
import runpy
from pathlib import Path
from tempfile import TemporaryDirectory

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from stand_in import StandIn, call

from apr_agents import Trajectory, create_parallel_agent

TOOLS = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "files.py"))

NOTES = {
    "monday.md": "Ana: the tests are green.\nDecided: the launch is on 3 May.\n",
    "tuesday.md": "Bo found a leak in the cache.\nDecided: the launch moves to 10 May.\n",
    "wednesday.md": "Lunch was late.\n",
    "thursday.md": "The leak is fixed.\nDecided: the launch is at 9:00, not at noon.\n",
}


def rule(messages: list[BaseMessage]) -> AIMessage:
    """What a model would decide: find the files, have each read, put the results together."""
    asked, last = messages[0], messages[-1]
    if file := re.match(r"Read (.+):", asked.text):  # in a thread
        if last is asked:
            return call("read_file", path=file[1])
        decided = re.findall(r"Decided: (.*)", last.text)
        return AIMessage(f"{file[1]} says: {' '.join(decided)}")
    if last is asked:
        return call("search_files", pattern="launch")
    if last.name == "search_files":
        files = dict.fromkeys(line.partition(":")[0] for line in last.text.splitlines())
        return call("spawn_threads", outlines=[f"Read {f}: what was decided?" for f in files])
    return AIMessage(last.text)


def main() -> None:
    with TemporaryDirectory() as folder:
        for name, text in NOTES.items():
            Path(folder, name).write_text(text)
        agent = create_parallel_agent(
            StandIn(rule=rule),  # a real one: "openai:gpt-5"
            tools=TOOLS["file_tools"](folder),
        )
        output = agent.invoke({"messages": [HumanMessage("When is the launch?")]})

    print(output["messages"][-1].text)
    for thread in Trajectory.model_validate(output["trajectory"]).threads().values():
        uses = [step.call for step in thread.steps if step.kind == "tool"]
        print(f"thread {thread.id}: {', '.join(f'{use.name} {use.args}' for use in uses)}")


if __name__ == "__main__":
    main()
