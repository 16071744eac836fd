"""A model for the command line that needs no training: scripted, or random weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import apr_agents.backends
from apr_agents.backends.base import Request
from apr_agents.backends.scripted import Reply, ScriptedBackend
from apr_agents.cli import app

OUTLINES = "<Parallel>\n<Outlines>\n<Outline>1: a</Outline>\n<Outline>2: b</Outline>\n</Outlines>"


def splits_and_says_7(request: Request) -> str:
    if request.prompt.endswith(("<Thread>\n1:", "<Thread>\n2:")):
        return " 3</Thread>"
    if "Threads: 0" not in request.prompt and "<Outlines>" not in request.prompt:
        return OUTLINES
    return "\n</Parallel>\n3+4=7\n</think>\n7"


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ScriptedBackend]:
    """Let every model string lead to a scripted model; returns it."""

    def put(script: Callable[[Request], Reply | str] = splits_and_says_7) -> ScriptedBackend:
        backend = ScriptedBackend(script)
        monkeypatch.setattr(apr_agents.backends, "_load", lambda model: backend)
        return backend

    return put


@pytest.fixture
def run() -> Callable[..., object]:
    """Run the command with these arguments."""
    return lambda *arguments: CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A local model with random weights and a short context: it answers nothing, quickly."""
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    from apr_agents.training.tokenizer import build_tokenizer

    directory = tmp_path_factory.mktemp("untrained")
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=1, max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return f"local:{Path(directory)}"
