"""Memory for keys and values, one slot for each token. Knows slots; never token ids."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel


class Run(NamedTuple):
    """Slots that lie side by side: ``start``, ``start + 1``, …"""

    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length

    def cut(self, first: int, length: int) -> Run:
        """At most ``length`` of its slots, without the ``first`` ones."""
        first = min(first, self.length)
        return Run(self.start + first, min(length, self.length - first))


class Pool:
    """``slots`` places for the keys and values of one token each, in every layer.

    Attributes:
        keys: per layer ``SHD``: slot, key-value head, dimension. The first token that is
            stored in a layer decides heads, dimension, precision and device.
        values: per layer, likewise.
        free: slots that hold nothing.
    """

    def __init__(self, slots: int) -> None:
        self.slots = self.free = slots
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self._gaps = [Run(0, slots)]  # in order, never side by side

    def take(self, length: int, *, after: int | None = None) -> Run | None:
        """At most ``length`` slots side by side; ``None`` when the pool is full.

        Args:
            after: the end of a run that is taken; if it is free, they begin there.
        """
        if not self._gaps or length < 1:
            return None
        position = len(self._gaps) if after is None else bisect_left(self._gaps, (after,))
        if position == len(self._gaps) or self._gaps[position].start != after:
            # The smallest gap that is large enough; else the largest there is.
            sizes = [gap.length for gap in self._gaps]
            enough = [size for size in sizes if size >= length]
            position = sizes.index(min(enough) if enough else max(sizes))
        gap = self._gaps[position]
        taken = gap.cut(0, length)
        rest = gap.cut(taken.length, gap.length)
        self._gaps[position : position + 1] = [rest] if rest.length else []
        self.free -= taken.length
        return taken

    def give_back(self, run: Run) -> None:
        """Free slots that `take` gave, or a part of them."""
        if not run.length:
            return
        self.free += run.length
        first = last = bisect_left(self._gaps, run)
        start, end = run.start, run.end
        if first > 0 and self._gaps[first - 1].end == start:
            first -= 1
            start = self._gaps[first].start
        if last < len(self._gaps) and self._gaps[last].start == end:
            end = self._gaps[last].end
            last += 1
        self._gaps[first:last] = [Run(start, end - start)]

    def store(self, layer: int, slots_T: Tensor, key_THD: Tensor, value_THD: Tensor) -> None:
        """Write the keys and values of the tokens that have these slots."""
        if layer not in self.keys:
            self.keys[layer] = key_THD.new_zeros((self.slots, *key_THD.shape[1:]))
            self.values[layer] = value_THD.new_zeros((self.slots, *value_THD.shape[1:]))
        self.keys[layer].index_copy_(0, slots_T, key_THD)
        self.values[layer].index_copy_(0, slots_T, value_THD)

    def slot_bytes(self, layer: int) -> int:
        """Bytes of one token's keys and values in ``layer``."""
        key, value = self.keys[layer], self.values[layer]
        return int(key[0].nbytes + value[0].nbytes)


def token_bytes(model: PreTrainedModel) -> int:
    """Bytes that one token's keys and values will take in all layers of ``model`` together."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * model.dtype.itemsize)


def length_of(runs: Iterable[Run]) -> int:
    """How many slots they have together."""
    return sum(run.length for run in runs)


def split(runs: Iterable[Run], count: int) -> tuple[list[Run], list[Run]]:
    """The first ``count`` slots of some runs, and the others."""
    first, others = [], []
    for run in runs:
        if count >= run.length:
            first.append(run)
            count -= run.length
        elif count > 0:
            first.append(run.cut(0, count))
            others.append(run.cut(count, run.length))
            count = 0
        else:
            others.append(run)
    return first, others


def append(runs: list[Run], more: Iterable[Run]) -> None:
    """Put runs behind ``runs``; what lies side by side becomes one."""
    for run in more:
        if runs and runs[-1].end == run.start:
            run = Run(runs[-1].start, runs.pop().length + run.length)
        runs.append(run)


def slots_of(runs: Sequence[Run], device: torch.device) -> Tensor:
    """The slots of some runs, one after the other."""
    if len(runs) == 1:
        return torch.arange(runs[0].start, runs[0].end, device=device)
    starts, lengths = torch.tensor(runs).T
    shift = starts - (lengths.cumsum(0) - lengths)
    slots: Tensor = torch.arange(length_of(runs)) + shift.repeat_interleave(lengths)
    return slots.to(device)
