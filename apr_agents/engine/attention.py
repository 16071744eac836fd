"""Attention over a tree of keys and values, registered with transformers as ``apr``.

All queries that see a run of slots meet its keys in one matrix product, and what they get
from their several runs is put together by log-sum-exp (Hydragen, Juravsky et al. 2024,
generalised from one shared prefix to a tree). Knows slots and rows; never sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from apr_agents.engine.pool import Pool, Run

NAME = "apr"

WORTHWHILE = 96
"""Queries × slots from which a run is worth a product of its own; less is gathered."""


@dataclass(frozen=True)
class Rows:
    """Consecutive tokens of one sequence among the tokens of a step.

    Attributes:
        first: place of the first among the tokens of the step.
        count: how many there are.
        context: runs of slots of what comes before them.
        own: runs of their own slots.
    """

    first: int
    count: int
    context: Sequence[Run]
    own: Sequence[Run]


@dataclass(frozen=True)
class _Shared:
    """Every row of ``rows_R`` sees all of ``run``; ``rows`` instead where they are consecutive."""

    run: Run
    rows: slice | Tensor


@dataclass(frozen=True)
class _Chunk:
    """Consecutive rows, each of which sees the ``slots_S`` up to its own."""

    rows: slice
    slots_S: Tensor
    allowed_RS: Tensor


@dataclass(frozen=True)
class _Gathered:
    """Rows with slots of their own: row ``r`` sees ``slots_RS[r]`` where ``allowed_RS[r]``."""

    rows: slice | Tensor
    slots_RS: Tensor
    allowed_RS: Tensor


class Plan:
    """Who attends to what in one step."""

    def __init__(
        self, pool: Pool, rows: Sequence[Rows], slots: Sequence[int], device: torch.device
    ) -> None:
        self.pool, self.device, self._rows = pool, device, rows
        self.slots_T = torch.tensor(slots, device=device)
        self._plans: dict[int | None, list[_Shared | _Chunk | _Gathered]] = {}

    def parts(self, window: int | None) -> list[_Shared | _Chunk | _Gathered]:
        """What to compute, for layers that see ``window`` tokens back or all (``None``)."""
        if window not in self._plans:
            self._plans[window] = self._all() if window is None else self._windowed(window)
        return self._plans[window]

    def _all(self) -> list[_Shared | _Chunk | _Gathered]:
        seen: dict[Run, list[Rows]] = {}
        for rows in self._rows:
            for run in rows.context:
                seen.setdefault(run, []).append(rows)
        parts: list[_Shared | _Chunk | _Gathered] = []
        left: dict[int, list[int]] = {}
        for run, those in seen.items():
            if run.length * sum(rows.count for rows in those) >= WORTHWHILE or any(
                rows.count > 1 for rows in those
            ):
                parts.append(_Shared(run, self._places(those)))
            else:
                for rows in those:
                    left.setdefault(rows.first, []).extend(range(run.start, run.end))
        single = [rows for rows in self._rows if rows.count == 1]
        if single:
            own = [[*left.get(rows.first, ()), rows.own[0].start] for rows in single]
            parts.append(self._gathered(single, own))
        for rows in self._rows:
            if rows.count > 1:
                slots = [slot for run in rows.own for slot in range(run.start, run.end)]
                ones = torch.ones(rows.count, rows.count, dtype=torch.bool, device=self.device)
                parts.append(
                    _Chunk(
                        slice(rows.first, rows.first + rows.count),
                        torch.tensor(slots, device=self.device),
                        ones.tril(),
                    )
                )
        return parts

    def _windowed(self, window: int) -> list[_Shared | _Chunk | _Gathered]:
        parts: list[_Shared | _Chunk | _Gathered] = []
        single: list[Rows] = []
        recent: list[list[int]] = []
        for rows in self._rows:
            runs = [*rows.context, *rows.own]
            slots = [slot for run in runs for slot in range(run.start, run.end)]
            slots = slots[-(window + rows.count - 1) :]
            if rows.count == 1:
                single.append(rows)
                recent.append(slots)
                continue
            places = torch.arange(len(slots), device=self.device)
            ends = places[len(slots) - rows.count :, None]
            allowed = (places <= ends) & (places > ends - window)
            parts.append(
                _Chunk(
                    slice(rows.first, rows.first + rows.count),
                    torch.tensor(slots, device=self.device),
                    allowed,
                )
            )
        if single:
            parts.append(self._gathered(single, recent))
        return parts

    def _gathered(self, rows: Sequence[Rows], slots: Sequence[Sequence[int]]) -> _Gathered:
        longest = max(map(len, slots))
        padded = [[*own, *[own[-1]] * (longest - len(own))] for own in slots]
        lengths = torch.tensor([len(own) for own in slots], device=self.device)
        allowed = torch.arange(longest, device=self.device) < lengths[:, None]
        return _Gathered(self._places(rows), torch.tensor(padded, device=self.device), allowed)

    def _places(self, rows: Sequence[Rows]) -> slice | Tensor:
        places = [place for r in rows for place in range(r.first, r.first + r.count)]
        if places == list(range(places[0], places[0] + len(places))):
            return slice(places[0], places[-1] + 1)
        return torch.tensor(places, device=self.device)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp.

    Args:
        query: ``BHQD``.
        key: ``BHSD``, as ``value``.
        allowed: what broadcasts to ``BHQS``; ``None`` for everything.

    Returns:
        ``BHQD`` and, in float32, ``BHQ``.
    """
    if query.device.type == "cpu":
        mask = None
        if allowed is not None:
            mask = torch.zeros(allowed.shape, dtype=query.dtype)
            mask.masked_fill_(~allowed, float("-inf"))
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=mask, scale=scale
        )
        return out, lse.float()
    scores = (query @ key.transpose(-1, -2)).float() * scale
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    lse = scores.logsumexp(-1)
    return (scores - lse[..., None]).exp().to(value.dtype) @ value, lse


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    plan: Plan,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer.

    Args:
        query: ``1HTD``; the tokens of all sequences of the step side by side.
        key: ``1KTD``, as ``value``.
    """
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    plan.pool.store(layer, plan.slots_T, key[0].transpose(0, 1), value[0].transpose(0, 1))
    keys, values = plan.pool.keys[layer], plan.pool.values[layer]
    heads, dim = query.shape[1], query.shape[-1]
    groups = heads // key.shape[1]
    scale = scaling if scaling is not None else dim**-0.5
    # Query heads that share a key-value head lie side by side: TKGD.
    query_TKGD = query[0].transpose(0, 1).unflatten(1, (-1, groups))
    total = torch.zeros(query_TKGD.shape, dtype=torch.float32, device=query.device)
    weight = torch.full(query_TKGD.shape[:-1], float("-inf"), device=query.device)
    for part in plan.parts(sliding_window):
        rows = part.rows
        asked = query_TKGD[rows]
        count = len(asked)
        if isinstance(part, _Gathered):
            gathered_k = keys[part.slots_RS].transpose(1, 2)
            gathered_v = values[part.slots_RS].transpose(1, 2)
            allowed = part.allowed_RS[:, None, None].expand(-1, -1, groups, -1)
            out, lse = _attend(asked, gathered_k, gathered_v, allowed, scale)
        else:
            if isinstance(part, _Shared):
                seen = slice(part.run.start, part.run.end)
                key_KSD, value_KSD = keys[seen].transpose(0, 1), values[seen].transpose(0, 1)
                allowed_QS = None
            else:
                key_KSD = keys[part.slots_S].transpose(0, 1)
                value_KSD = values[part.slots_S].transpose(0, 1)
                allowed_QS = part.allowed_RS.repeat_interleave(groups, 0)[None, None]
            asked_KQD = asked.transpose(0, 1).flatten(1, 2)
            out, lse = _attend(asked_KQD[None], key_KSD[None], value_KSD[None], allowed_QS, scale)
            out = out[0].unflatten(1, (count, groups)).transpose(0, 1)
            lse = lse[0].unflatten(1, (count, groups)).transpose(0, 1)
        before = weight[rows]
        both = torch.logaddexp(before, lse)
        total[rows] = (
            total[rows] * (before - both).exp()[..., None] + out * (lse - both).exp()[..., None]
        )
        weight[rows] = both
    return total.to(query.dtype).flatten(1, 2)[None], None


def register() -> None:
    """Make ``attn_implementation="apr"`` known to transformers; calling it again is harmless."""
    AttentionInterface.register(NAME, _attention)
    # Every part has its own mask; transformers is not to build one.
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
