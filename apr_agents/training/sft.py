"""Supervised fine-tuning on packed tries, for any Hugging Face decoder.

Matrices are trained with Muon, everything else with AdamW, in bfloat16 autocast; the
learning rate warms up, stays, and falls linearly to zero at the end. A checkpoint holds
everything, so a killed run goes on with the step it was at.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from apr_agents.training import attention
from apr_agents.training.trie import Batch

BatchStream = Callable[[int, float], Iterable[Batch]]
"""``stream(shard, progress)`` yields the batches of one shard; ``progress`` runs from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """How to train.

    Attributes:
        tokens: how many tokens to train on, padding not counted.
        matrix_rate: peak learning rate of Muon (hidden matrices).
        other_rate: peak learning rate of AdamW (embeddings, norms).
        warmup: share of the tokens over which the rates rise.
        decay: share of the tokens over which the rates fall to zero.
        weight_decay: decoupled, on matrices.
        checkpoint_seconds: time between two checkpoints.
    """

    tokens: int
    matrix_rate: float = 0.014
    other_rate: float = 2e-3
    warmup: float = 0.01
    decay: float = 0.65
    weight_decay: float = 0.01
    checkpoint_seconds: float = 120.0


def half_precision(model: PreTrainedModel) -> AbstractContextManager[None]:
    """bfloat16 where it is safe, on the model's device."""
    return torch.autocast(model.device.type, torch.bfloat16)


def trie_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Logits ``SV`` for the supervised tokens of a batch; the model needs attention ``trie``."""
    device = model.device
    hidden_BTD = model.base_model(
        input_ids=batch.ids_BT.to(device),
        position_ids=batch.positions_BT.to(device),
        attention_mask=_additive(batch.allowed_B1TT.to(device)),
        use_cache=False,
    ).last_hidden_state
    logits: Tensor = model.get_output_embeddings()(
        hidden_BTD.flatten(0, 1)[batch.sources_S.to(device)]
    )
    return logits


def _additive(allowed: Tensor) -> Tensor:
    """0 where attention is allowed, minus infinity elsewhere, in the precision in force."""
    kind = allowed.device.type
    half = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if half else torch.float32
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
        ~allowed, float("-inf")
    )


def trie_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Mean cross-entropy over the supervised tokens."""
    logits = trie_logits(model, batch).float()
    return F.cross_entropy(logits, batch.targets_S.to(logits.device))


def rate(progress: float, config: SFTConfig) -> float:
    """The factor on both learning rates when ``progress`` of the tokens are done."""
    rising = progress / config.warmup if config.warmup else 1.0
    falling = (1 - progress) / config.decay if config.decay else 1.0
    return max(0.0, min(1.0, rising, falling))


@contextmanager
def together() -> Iterator[None]:
    """Train with the other processes that ``torchrun`` started; alone without it."""
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        # Left open, its threads abort the process at exit.
        dist.destroy_process_group()


def position() -> tuple[int, int]:
    """This process's rank, and how many processes train together (``torchrun``)."""
    several = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if several else (0, 1)


def _summed(*counts: int) -> list[int]:
    """Each count, summed over all processes."""
    if position()[1] == 1:
        return list(counts)
    tensor = torch.tensor(counts)
    dist.all_reduce(tensor)
    return [int(count) for count in tensor]


def _sum_gradients(model: PreTrainedModel) -> None:
    if position()[1] == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch._utils._flatten_dense_tensors(gradients)
    dist.all_reduce(flat)
    for gradient, summed in zip(
        gradients, torch._utils._unflatten_dense_tensors(flat, gradients), strict=True
    ):
        gradient.copy_(summed)


class Trainer:
    """One resumable training run in ``directory``."""

    def __init__(
        self, model: PreTrainedModel, stream: BatchStream, directory: Path, config: SFTConfig
    ) -> None:
        attention.register()
        model.set_attn_implementation(attention.NAME)
        self.model, self.stream, self.directory, self.config = model, stream, directory, config
        hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
        chosen = set(map(id, hidden))
        other = [p for p in model.parameters() if id(p) not in chosen]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(hidden, lr=config.matrix_rate, weight_decay=config.weight_decay),
            torch.optim.AdamW(other, lr=config.other_rate, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.peaks = (config.matrix_rate, config.other_rate)
        self.tokens = self.shard = self.batch = 0
        directory.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            self._restore()

    @property
    def checkpoint(self) -> Path:
        return self.directory / "checkpoint.pt"

    @property
    def progress(self) -> float:
        return min(1.0, self.tokens / self.config.tokens)

    def run(self, report: Callable[[float], None] | None = None) -> None:
        """Train until the tokens are used up; ``report(mean_loss)`` at each checkpoint."""
        saved, losses = time.monotonic(), []
        for batch in self._batches():
            losses.append(self._step(batch))
            # Processes agree on the step, whatever their clocks say.
            [due] = _summed(int(time.monotonic() - saved > self.config.checkpoint_seconds))
            if due == position()[1]:
                self._save(sum(losses) / len(losses))
                if report and position()[0] == 0:
                    report(sum(losses) / len(losses))
                saved, losses = time.monotonic(), []
            if self.progress >= 1:
                break
        self._save(sum(losses) / max(1, len(losses)))

    def _batches(self) -> Iterator[Batch]:
        while self.progress < 1:
            for index, batch in enumerate(self.stream(self.shard, self.progress)):
                if index >= self.batch:
                    self.batch = index + 1
                    yield batch
            self.shard, self.batch = self.shard + 1, 0

    def _step(self, batch: Batch) -> float:
        factor = rate(self.progress, self.config)
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
        with half_precision(self.model):
            loss = trie_loss(self.model, batch)
        tokens, supervised = _summed(batch.tokens, len(batch.targets_S))
        # Every process weighs as much as the tokens it learns from.
        (loss * len(batch.targets_S) / supervised).backward()
        _sum_gradients(self.model)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.tokens += tokens
        return loss.item()

    def _save(self, loss: float) -> None:
        if position()[0] > 0:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "position": (self.tokens, self.shard, self.batch),
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)
        with (self.directory / "log.jsonl").open("a") as log:
            row = {"time": time.time(), "tokens": self.tokens, "loss": loss}
            print(json.dumps(row | {"config": asdict(self.config)}), file=log)

    def _restore(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.tokens, self.shard, self.batch = state["position"]
