"""Runs sampled on a server, which takes new weights between two steps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from apr_agents.backends.base import Backend
from apr_agents.backends.completions import KEY, CompletionsBackend
from apr_agents.errors import BackendFailed
from apr_agents.training.models import Policy

LONGEST_LOADING = 600.0
"""Seconds in which a server must have taken the weights."""

ABSENT = (404, 405)


class Elsewhere:
    """Brings the present weights to a server, by way of a folder that both see.

    The server is SGLang, or vLLM with ``VLLM_SERVER_DEV_MODE=1``, started with the model that
    the training starts from.

    Args:
        source: ``URL`` or ``URL#MODEL``, as for ``completions:``.
        folder: where the weights are put; each step in the place of those before.
    """

    def __init__(self, source: str, folder: Path) -> None:
        self.source, self.folder = source, folder.resolve()

    @contextmanager
    def __call__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, temperature: float
    ) -> Iterator[Backend]:
        """A backend that samples from these weights.

        Raises:
            UnknownModel: the source is no URL.
            BackendFailed: the server cannot be reached, or did not take the weights.
        """
        team = PartialState()
        if team.is_main_process:
            Policy(model, tokenizer).save(self.folder)
        team.wait_for_everyone()  # the tokenizer is read from there
        backend = CompletionsBackend.of(
            self.source, template=str(self.folder), temperature=temperature
        )
        if team.is_main_process:
            self._hand_over(backend.url.removesuffix("/v1"))
        team.wait_for_everyone()
        yield backend

    def _hand_over(self, root: str) -> None:
        key = os.environ.get(KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            with httpx.Client(base_url=root, headers=headers, timeout=LONGEST_LOADING) as client:
                sglang = {"model_path": str(self.folder), "flush_cache": True}
                answer = client.post("/update_weights_from_disk", json=sglang)
                if answer.status_code in ABSENT:
                    where = {"weights_path": str(self.folder)}
                    vllm = {"method": "reload_weights", "kwargs": where}
                    answer = client.post("/collective_rpc", json=vllm)
                    if answer.is_success:
                        answer = client.post("/reset_prefix_cache")
        except httpx.RequestError as error:
            raise BackendFailed(f"cannot bring weights to {root}: {error}.") from error
        if answer.status_code in ABSENT:
            raise BackendFailed(
                f"{root} takes no new weights. Start SGLang there, or vLLM with "
                "VLLM_SERVER_DEV_MODE=1."
            )
        if not answer.is_success:
            said = " ".join(answer.text.split())[:300]
            raise BackendFailed(
                f"{root} did not take the weights in {self.folder} ({answer.status_code}: {said}). "
                "It must see that folder, and run the model that the training started from."
            )
