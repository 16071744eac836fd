"""A model in this process, on transformers' continuous batching (extra ``[local]``).

Knows tokens and text; never protocols or graphs. Requests of all threads and all event
loops run in one batch; pages of a common prefix are computed once.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re
import threading
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from langchain_core.messages import AnyMessage

from apr_agents.backends.base import Backend, Delta, Request
from apr_agents.errors import (
    BackendFailed,
    InvalidOption,
    MissingExtra,
    PromptTooLong,
    UnknownModel,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PAGE = 32
"""Tokens in one page of the cache: prefixes are shared in whole pages."""

CPU_CACHE_TOKENS = 32768
"""Room for keys and values where transformers cannot size the cache by a GPU's memory."""


class _Listener(NamedTuple):
    loop: asyncio.AbstractEventLoop
    outputs: asyncio.Queue[Any]

    def hear(self, output: Any) -> bool:
        """Hand it an output from another thread; false when its event loop is gone."""
        try:
            self.loop.call_soon_threadsafe(self.outputs.put_nowait, output)
        except RuntimeError:
            return False
        return True


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
        self.context_length = getattr(model.config, "max_position_embeddings", None)
        ids = model.config.eos_token_id
        ends = {*(ids if isinstance(ids, list) else [ids]), tokenizer.eos_token_id}
        self._ends: set[int] = ends - {None}
        added = tokenizer.added_tokens_decoder.values()
        self._control = _any_of([token.content for token in added if token.special])
        self._numbers = itertools.count()
        self._listeners: dict[str, _Listener] = {}
        self._manager: Any = None
        self._starting = threading.Lock()

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
                "content": self._control.sub(_broken, message.text),
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
        prompt = self.tokenizer(request.prompt, add_special_tokens=False)["input_ids"]
        longest = self.context_length or 2**31
        room = longest - len(prompt)
        if room < 1:
            raise PromptTooLong(len(prompt), longest)
        stops = self._single_tokens(request.stops)
        limit = min(request.max_tokens, room)
        from tokenizers.decoders import DecodeStream

        decoder, fast = DecodeStream(skip_special_tokens=False), self.tokenizer.backend_tokenizer
        name = f"apr-{next(self._numbers)}"
        listener = _Listener(asyncio.get_running_loop(), asyncio.Queue())
        self._listeners[name] = listener
        seen, prompt_tokens, finished = 0, len(prompt), False
        try:
            manager = self._running()
            accepted = manager.add_request(
                prompt,
                request_id=name,
                max_new_tokens=limit,
                streaming=True,
                eos_token_id=sorted(self._ends | stops),
            )
            if accepted is None:
                raise BackendFailed("it has stopped and takes no more requests")
            while not finished:
                output = await listener.outputs.get()
                finished = output.is_finished()
                if output.error is not None:
                    raise BackendFailed(output.error)
                fresh, seen = output.generated_tokens[seen:], len(output.generated_tokens)
                text = "".join(
                    decoder.step(fast, token) or "" for token in fresh if token not in self._ends
                )
                ended = bool(fresh) and fresh[-1] in self._ends
                yield Delta(text, len(fresh), prompt_tokens, ended)
                prompt_tokens = 0
        finally:
            del self._listeners[name]
            if not finished and self._manager is not None:
                self._manager.cancel_request(name)

    async def aclose(self) -> None:
        with self._starting:
            manager, self._manager = self._manager, None
        if manager is not None:
            await asyncio.to_thread(manager.stop, block=True, hard_stop=True)

    def _single_tokens(self, texts: Sequence[str]) -> set[int]:
        """The texts that are one token: the batch can stop there without being told."""
        encoded = (self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
        return {ids[0] for ids in encoded if len(ids) == 1}

    def _running(self) -> Any:
        with self._starting:
            if self._manager is None:
                self._manager = self._start()
            return self._manager

    def _start(self) -> Any:
        from transformers import ContinuousBatchingConfig, GenerationConfig

        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
        sampled = self.temperature > 0
        on_cpu = self.model.device.type == "cpu"
        manager = self.model.init_continuous_batching(
            generation_config=GenerationConfig(
                do_sample=sampled,
                temperature=self.temperature if sampled else None,
                eos_token_id=sorted(self._ends) or -1,
                pad_token_id=self.tokenizer.pad_token_id,
            ),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=PAGE if on_cpu else 256,
                num_blocks=CPU_CACHE_TOKENS // PAGE if on_cpu else None,
                max_batch_tokens=512 if on_cpu else None,
                max_requests_per_batch=256 if on_cpu else None,
                seed=self.seed,
            ),
        )
        # The manager's own thread is a daemon only if its starter is; else it would keep a
        # finished program alive.
        starter = threading.Thread(target=manager.start, daemon=True)
        starter.start()
        starter.join()
        threading.Thread(
            target=self._dispatch, args=(manager,), name="apr-dispatch", daemon=True
        ).start()
        return manager

    def _dispatch(self, manager: Any) -> None:
        """Hand outputs to whoever waits; a listener whose event loop is gone costs nobody else."""
        for output in manager:
            listener = self._listeners.get(output.request_id)
            if listener is not None and not listener.hear(output):
                manager.cancel_request(output.request_id)
        for listener in list(self._listeners.values()):
            listener.hear(_Stopped("it was stopped"))


class _Stopped(NamedTuple):
    """Takes the place of an output when the batch has stopped."""

    error: str

    def is_finished(self) -> bool:
        return True


def _any_of(texts: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")


def _broken(match: re.Match[str]) -> str:
    return f"{match[0][0]} {match[0][1:]}"
