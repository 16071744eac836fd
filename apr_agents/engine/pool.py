"""Memory for keys and values, one slot for each token. Knows slots; never token ids."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import NamedTuple

import torch
from torch import Tensor


class Run(NamedTuple):
    """Slots that lie side by side: ``start``, ``start + 1``, …"""

    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length


class Pool:
    """``slots`` places for the keys and values of one token each, in every layer.

    Attributes:
        keys: per layer ``SHD``: slot, key-value head, dimension.
        values: per layer, of the same shape.
        free: slots that hold nothing.
    """

    def __init__(
        self,
        slots: int,
        *,
        layers: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (slots, heads, head_dim)
        self.slots = self.free = slots
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self._gaps = [Run(0, slots)]

    def take(self, length: int, *, after: int | None = None) -> Run | None:
        """At most ``length`` slots side by side; ``None`` when the pool is full.

        Args:
            after: the slot behind which they should lie, if that place is free.
        """
        if not self._gaps or length < 1:
            return None
        position = 0
        if after is not None:
            position = bisect_left(self._gaps, (after,))
            if position == len(self._gaps) or self._gaps[position].start != after:
                after = None
        if after is None:
            # The smallest gap that is large enough; else the largest there is.
            enough = [i for i, gap in enumerate(self._gaps) if gap.length >= length]
            choose = min if enough else max
            among = enough or range(len(self._gaps))
            position = choose(among, key=lambda i: self._gaps[i].length)
        gap = self._gaps[position]
        taken = Run(gap.start, min(length, gap.length))
        rest = Run(taken.end, gap.length - taken.length)
        self._gaps[position : position + 1] = [rest] if rest.length else []
        self.free -= taken.length
        return taken

    def give_back(self, run: Run) -> None:
        """Free slots that `take` gave, or a part of them."""
        if not run.length:
            return
        self.free += run.length
        insort(self._gaps, run)
        position = bisect_left(self._gaps, run)
        for left in (position, position - 1):  # join with the gap behind, then with the one before
            if 0 <= left < len(self._gaps) - 1:
                first, second = self._gaps[left : left + 2]
                if first.end == second.start:
                    self._gaps[left : left + 2] = [Run(first.start, first.length + second.length)]

    def store(self, layer: int, slots_T: Tensor, key_THD: Tensor, value_THD: Tensor) -> None:
        """Write the keys and values of the tokens that have these slots."""
        self.keys[layer].index_copy_(0, slots_T, key_THD)
        self.values[layer].index_copy_(0, slots_T, value_THD)
