"""A model in this process, on the fork-aware engine (extra ``[local]``).

Knows tokens and text; never protocols or graphs. Requests of all threads and all event
loops run in one batch; a common prefix is computed once.
"""

from __future__ import annotations

import asyncio
import os
import zlib
from collections import deque
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

    from apr_agents.engine.engine import Engine
    from apr_agents.engine.request import Token

CPU_CACHE_TOKENS = 32768
"""Room for keys and values on a CPU."""

GPU_CACHE_SHARE = 0.6
"""Share of a GPU's free memory that keys and values may take."""


class LocalBackend(Backend):
    """Continues text with a Hugging Face decoder in this process.

    Args:
        model: a loaded decoder.
        tokenizer: its (fast) tokenizer.
        name: what trajectories call the model.
        temperature: 0 takes the likeliest token each time.
        seed: of the random numbers when ``temperature`` is above 0.
        most_threads: the largest thread budget the model was trained to read.
    """

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
        if temperature < 0:
            raise InvalidOption("temperature", temperature, "0 or more")
        self.name, self.model, self.tokenizer = name, model.eval(), tokenizer
        self.temperature, self.seed, self.most_threads = temperature, seed, most_threads
        configured = model.generation_config.eos_token_id if model.generation_config else None
        self._ends = end_ids(model.config.eos_token_id, configured, tokenizer.eos_token_id)
        self._inert = inert(tokenizer.backend_tokenizer)
        self._posts: WeakKeyDictionary[asyncio.AbstractEventLoop, _Post] = WeakKeyDictionary()
        self.engine: Engine = _engine(self.model)
        self.context_length = self.engine.context_length

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        name: str | None = None,
        cpu_threads: int | None = None,
        **options: Any,
    ) -> LocalBackend:
        """Load a decoder from a directory or a hub id; ``options`` as for the class.

        Args:
            cpu_threads: threads that torch uses in this whole process when the model runs
                on the CPU. A very small model is fastest on one, above all on a busy machine.

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
        if cpu_threads is not None and device == "cpu":
            torch.set_num_threads(cpu_threads)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype="auto" if device == "cuda" else torch.float32
            )
        except (OSError, ValueError) as error:
            why = str(error).strip().splitlines()[0]
            raise UnknownModel(f"local:{source}", why.rstrip(".")) from error
        most_threads = getattr(model.config, "apr_most_threads", None)
        options.setdefault("most_threads", most_threads)
        model.to(device)  # type: ignore[arg-type]
        return cls(model, tokenizer, name=name or f"local:{source}", **options)

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

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        from apr_agents.engine.request import Generate

        prompt = self.tokenizer(request.prompt, add_special_tokens=False)["input_ids"]
        longest = self.context_length or 2**31
        if len(prompt) >= longest:
            raise PromptTooLong(len(prompt), longest)
        fast = self.tokenizer.backend_tokenizer
        text = Detokenizer(fast, prompt)
        generate = Generate(
            ids=prompt,
            max_tokens=min(request.max_tokens, longest - len(prompt)),
            end_ids=self._ends,
            stops=StopCheck(Detokenizer(fast, prompt), request.stops) if request.stops else None,
            temperature=self.temperature,
            seed=zlib.crc32(f"{self.seed}/{request.key}".encode()),
        )
        heard: asyncio.Queue[Token] = asyncio.Queue()
        post = self._post()

        def hear(token: Token) -> None:
            if not post.send(heard, token):
                self.engine.cancel(number)

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
                yield Delta(piece + (text.finish() if finished else ""), 1, prompt_tokens, ended)
                prompt_tokens = 0
        finally:
            if not finished:
                self.engine.cancel(number)

    def _post(self) -> _Post:
        loop = asyncio.get_running_loop()
        if loop not in self._posts:
            self._posts[loop] = _Post(loop)
        return self._posts[loop]

    async def aclose(self) -> None:
        await asyncio.to_thread(self.engine.stop)


class _Post:
    """Brings tokens from the engine's thread to an event loop, those of one step together."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._letters: deque[tuple[asyncio.Queue[Token], Token]] = deque()

    def send(self, to: asyncio.Queue[Token], token: Token) -> bool:
        """Post a token; false when the event loop is gone."""
        self._letters.append((to, token))
        if len(self._letters) > 1:  # whoever posted the first has called
            return not self._loop.is_closed()
        try:
            self._loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:
            return False
        return True

    def _deliver(self) -> None:
        while self._letters:
            # Out of the box only when it is delivered: an empty box is one that nobody empties.
            to, token = self._letters[0]
            to.put_nowait(token)
            self._letters.popleft()


def _engine(model: PreTrainedModel) -> Engine:
    """An engine for ``model``, its cache sized for the device."""
    import torch

    from apr_agents.engine.engine import Engine, EngineOptions

    if model.device.type == "cpu":
        return Engine(model, EngineOptions(cache_tokens=CPU_CACHE_TOKENS))
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token_bytes = 2 * config.num_hidden_layers * heads * head_dim * model.dtype.itemsize
    free, _ = torch.cuda.mem_get_info(model.device)
    cache_tokens = int(GPU_CACHE_SHARE * free) // token_bytes
    return Engine(model, EngineOptions(cache_tokens=cache_tokens, most_tokens=4096))
