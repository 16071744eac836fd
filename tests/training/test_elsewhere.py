"""Runs sampled on a real server that takes new weights as SGLang does, or as vLLM does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi import FastAPI, Response
from transformers import LlamaForCausalLM

from apr_agents.engine.engine import Engine
from apr_agents.errors import BackendFailed, UnknownModel
from apr_agents.server.app import create_app
from apr_agents.server.model import Model
from apr_agents.server.serving import Server, bind
from apr_agents.training.elsewhere import Elsewhere
from apr_agents.training.pgrpo import PGRPO
from apr_agents.training.rewards import Correctness
from tests.training.test_pgrpo import config, logged
from tests.training.toy import TOKENIZER, Toy, fresh_model, undecided


class Takes:
    """A server's model, and how it takes weights."""

    def __init__(self, kind: str, model: Model, app: FastAPI) -> None:
        self.model, self.taken = model, list[str]()
        self.flushed = 0
        match kind:
            case "sglang":
                app.post("/update_weights_from_disk")(self.update)
            case "vllm":
                app.post("/collective_rpc")(self.call)
                app.post("/reset_prefix_cache")(self.flush)
            case "broken":
                app.post("/update_weights_from_disk")(self.refuse)

    def update(self, body: dict[str, Any]) -> dict[str, bool]:
        assert body["flush_cache"]
        self._load(body["model_path"])
        self.flushed += 1
        return {"success": True}

    def call(self, body: dict[str, Any]) -> dict[str, list[None]]:
        assert body["method"] == "reload_weights"
        self._load(body["kwargs"]["weights_path"])
        return {"results": [None]}

    def flush(self) -> None:
        self.flushed += 1

    def refuse(self) -> Response:
        return Response("no such folder", status_code=400)

    def _load(self, folder: str) -> None:
        loaded = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.model.engine.stop()
        object.__setattr__(self.model, "engine", Engine(loaded))  # it is frozen
        self.taken.append(folder)


@contextmanager
def serving(kind: str) -> Iterator[tuple[str, Takes]]:
    """A server of a model with other weights."""
    ends = frozenset({TOKENIZER.eos_token_id})
    model = Model("toy", Engine(fresh_model().eval()), TOKENIZER, ends)
    app = create_app(model)
    takes = Takes(kind, model, app)
    listening, started = bind("127.0.0.1", 0), threading.Event()
    server = Server(app, model, grace=30, on_start=started.set)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    try:
        assert started.wait(30)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1", takes
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize("kind", ["sglang", "vllm"])
def test_each_step_is_sampled_by_the_weights_of_the_step_before(kind: str, tmp_path: Path) -> None:
    with serving(kind) as (url, takes):
        serve = Elsewhere(url, tmp_path / "rollouts")
        asked = config(tmp_path, steps=2, problems=2, group=4)
        loop = PGRPO(undecided(), [Toy()], asked, reward=Correctness(), serve=serve)
        sampled: list[Any] = []
        sample = loop.sample
        loop.sample = lambda: sampled.append(sample()) or sampled[-1]  # type: ignore[method-assign, func-returns-value]
        loop.run()
    assert takes.taken == [str(tmp_path / "rollouts")] * 2
    assert takes.flushed == 2
    # Weights that know the task answer; those that the server had started with do not.
    assert all(row["correct"] > 0.4 and row["errors"] == 0 for row in logged(tmp_path))
    # The tokens are those of the texts, ended by the token that ends.
    for rollout in sampled[0][0]:
        assert all(pair.completion for pair in rollout.pairs)
        assert rollout.pairs[0].completion[-1] == TOKENIZER.eos_token_id or len(rollout.pairs) > 1


@pytest.mark.parametrize(
    ("kind", "said"),
    [("plain", "takes no new weights. Start SGLang"), ("broken", r"400: no such folder")],
)
def test_a_server_that_takes_no_weights_is_named(kind: str, said: str, tmp_path: Path) -> None:
    with serving(kind) as (url, _):
        serve = Elsewhere(url, tmp_path / "rollouts")
        with pytest.raises(BackendFailed, match=said):
            PGRPO(undecided(), [Toy()], config(tmp_path), serve=serve).run()


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    for source, error in (("http://127.0.0.1:9/v1", BackendFailed), ("nowhere", UnknownModel)):
        serve = Elsewhere(source, tmp_path / "rollouts")
        with pytest.raises(error, match=r"weights to http|nowhere"):
            PGRPO(undecided(), [Toy()], config(tmp_path), serve=serve).run()
