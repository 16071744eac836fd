"""LangGraph's own server finds the graphs of langgraph.json and runs them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("langgraph_api")

ROOT = Path(__file__).parents[1]
COMMAND = Path(sys.executable).with_name("langgraph")
SECONDS_TO_START = 180

WIDE = "((((12*7)+5)-2)*3)+((((45-38)*6)+9)*4)+((((81-17)+23)*2)-60)"
ANSWER = "579"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The server of ``langgraph dev``, from its start to its end in a folder of its own."""
    folder = tmp_path_factory.mktemp("served")  # it keeps conversations where it is started
    for name in ("langgraph.json", "graphs", "tools"):
        (folder / name).symlink_to(ROOT / name)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--no-browser", "--no-reload", "--host", "127.0.0.1", "--port", str(port)]
    log = folder / "log"
    with log.open("w") as written:
        process = subprocess.Popen(
            [COMMAND, "dev", *options],
            cwd=folder,
            env=offline(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=written,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=address, trust_env=False, timeout=120) as client:
            wait_for(client, process, log)
            yield client
    finally:
        stop(process)


def offline(environment: os._Environ[str]) -> dict[str, str]:
    """An environment in which nothing is told to anybody and no model is named."""
    told = ("APR_", "LANGSMITH_", "LANGCHAIN_", "LANGGRAPH_")
    kept = {name: value for name, value in environment.items() if not name.startswith(told)}
    return kept | {"LANGSMITH_TRACING": "false", "LANGGRAPH_CLI_NO_ANALYTICS": "1"}


def wait_for(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            if client.get("/ok", timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    pytest.fail(log.read_text())


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and whatever it started."""
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def question(graph: str, text: str, **options: Any) -> dict[str, Any]:
    return {"assistant_id": graph, "input": {"messages": [("user", text)]}, **options}


def events(stream: str, kind: str) -> list[dict[str, Any]]:
    """The events of one kind, those of subgraphs too, in a stream of server-sent events."""
    found = re.findall(r"^event: (\w+).*\r?\ndata: (.*)\r?$", stream, re.MULTILINE)
    return [json.loads(data) for name, data in found if name == kind]


def test_it_lists_the_graphs_of_langgraph_json(server: httpx.Client) -> None:
    found = server.post("/assistants/search", json={}).raise_for_status().json()

    named = json.loads((ROOT / "langgraph.json").read_text())["graphs"]
    assert {assistant["graph_id"] for assistant in found} == set(named)


def test_a_question_is_answered_and_its_threads_are_streamed(server: httpx.Client) -> None:
    asked = question("adaptive", WIDE, stream_mode=["custom", "values"], stream_subgraphs=True)
    stream = server.post("/runs/stream", json=asked).raise_for_status().text

    assert not events(stream, "error")
    assert events(stream, "values")[-1]["messages"][-1]["content"] == ANSWER
    custom = events(stream, "custom")
    (spawned,) = (event["threads"] for event in custom if event["type"] == "spawned")
    assert len(spawned) >= 2
    for happens in ("started", "token", "finished"):
        ids = {event["id"] for event in custom if event["type"] == happens}
        assert ids == {"0", *spawned}


def test_a_conversation_goes_on_where_the_server_keeps_it(server: httpx.Client) -> None:
    thread = server.post("/threads", json={}).raise_for_status().json()["thread_id"]
    answers = []
    for text in (WIDE, "25+42"):
        asked = question("adaptive", text)
        output = server.post(f"/threads/{thread}/runs/wait", json=asked).raise_for_status().json()
        answers.append(output["messages"][-1]["content"])
    state = server.get(f"/threads/{thread}/state").raise_for_status().json()

    assert answers == [ANSWER, "67"]
    said = [message["content"] for message in state["values"]["messages"]]
    assert said == [WIDE, ANSWER, "25+42", "67"]


@pytest.mark.parametrize(
    ("graph", "answer"),
    [
        ("react_parallel", "67"),
        ("research_over_files", "Set APR_MODEL to"),
        ("tree_of_thoughts", "Set APR_MODEL to"),
    ],
)
def test_the_other_graphs_answer_without_a_model_of_their_own(
    server: httpx.Client, graph: str, answer: str
) -> None:
    output = server.post("/runs/wait", json=question(graph, "25+42")).raise_for_status().json()

    assert output["messages"][-1]["content"].startswith(answer)
