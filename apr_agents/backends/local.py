"""A model in this process, on the fork-aware engine (extra ``[local]``).

Knows tokens and text; never protocols or graphs. Requests of all threads and all event
loops run in one batch; a common prefix is computed once.
"""

from __future__ import annotations

import asyncio
import os
import zlib
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from langchain_core.messages import AnyMessage

from apr_agents.backends.base import Backend, Delta, Request
from apr_agents.errors import (
    BackendFailed,
    InvalidOption,
    MissingExtra,
    PromptTooLong,
    UnknownModel,
)
from apr_agents.tokens import Detokenizer, StopCheck, end_ids, inert

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from apr_agents.engine.post import Post
    from apr_agents.engine.request import Token


class Tokenizing:
    """Does with a (fast) tokenizer what a backend does with text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._inert = inert(tokenizer.backend_tokenizer)

    def encode(self, text: str) -> list[int]:
        """The tokens of ``text`` as it stands."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def render(self, messages: Sequence[AnyMessage]) -> str:
        roles = {"human": "user", "ai": "assistant"}
        conversation = [
            {
                "role": roles.get(message.type, message.type),
                "content": self._inert(message.text),
            }
            for message in messages
        ]
        if self.tokenizer.chat_template is None:
            return "\n".join(turn["content"] for turn in conversation)
        rendered = self.tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=True
        )
        return str(rendered)

    def count(self, text: str) -> int:
        return len(self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)

    def tail(self, text: str, tokens: int) -> str:
        encoded = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        if len(encoded.ids) <= tokens:
            return text
        return text[encoded.offsets[-tokens][0] :] if tokens > 0 else ""


class LocalBackend(Tokenizing, Backend):
    """Continues text with a Hugging Face decoder in this process.

    Args:
        model: a loaded decoder.
        tokenizer: its (fast) tokenizer.
        name: what trajectories call the model.
        temperature: 0 takes the likeliest token each time.
        seed: of the random numbers when ``temperature`` is above 0.
        most_threads: the largest thread budget the model was trained to read.
    """

    tells_logprobs = True

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str = "local",
        temperature: float = 0.0,
        seed: int = 0,
        most_threads: int | None = None,
    ) -> None:
        from apr_agents.engine.engine import Engine

        if temperature < 0:
            raise InvalidOption("temperature", temperature, "0 or more")
        super().__init__(tokenizer)
        self.name, self.model = name, model.eval()
        self.temperature, self.seed, self.most_threads = temperature, seed, most_threads
        configured = model.generation_config.eos_token_id if model.generation_config else None
        self._ends = end_ids(model.config.eos_token_id, configured, tokenizer.eos_token_id)
        self._posts: WeakKeyDictionary[asyncio.AbstractEventLoop, Post[Token]] = WeakKeyDictionary()
        self.engine = Engine(self.model)
        self.context_length = self.engine.context_length

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        name: str | None = None,
        dtype: str | None = None,
        cpu_threads: int | None = None,
        **options: Any,
    ) -> LocalBackend:
        """Load a decoder from a directory or a hub id; ``options`` as for the class.

        Args:
            dtype: of its weights, such as ``"bfloat16"``; ``None``: on a GPU as they were
                saved, on a CPU float32.
            cpu_threads: threads that torch uses in this whole process when the model runs
                on the CPU. A very small model is fastest on one, above all on a busy machine.

        Raises:
            MissingExtra: torch or transformers is not installed.
            UnknownModel: there is no such model.
        """
        model, tokenizer = load_decoder(source, dtype)
        if cpu_threads is not None and model.device.type == "cpu":
            import torch

            torch.set_num_threads(cpu_threads)
        most_threads = getattr(model.config, "apr_most_threads", None)
        options.setdefault("most_threads", most_threads)
        return cls(model, tokenizer, name=name or f"local:{source}", **options)

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        from apr_agents.engine.request import Generate

        prompt = self.encode(request.prompt)
        longest = self.context_length or 2**31
        if len(prompt) >= longest:
            raise PromptTooLong(len(prompt), longest)
        fast = self.tokenizer.backend_tokenizer
        text = Detokenizer(fast, prompt)
        temperature = self.temperature if request.temperature is None else request.temperature
        generate = Generate(
            ids=prompt,
            max_tokens=min(request.max_tokens, longest - len(prompt)),
            end_ids=self._ends,
            stops=StopCheck(Detokenizer(fast, prompt), request.stops) if request.stops else None,
            temperature=temperature,
            logprobs=0 if request.logprobs else None,
            seed=zlib.crc32(f"{self.seed}/{request.key}".encode()),
            program=request.run,
        )
        heard: asyncio.Queue[Token] = asyncio.Queue()
        post = self._post()

        def hear(token: Token) -> None:
            if not post.send(heard, token):
                self.engine.cancel(number)

        # Threads that start together have all come this far by then, and are let in together.
        await asyncio.sleep(0)
        number = self.engine.submit(generate, hear)
        finished, prompt_tokens = False, len(prompt)
        try:
            while not finished:
                token = await heard.get()
                finished = token.finish is not None
                if token.error is not None:
                    raise BackendFailed(token.error)
                if token.id is None:
                    raise BackendFailed("it was stopped")
                ended = token.finish == "end"
                piece = "" if ended else text.feed(token.id)
                piece += text.finish() if finished else ""
                cached = token.cached if prompt_tokens else None
                yield Delta(piece, 1, prompt_tokens, ended, cached, token.logprob, (token.id,))
                prompt_tokens = 0
        finally:
            if not finished:
                self.engine.cancel(number)

    async def free_lanes(self) -> int:
        return self.engine.free_lanes

    def _post(self) -> Post[Token]:
        from apr_agents.engine.post import Post

        loop = asyncio.get_running_loop()
        if loop not in self._posts:
            self._posts[loop] = Post(loop)
        return self._posts[loop]

    async def aclose(self) -> None:
        await asyncio.to_thread(self.engine.stop)


def load_decoder(
    source: str | Path, dtype: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A decoder from a directory or a hub id, on the GPU if there is one, and its tokenizer.

    Args:
        dtype: as for `LocalBackend.load`.

    Raises:
        MissingExtra: torch or transformers is not installed.
        UnknownModel: there is no such model.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging as transformers_logging
    except ImportError as error:
        raise MissingExtra("local", error.name or "torch") from error
    folder = os.path.expanduser(source)
    if folder.startswith(("/", ".")) and not os.path.isdir(folder):
        raise UnknownModel(f"local:{source}", "there is no such directory")
    transformers_logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype or ("auto" if device == "cuda" else "float32")
        )
    except (OSError, ValueError) as error:
        why = str(error).strip().splitlines()[0]
        raise UnknownModel(f"local:{source}", why.rstrip(".")) from error
    model.to(device)  # type: ignore[arg-type]
    return model, tokenizer
