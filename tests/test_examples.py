"""Every example and every graph runs as it stands, without a network."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage

import apr_agents.backends

ROOT = Path(__file__).parents[1]
GRAPHS: dict[str, str] = json.loads((ROOT / "langgraph.json").read_text())["graphs"]

WIDE = str(
    ((((((12 * 7) + 5) - 2) + 61) - 17) * 3)
    + ((((45 - 38) * 6) + 9) * 4)
    + ((((((81 - 17) + 23) * 2) - 60) + 8) * 2)
    + ((((((9 * 9) - 14) + 55) - 31) * 2) - 9)
)


def run(example: str, folder: Path) -> list[str]:
    """The lines that an example prints, run from another folder in its own process."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / example)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_01_prints_the_answer_its_threads_and_its_measures(tmp_path: Path) -> None:
    lines = run("01_solve.py", tmp_path)

    assert lines[0] == f"answer: {WIDE}"
    assert lines[1].startswith("thread 0: done")
    assert sum(line.startswith("thread 0.") for line in lines) >= 2
    assert any(line.startswith("tokens in all: ") for line in lines)


def test_02_answers_inside_a_graph_that_existed_before(tmp_path: Path) -> None:
    lines = run("02_node_in_a_graph.py", tmp_path)

    assert lines == ["human: What is 25+42?", "human: 25+42", "ai: 67", "ai: 25+42 = 67"]


def test_03_shows_every_thread_start_and_finish_between_split_and_answer(tmp_path: Path) -> None:
    lines = run("03_stream_events.py", tmp_path)

    (split,) = [i for i, line in enumerate(lines) if line.startswith("0 splits into ")]
    threads = lines[split].removeprefix("0 splits into ").split(", ")
    events = [" ".join(line.split()[:2]) for line in lines[split + 1 : -1]]
    assert len(threads) >= 2
    assert sorted(events) == sorted(f"{t} {verb}" for t in threads for verb in ("starts", "is"))
    assert lines[-1].startswith("0 is done after ")
    assert lines[-1].endswith(f": {WIDE}")


def test_04_gives_an_agent_threads_beside_the_tools_it_has(tmp_path: Path) -> None:
    lines = run("04_middleware.py", tmp_path)

    total = (12 * 7 + 5) + ((45 - 38) * 6 + 9) + (9 * 9 - 14)
    outlines = ["(12*7)+5", "((45-38)*6)+9", "(9*9)-14"]
    assert lines[1:] == [
        f"call: spawn_threads {{'outlines': {outlines}}}",
        f"tool: [1] {total}",
        f"call: euros {{'cents': {total}}}",
        f"tool: {total / 100:.2f} euros",
        f"ai: All together {total / 100:.2f} euros.",
    ]


def test_05_reads_each_file_in_a_thread_of_its_own(tmp_path: Path) -> None:
    lines = run("05_research_over_files.py", tmp_path)

    assert [line.partition("] ")[2] for line in lines[:3]] == [
        "monday.md says: the launch is on 3 May.",
        "thursday.md says: the launch is at 9:00, not at noon.",
        "tuesday.md says: the launch moves to 10 May.",
    ]
    assert lines[3] == "thread 0: search_files {'pattern': 'launch'}"
    assert lines[4:] == [
        f"thread 0.{n}: read_file {{'path': '{day}.md'}}"
        for n, day in enumerate(["monday", "thursday", "tuesday"], start=1)
    ]


def test_06_sends_what_happens_and_stops_by_itself(tmp_path: Path) -> None:
    lines = run("06_stream_over_http.py", tmp_path)

    answer = (12 * 7 + 5 - 2) * 3 + ((45 - 38) * 6 + 9) * 4 + ((81 - 17 + 23) * 2 - 60)
    assert lines[:3] == ["0 started", "0 admitted", "0 spawned"]
    assert lines[-1] == f"0 finished {answer}"
    threads = {line.split()[0] for line in lines if re.match(r"0\.\d+ started", line)}
    assert threads >= {"0.1", "0.2"}
    assert threads == {line.split()[0] for line in lines if re.match(r"0\.\d+ finished", line)}


def test_06_is_served_as_its_docstring_says(tmp_path: Path) -> None:
    command = ["uvicorn", "--app-dir", str(ROOT / "examples"), "06_stream_over_http:app"]
    told = (ROOT / "examples" / "06_stream_over_http.py").read_text()
    assert "uvicorn --app-dir examples 06_stream_over_http:app" in told
    with serving([sys.executable, "-m", *command, "--port", "0"], tmp_path) as url:
        data = events(httpx.post(f"{url}/ask", json={"text": "25+42"}, timeout=60).text)
        assert [(event["type"], event["id"]) for event in data] == [
            ("started", "0"),
            ("admitted", "0"),
            ("finished", "0"),
        ]
        assert data[-1]["text"] == "67"
        assert httpx.post(f"{url}/ask", json={"txt": "25+42"}).status_code == 422


