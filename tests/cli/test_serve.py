"""``apr-agents serve``, as a process of its own where it serves."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

httpx = pytest.importorskip("httpx")
openai = pytest.importorskip("openai")

COMMAND = [str(Path(sys.executable).with_name("apr-agents"))]
KEY = "a secret"


def ask_until_refused(client: openai.OpenAI) -> None:
    while True:
        client.completions.create(model="small", prompt="1+", max_tokens=1)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_it_serves_until_it_is_told_to_stop_and_lets_its_clients_finish(
    untrained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APR_API_KEY", KEY)
    process = subprocess.Popen(
        [*COMMAND, "serve", untrained, "--host", "0.0.0.0", "--port", "0", "--name", "small"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        told = process.stderr.readline()
        assert told.startswith("Serving small at http://0.0.0.0:")
        url = told.split()[-1].replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{url}/models").status_code == 401
        with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["small"]
            # So many that they cannot have ended before the signal arrives.
            options = {"model": "small", "prompt": ["1+"] * 128, "max_tokens": 60}
            stream = client.completions.create(**options, stream=True, temperature=2)
            chunks = [next(stream)]
            process.send_signal(signal.SIGTERM)
            with pytest.raises(openai.InternalServerError, match="shutting down"):
                ask_until_refused(client)
            chunks += stream
        finished = {
            choice.index for chunk in chunks for choice in chunk.choices if choice.finish_reason
        }
        assert finished == set(range(128))
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, output, errors) == (0, "", "")
    finally:
        process.kill()


def test_it_does_not_listen_to_others_without_a_key(run: Callable[..., object]) -> None:
    for host in ("0.0.0.0", "::", "example.org"):
        done = run("serve", "bundled", "--host", host)
        assert done.exit_code == 2
        assert "--host" in done.stderr
        assert "APR_API_KEY" in done.stderr


@pytest.mark.parametrize("model", ["openai:gpt-5", "local:", "nonsense", "local:/no/such/place"])
def test_what_is_no_local_model_is_one_line(run: Callable[..., object], model: str) -> None:
    done = run("serve", model, "--port", 0)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1


def test_the_bundled_model_has_one_precision(run: Callable[..., object]) -> None:
    done = run("serve", "bundled", "--dtype", "bfloat16")
    assert done.exit_code == 2
    assert "--dtype" in done.stderr


def test_a_port_that_is_taken_is_one_line(run: Callable[..., object]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("serve", "bundled", "--port", taken.getsockname()[1])
    assert done.exit_code == 2
    assert "in use" in done.stderr


def test_without_the_extra_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['fastapi'] = None\n"
        "from apr_agents.cli import app; app(['serve', 'bundled'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'apr-agents[serve]'" in done.stderr
