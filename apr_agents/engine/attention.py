"""Attention over a tree of keys and values, registered with transformers as ``apr``.

All queries that see a run of slots meet its keys in one matrix product, and what they get
from their several runs is put together by log-sum-exp (Hydragen, Juravsky et al. 2024,
generalised from one shared prefix to a tree). Does what a plan says; never sees sequences.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from apr_agents.engine.plan import Gathered, Plan

NAME = "apr"

SPECIAL = ("position_bias", "indices", "block_indices", "sinks")
"""Arguments of some models' attention that change its result."""

MOST_SCORES = 1 << 26
"""Attention scores that are in memory at the same time, where they have to be."""


class Unfit(Exception):
    """Why a model cannot attend in this way."""


def _attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float, cap: float | None
) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp.

    Args:
        query: ``BHQD``.
        key: ``BHSD``, as ``value``.
        bias: what is added to the scores, broadcast to ``BHQS``; ``None`` for nothing.
        cap: scores are bent so that they stay below it.

    Returns:
        ``BHQD`` and, in float32, ``BHQ``.
    """
    if query.device.type == "cpu" and cap is None and key.shape[-1] == value.shape[-1]:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=bias, scale=scale
        )
        return out, lse.float()
    batch, heads, asked, _ = query.shape
    at_once = max(1, MOST_SCORES // (batch * heads * key.shape[2]))
    outs, lses = [], []
    for first in range(0, asked, at_once):
        some = slice(first, first + at_once)
        scores = (query[:, :, some] @ key.transpose(-1, -2)).float() * scale
        if cap is not None:
            scores = (scores / cap).tanh_() * cap
        if bias is not None:
            scores += bias[..., some, :]
        lses.append(scores.logsumexp(-1))
        outs.append((scores - lses[-1][..., None]).exp_().to(value.dtype) @ value)
    return torch.cat(outs, 2), torch.cat(lses, 2)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    plan: Plan | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer.

    Args:
        query: ``1HTD``; the tokens of all sequences of the step side by side.
        key: ``1KTD``, as ``value``.
        softcap: scores are bent so that they stay below it.
        s_aux: ``H``; the score of a sink in each head, which takes weight and gives nothing.

    Raises:
        Unfit: the model asks for more than that.
    """
    if plan is None:
        raise Unfit("no plan has reached its attention")
    if attention_mask is not None or any(others.get(name) is not None for name in SPECIAL):
        raise Unfit("its attention depends on more than positions")
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    plan.pool.store(layer, plan.slots_T, key[0].transpose(0, 1), value[0].transpose(0, 1))
    keys, values = plan.pool.keys[layer], plan.pool.values[layer]
    groups = query.shape[1] // key.shape[1]
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    # Query heads that share a key-value head lie side by side: TKGD.
    query_TKGD = query[0].transpose(0, 1).unflatten(1, (-1, groups))
    merged = _Merged(query_TKGD, value.shape[-1], s_aux)
    for part in plan.parts(layer, sliding_window, groups):
        asked = query_TKGD[part.rows]
        if isinstance(part, Gathered):
            gathered_k = _gathered(keys, part.slots_RS).transpose(1, 2)
            gathered_v = _gathered(values, part.slots_RS).transpose(1, 2)
            out, lse = _attend(asked, gathered_k, gathered_v, part.bias, scale, softcap)
        else:
            key_KSD = keys[part.slots].transpose(0, 1)
            value_KSD = values[part.slots].transpose(0, 1)
            asked_KQD = asked.transpose(0, 1).flatten(1, 2)
            out, lse = _attend(
                asked_KQD[None], key_KSD[None], value_KSD[None], part.bias_QS, scale, softcap
            )
            out = out[0].unflatten(1, (-1, groups)).transpose(0, 1)
            lse = lse[0].unflatten(1, (-1, groups)).transpose(0, 1)
        merged.add(part.rows, out, lse)
    return merged.out.to(query.dtype).flatten(1, 2)[None], None


def _gathered(kept_SHD: Tensor, slots_RS: Tensor) -> Tensor:
    """``RSHD``; as rows of a matrix, which takes a fraction of the time that indexing takes."""
    rows = kept_SHD.flatten(1).index_select(0, slots_RS.flatten())
    return rows.view(*slots_RS.shape, *kept_SHD.shape[1:])


class _Merged:
    """What the tokens of a step get from their parts, weighed by log-sum-exp.

    Args:
        query_TKGD: whoever asks.
        size: of a value.
        sinks_H: scores that take weight and give nothing.

    Attributes:
        out: ``TKGD``, in float32.
    """

    def __init__(self, query_TKGD: Tensor, size: int, sinks_H: Tensor | None) -> None:
        shape = query_TKGD.shape[:-1]
        self.out = query_TKGD.new_zeros((*shape, size), dtype=torch.float32)
        if sinks_H is None:
            self._lse = query_TKGD.new_full(shape, float("-inf"), dtype=torch.float32)
        else:
            self._lse = sinks_H.float().view(shape[1:]).repeat(shape[0], 1, 1)

    def add(self, rows: slice | Tensor, out: Tensor, lse: Tensor) -> None:
        """One more part of some rows."""
        share = (lse - self._lse[rows]).sigmoid_()[..., None]
        self.out[rows] = self.out[rows].lerp(out.float(), share)
        self._lse[rows] = torch.logaddexp(self._lse[rows], lse)


def register() -> None:
    """Make ``attn_implementation="apr"`` known to transformers; calling it again is harmless."""
    AttentionInterface.register(NAME, _attention)
    # Every part has its own mask; transformers is not to build one.
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