@contextmanager
def serving(command: list[str], folder: Path) -> Iterator[str]:
    """The address at which uvicorn serves as long as this is open."""
    log = folder / "log"
    with log.open("w") as written:
        server = subprocess.Popen(command, cwd=folder, stdout=written, stderr=written)
    try:
        end = time.monotonic() + 100
        while not (found := re.search(r"running on (http://[\d.:]+)", log.read_text())):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        yield found[1]
    finally:
        server.terminate()
        server.wait(timeout=30)


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(data) for data in re.findall(r"^data: (.*)\r?$", text, re.MULTILINE)]


def test_07_asks_about_all_invoices_at_once_and_pays_those_agreed_to(tmp_path: Path) -> None:
    lines = run("07_human_approval.py", tmp_path)

    assert lines == [
        "Pay acme-17? yes",
        "Pay initech-4? yes",
        "Pay umbrella-9? no",
        "[0.1] acme-17 is paid",
        "[0.2] initech-4 is paid",
        "[0.3] umbrella-9 is not paid: refused",
    ]


def test_08_counts_over_500_threads(tmp_path: Path) -> None:
    lines = run("08_map_reduce.py", tmp_path)

    assert lines[0] == f"{sum(n % 3 for n in range(1, 501))} alarms."
    assert re.fullmatch(r"500 threads, \d+\.\d s; one after another 30 s", lines[1])


def test_09_gets_from_many_samples_what_one_does_not_give(tmp_path: Path) -> None:
    alone, vote, likeliest = run("09_strategies.py", tmp_path)

    answer = (((12 * 7) + 5 - 2 + 61 - 17) * 3) + (((45 - 38) * 6 + 9) * 4)
    assert re.fullmatch(r"one sample: (\d+), of \1", alone)
    assert vote.startswith(f"the vote: {answer}, of ")
    assert likeliest.startswith(f"the likeliest: {answer}, of ")
    assert likeliest.count(",") == 12


def test_every_example_has_a_test_and_its_number_once() -> None:
    tested = {name.removeprefix("test_")[:2] for name in globals() if name.startswith("test_0")}
    numbers = [path.name[:2] for path in (ROOT / "examples").glob("[0-9]*.py")]

    assert tested == set(numbers)
    assert len(numbers) == len(set(numbers))


def load(name: str) -> Any:
    """The graph that langgraph.json calls ``name``."""
    file, _, variable = GRAPHS[name].partition(":")
    return runpy.run_path(str(ROOT / file))[variable]


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("adaptive", "67"),
        ("react_parallel", "67"),
        ("research_over_files", "Set APR_MODEL"),
        ("tree_of_thoughts", "Set APR_MODEL"),
    ],
)
def test_a_graph_answers_without_a_network(
    name: str, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("APR_MODEL", raising=False)
    output = load(name).invoke({"messages": [("user", "25+42")]})

    assert output["messages"][-1].text.startswith(answer)


@pytest.fixture
def named(
    monkeypatch: pytest.MonkeyPatch, ruled: Callable[..., Any]
) -> Iterator[Callable[..., None]]:
    """Let APR_MODEL name a model that goes by a rule."""

    def name(rule: Callable[[list[AnyMessage]], AIMessage | str]) -> None:
        monkeypatch.setenv("APR_MODEL", "acme:large")
        monkeypatch.setattr("langchain.chat_models.init_chat_model", lambda model: ruled(rule))

    apr_agents.backends._load.cache_clear()
    yield name
    apr_agents.backends._load.cache_clear()


def call(tool: str, **args: Any) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": tool, "args": args, "id": str(args)}])


async def test_react_parallel_splits_and_calculates(named: Callable[..., None]) -> None:
    def rule(messages: list[AnyMessage]) -> AIMessage | str:
        asked, last = messages[-1], messages[-1].text
        if isinstance(asked, ToolMessage):
            return last
        return (
            call("calculate", expression=last)
            if "*" in last
            else call("spawn_threads", outlines=["12*7", "9*9"])
        )

    named(rule)
    for question, answer in (("go", "[0.1] 84\n[0.2] 81"), ("3*4", "12")):
        output = await load("react_parallel").ainvoke({"messages": [HumanMessage(question)]})
        assert output["messages"][-1].text == answer


async def test_research_over_files_reads_its_folder_and_nothing_else(
    named: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rule(messages: list[AnyMessage]) -> AIMessage | str:
        asked, last = messages[1].text, messages[-1]
        if isinstance(last, ToolMessage):
            return last.text
        return (
            call("read_file", path=asked)
            if "." in asked
            else call("spawn_threads", outlines=["note.md", "../secret.md"])
        )

    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "note.md").write_text("the launch is on 3 May")
    (tmp_path / "secret.md").write_text("the password")
    monkeypatch.setenv("APR_ROOT", str(tmp_path / "root"))
    named(rule)
    output = await load("research_over_files").ainvoke({"messages": [HumanMessage("q")]})
    read, refused = output["messages"][-1].text.splitlines()
    assert read == "[0.1] the launch is on 3 May"
    assert refused.startswith("[0.2] ")
    assert "password" not in refused


def test_langgraph_json_names_every_graph() -> None:
    files = {file.partition(":")[0] for file in GRAPHS.values()}

    assert files == {f"./graphs/{path.name}" for path in (ROOT / "graphs").glob("*.py")}
