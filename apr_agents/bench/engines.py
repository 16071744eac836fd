"""The engines that `engine` compares in one process: prompts in, what comes behind them out.

Every engine generates exactly as many tokens as asked, the likeliest each time, and ignores
the model's end.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from apr_agents.errors import BackendFailed

Ids = list[int]


class Output(NamedTuple):
    """What was generated behind one prompt.

    Attributes:
        tokens: how many tokens.
        ids: these; of a server that answers with text, what the text gives.
    """

    tokens: int
    ids: Ids

    @classmethod
    def of(cls, ids: Ids) -> Output:
        return cls(len(ids), ids)


class Generator(ABC):
    """An engine ready to run.

    Attributes:
        prefilled: prompt tokens computed so far; ``None`` where the engine does not say.
    """

    prefilled: int | None = None

    @abstractmethod
    def generate(self, prompts: Sequence[Ids], tokens: int) -> list[Output]:
        """All prompts at once; what was generated behind each."""

    def close(self) -> None:  # noqa: B027  most hold nothing
        """Free what it holds."""


def load(directory: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model in ``directory``, on a GPU if there is one."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
    if torch.cuda.is_available():
        model.to("cuda")  # type: ignore[arg-type]
    return model


class Apr(Generator):
    """This package's engine, in this process."""

    def __init__(self, directory: Path, dtype: torch.dtype) -> None:
        from apr_agents.engine.engine import Engine, EngineOptions

        self.engine = Engine(load(directory, dtype), EngineOptions(cache_tokens=16384))

    @property
    def prefilled(self) -> int:  # type: ignore[override]
        return self.engine.statistics.prefilled

    def generate(self, prompts: Sequence[Ids], tokens: int) -> list[Output]:
        from apr_agents.engine.request import Generate, Token

        outputs: list[Ids] = [[] for _ in prompts]
        errors: list[str] = []
        left = threading.Semaphore(0)

        def hearing(output: Ids) -> Callable[[Token], None]:
            def hear(token: Token) -> None:
                if token.id is not None:
                    output.append(token.id)
                if token.error is not None:
                    errors.append(token.error)
                if token.finish is not None:
                    left.release()

            return hear

        for prompt, output in zip(prompts, outputs, strict=True):
            self.engine.submit(Generate(ids=prompt, max_tokens=tokens), hearing(output))
        for _ in prompts:
            left.acquire()
        if errors:
            raise BackendFailed(errors[0])
        return [*map(Output.of, outputs)]

    def close(self) -> None:
        self.engine.stop()


class TransformersCB(Generator):
    """transformers' own continuous batching."""

    def __init__(self, directory: Path, dtype: torch.dtype) -> None:
        from transformers import ContinuousBatchingConfig, GenerationConfig

        model = load(directory, dtype)
        on_cpu = model.device.type == "cpu"
        self._manager: Any = model.init_continuous_batching(  # type: ignore[operator]
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=32 if on_cpu else 256,
                num_blocks=512 if on_cpu else None,
                max_batch_tokens=512 if on_cpu else None,
                max_requests_per_batch=64 if on_cpu else None,
            ),
        )
        self._manager.start()

    def generate(self, prompts: Sequence[Ids], tokens: int) -> list[Output]:
        names = [
            self._manager.add_request(prompt, max_new_tokens=tokens, eos_token_id=-1)
            for prompt in prompts
        ]
        found: dict[str, Ids] = {}
        while len(found) < len(names):
            output = self._manager.get_result(timeout=600)
            if output is None:
                raise BackendFailed("continuous batching gave no result")
            if output.is_finished():
                found[output.request_id] = list(output.generated_tokens)
        return [Output.of(found[name]) for name in names]

    def close(self) -> None:
        self._manager.stop(block=True)


class HF(Generator):
    """``generate`` of transformers, for all prompts as one padded batch or one by one."""

    def __init__(self, directory: Path, dtype: torch.dtype, *, batched: bool) -> None:
        self._model, self._batched = load(directory, dtype), batched
        self.prefilled = 0

    def generate(self, prompts: Sequence[Ids], tokens: int) -> list[Output]:
        groups = [prompts] if self._batched else [[prompt] for prompt in prompts]
        return [Output.of(ids) for group in groups for ids in self._generate(group, tokens)]

    def _generate(self, prompts: Sequence[Ids], tokens: int) -> list[Ids]:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor(
            [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        )
        self.prefilled = (self.prefilled or 0) + sum(map(len, prompts))
        with torch.inference_mode():
            output: torch.Tensor = self._model.generate(  # type: ignore[operator]
                ids.to(self._model.device),
                attention_mask=mask.to(self._model.device),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
        return [row.tolist() for row in output[:, longest:]]
