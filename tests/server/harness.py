"""What the tests of the server share: a server in a thread, on a random model of bytes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
import openai
import torch
from fastapi import FastAPI
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from apr_agents.engine.engine import Engine
from apr_agents.engine.request import Constraint, Generate, Token
from apr_agents.server.app import ServerOptions, create_app
from apr_agents.server.model import Model
from apr_agents.server.serving import Server, bind
from apr_agents.tokens import Detokenizer

CONTEXT = 1024
NAME = "tiny"
SPECIAL = ["<eos>", "<pad>", "<|begin|>", "<|end|>"]
TEMPLATE = (
    "{% for message in messages %}<|begin|>{{ message.role }}\n{{ message.content }}"
    "<|end|>\n{% endfor %}<|begin|>assistant\n"
)
TOOL_TEMPLATE = (
    "{% if tools %}<|begin|>tools\n{{ tools | tojson }}<|end|>\n{% endif %}"
    "{% for message in messages %}<|begin|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls %}{{ call.function | tojson }}{% endfor %}"
    "<|end|>\n{% endfor %}<|begin|>assistant\n"
)


def byte_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token for each byte, control tokens, and a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({text: i for i, text in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens=SPECIAL[2:],
    )
    tokenizer.chat_template = template
    return tokenizer


def random_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=CONTEXT, initializer_range=0.3,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


class Script:
    """A constraint that leaves one choice each time."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = list(ids)

    def restrict(self, logits_V: Tensor) -> None:
        allowed = logits_V[self._ids[0]].item()
        logits_V.fill_(float("-inf"))
        logits_V[self._ids[0]] = allowed

    def accept(self, token: int) -> None:
        del self._ids[0]


class Scripted(Engine):
    """The engine with a say in its answers.

    Attributes:
        says: from a prompt to the text of its answer; ``None`` leaves it to the model.
        constrain: makes a constraint for every request that has no text to say.
        asked: all requests so far.
        delay: seconds before each token is told.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.tokenizer = byte_tokenizer()
        self.asked: list[Generate] = []
        self.reset()

    def submit(self, request: Generate, hear: Callable[[Token], None]) -> int:
        self.asked.append(request)
        text = self.says(self.tokenizer.decode(request.ids))
        if self.constrain is not None:
            request = replace(request, constraint=self.constrain())
        if text is not None:
            ids = self.tokenizer(text)["input_ids"]
            request = replace(request, constraint=Script([*ids, self.tokenizer.eos_token_id]))

        def later(token: Token) -> None:
            time.sleep(self.delay)
            hear(token)

        return super().submit(request, later)

    def reset(self) -> None:
        """Leave everything to the model."""
        self.says: Callable[[str], str | None] = lambda prompt: None
        self.constrain: Callable[[], Constraint] | None = None
        self.delay = 0.0
        self.asked.clear()


@dataclass
class Running:
    """A server that answers.

    Attributes:
        url: where, without ``/v1``.
        client: OpenAI's.
    """

    url: str
    app: FastAPI
    model: Model
    engine: Scripted
    client: openai.OpenAI

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(f"{self.v1}{path}", json=body, timeout=60, **options)

    def metric(self, name: str) -> float:
        page = httpx.get(f"{self.url}/metrics").text
        return next(
            float(line.rpartition(" ")[2])
            for line in page.splitlines()
            if line.rpartition(" ")[0] == name
        )

    def becomes_idle(self) -> bool:
        return wait_until(lambda: self.engine.load == (0, 0))

    def in_process(self, **request: Any) -> tuple[str, list[Token]]:
        """What the engine itself answers: its text, and its tokens."""
        heard: list[Token] = []
        ended = threading.Event()

        def hear(token: Token) -> None:
            heard.append(token)
            if token.finish is not None:
                ended.set()

        Engine.submit(self.engine, Generate(**({"end_ids": self.model.ends} | request)), hear)
        assert ended.wait(60)
        text = Detokenizer(self.model.fast, request["ids"], skip_special=True)
        pieces = [text.feed(token.id) for token in heard if token.id is not None]
        return "".join(pieces) + text.finish(), heard


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> bool:
    """Whether the condition comes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


@contextmanager
def running(
    engine: Scripted, *, template: str | None = TEMPLATE, grace: float = 30, **options: Any
) -> Iterator[Running]:
    """Serve an engine in a thread."""
    tokenizer = byte_tokenizer(template)
    model = Model(NAME, engine, tokenizer, frozenset({tokenizer.eos_token_id}))
    app = create_app(model, ServerOptions(**options))
    listening = bind("127.0.0.1", 0)
    started = threading.Event()
    server = Server(app, model, grace=grace, on_start=started.set)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    assert started.wait(30)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    key = options.get("api_key", "none")
    try:
        with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
            yield Running(url, app, model, engine, client)
    finally:
        server.should_exit = True
        thread.join()
