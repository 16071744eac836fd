"""What `bench engine` measures: the same workload, whichever way the engine is asked."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner, Result

from apr_agents.bench import smollm2
from apr_agents.bench.engine import (
    INSTALLED,
    EngineCase,
    EngineName,
    EngineRow,
    Transport,
    cases,
    measure,
)
from apr_agents.bench.plot import draw
from apr_agents.bench.servers import Started
from apr_agents.cli import app
from apr_agents.errors import BackendFailed, UnusableFile
from tests.server.harness import byte_tokenizer, random_model

PROMISED = [
    "engine", "transport", "n", "dtype", "total_seconds", "generated_tokens",
    "prefilled_tokens", "unique_tokens",
]  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    tokenizer = byte_tokenizer()
    random_model(tokenizer).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def case(tiny: Path, engine: EngineName, transport: Transport) -> EngineCase:
    return EngineCase(
        engine=engine, transport=transport, n=2, dtype="float32", directory=str(tiny), threads=1
    )


def engine_command(*arguments: object) -> Result:
    arguments = ("bench", "engine", *arguments)
    return CliRunner(env={"COLUMNS": "80"}).invoke(app, [str(each) for each in arguments])


@pytest.mark.parametrize(
    ("engine", "transport"),
    [
        (EngineName.apr, Transport.in_process),
        (EngineName.apr, Transport.http),
        (EngineName.hf_batched, Transport.in_process),
        (EngineName.hf_sequential, Transport.in_process),
    ],
)
def test_a_fork_and_a_join_are_measured_whole(
    tiny: Path, engine: EngineName, transport: Transport
) -> None:
    row = measure(case(tiny, engine, transport))
    assert list(asdict(row)) == PROMISED
    assert (row.engine, row.transport, row.n, row.dtype) == (engine, transport, 2, "float32")
    assert row.generated_tokens == 3 * 64
    assert row.unique_tokens == 800 + 2 * 30 + 2 * 8
    assert row.total_seconds > 0
    assert row.prefilled_tokens is not None
    if engine == EngineName.apr:
        assert row.prefilled_tokens <= 1.05 * row.unique_tokens
    else:
        assert row.prefilled_tokens == 2 * 830 + 816


def test_every_engine_is_asked_in_every_way_it_can_be() -> None:
    made = cases([*EngineName], [1, 8], dtype="bfloat16", directory="m", threads=1)
    ways = [(each.engine.value, each.transport.value) for each in made if each.n == 8]
    assert ways == [
        ("apr", "in_process"),
        ("apr", "http"),
        ("transformers_cb", "in_process"),
        ("hf_batched", "in_process"),
        ("hf_sequential", "in_process"),
        ("xllamacpp", "http"),
        ("vllm", "http"),
    ]
    assert len(made) == 14
    assert set(INSTALLED) >= {*EngineName} - {EngineName.vllm}


class Sleeper(Started):
    """Never answers."""

    computed = ""

    def __init__(self, code: str, tiny: Path) -> None:
        super().__init__([sys.executable, "-c", code], tiny)


def test_a_server_that_ends_before_it_answers_is_not_waited_for(tiny: Path) -> None:
    with pytest.raises(BackendFailed, match="did not start"):
        Sleeper("raise SystemExit(3)", tiny)


def test_a_server_ends_with_the_process_that_started_it() -> None:
    code = (
        "import subprocess, sys, time\n"
        "from apr_agents.bench.servers import WATCHED\n"
        "sleep = [sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(600)']\n"
        "command = [sys.executable, '-c', WATCHED, *sleep]\n"
        "watched = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "watched.stdout.readline()\n"
        "print(watched.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        watcher = psutil.Process(int(process.stdout.readline()))
        (server,) = watcher.children()
        process.kill()
    assert not psutil.wait_procs([watcher, server], timeout=30)[1]


@pytest.fixture
def rows() -> list[EngineRow]:
    return [
        EngineRow(
            engine=engine,
            transport=Transport.http,
            n=n,
            dtype="bfloat16",
            total_seconds=n + 1.0,
            generated_tokens=1,
            prefilled_tokens=None,
            unique_tokens=1,
        )
        for engine in (EngineName.apr, EngineName.vllm)
        for n in (8, 1)
    ]


def test_rows_become_a_picture(rows: list[EngineRow], tmp_path: Path) -> None:
    draw(rows, tmp_path / "engines.svg")
    drawn = (tmp_path / "engines.svg").read_text()
    assert drawn.startswith("<?xml")
    for wrong in (tmp_path / "no" / "engines.svg", tmp_path / "engines.docx"):
        with pytest.raises(UnusableFile):
            draw(rows, wrong)


def test_the_model_is_the_one_that_is_made_or_one_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert smollm2.directory() == tmp_path / "cache" / "apr-agents" / "smollm2"
    smollm2.MADE.mkdir(parents=True)
    (smollm2.MADE / "model.safetensors").touch()
    assert smollm2.directory() == smollm2.MADE
    smollm2.fetch(smollm2.MADE)  # nothing to do
    assert len([*smollm2.MADE.iterdir()]) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "/no/such/place"], "no directory of a model"),
        (["--engines", "apr,nonsense"], "--engines"),
        (["--dtype", "int3"], "--dtype"),
        (["--n", "0"], "--n"),
        (["--json", "/no/such/place/file.json"], "/no/such/place/file.json"),
        (["--plot", "/no/such/place/file.png"], "/no/such/place/file.png"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is(
    arguments: list[str], said: str
) -> None:
    done = engine_command(*arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
