"""The engines that `engine` compares over HTTP: servers on this machine, heard token by token."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from apr_agents.bench.engines import Generator, Ids, Output
from apr_agents.errors import BackendFailed, MissingExtra

try:
    import httpx
    from httpx_sse import aconnect_sse
    from prometheus_client.parser import text_string_to_metric_families
except ImportError as error:
    raise MissingExtra("bench", error.name or "httpx") from error

PATIENCE = 600.0
"""Seconds that a server may take to start, and an answer to go on."""

WATCHED = """
import os, subprocess, sys, threading
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
def end():
    os.read(0, 1)
    server.terminate()
threading.Thread(target=end, daemon=True).start()
sys.exit(server.wait())
"""
"""A process that ends a server when its own standard input ends, as it does with our process."""


class Served(Generator):
    """A completions server.

    Args:
        url: where it is.
        directory: of the model, for its tokenizer.

    Attributes:
        computed, found: its counters of prompt tokens: those that it counts, and those among
            them that it had computed before.
    """

    computed: str
    found: str | None = None

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self._tokenizer = AutoTokenizer.from_pretrained(directory)
        self._loop = asyncio.new_event_loop()
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits)

    @property
    def prefilled(self) -> int | None:  # type: ignore[override]
        page = self._loop.run_until_complete(self._client.get("/metrics")).text
        totals: dict[str, float] = {}
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
        if self.computed not in totals:
            return None
        return int(totals[self.computed] - totals.get(self.found or "", 0.0))

    def generate(self, prompts: Sequence[Ids], tokens: int) -> list[Output]:
        async def all_of_them() -> list[Output]:
            return await asyncio.gather(*(self._one(prompt, tokens) for prompt in prompts))

        return self._loop.run_until_complete(all_of_them())

    async def _one(self, prompt: Ids, tokens: int) -> Output:
        asked = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        texts: list[str] = []
        count = 0
        async with aconnect_sse(self._client, "POST", "/v1/completions", json=asked) as answer:
            if answer.response.status_code != 200:
                raise BackendFailed((await answer.response.aread()).decode(errors="replace"))
            async for event in answer.aiter_sse():
                if event.data == "[DONE]":
                    continue  # to the end, or the connection could not be used again
                chunk = json.loads(event.data)
                texts += [choice["text"] for choice in chunk["choices"]]
                count = (chunk.get("usage") or {}).get("completion_tokens", count)
        # No ids come back. The text as the client would send it on: what a join is made of.
        return Output(count, self._tokenizer("".join(texts), add_special_tokens=False)["input_ids"])

    @property
    def model(self) -> str:
        """What the server calls its model."""
        return "bench"

    def close(self) -> None:
        self._loop.run_until_complete(self._client.aclose())
        self._loop.close()


class Started(Served):
    """A server in a process of its own.

    Args:
        command: starts it, without its port.
        settings: more variables of its environment.
    """

    def __init__(
        self, command: Sequence[str], directory: Path, settings: Mapping[str, str] | None = None
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        super().__init__(f"http://127.0.0.1:{port}", directory)
        self._process = subprocess.Popen(
            [sys.executable, "-c", WATCHED, *command, "--port", str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=os.environ | dict(settings or {}),
        )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise BackendFailed("the server did not start")
            try:
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise BackendFailed(f"the server did not start within {PATIENCE:.0f} s")

    def close(self) -> None:
        super().close()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class AprServer(Started):
    """This package's server, as its command starts it."""

    computed = "apr:prompt_tokens_computed_total"

    def __init__(self, directory: Path, dtype: str) -> None:
        serve = ["serve", f"local:{directory.absolute()}", "--name", self.model, "--dtype", dtype]
        start = "from apr_agents.cli import app; app()"
        super().__init__([sys.executable, "-c", start, *serve], directory)


class VllmServer(Started):
    """vLLM's, eager: graphs would take longer to record than the workload to run."""

    computed, found = "vllm:prompt_tokens_total", "vllm:prefix_cache_hits_total"

    def __init__(self, directory: Path, dtype: str) -> None:
        if find_spec("vllm") is None:
            raise BackendFailed("vLLM is not installed: pip install vllm")
        serve = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(directory.absolute())]
        options = ["--dtype", dtype, "--max-model-len", "2048", "--enforce-eager"]
        names = ["--served-model-name", self.model, "--host", "127.0.0.1"]
        # On a CPU: as many threads as OMP_NUM_THREADS says, and a GiB of keys and values.
        settings = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
        super().__init__([sys.executable, *serve, *options, *names], directory, settings)


class LlamaCpp(Served):
    """llama.cpp's server (xllamacpp) on the GGUF file, one slot for each prompt."""

    computed = "llamacpp:prompt_tokens_total"

    def __init__(self, directory: Path, slots: int) -> None:
        try:
            import xllamacpp
        except ImportError as error:
            raise MissingExtra("bench", "xllamacpp") from error
        file = next(directory.glob("gguf/*.gguf"), None)
        if file is None:
            raise BackendFailed(f"there is no GGUF file in {directory / 'gguf'}")
        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_parallel = slots
        params.n_ctx = 1024 * (slots + 1)
        params.kv_unified = params.cont_batching = params.endpoint_metrics = True
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
        params.hostnames, params.port = ["127.0.0.1"], 0
        self._server: Any = xllamacpp.Server(params)
        super().__init__(self._server.listening_address, directory)
