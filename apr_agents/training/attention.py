"""Attention under an explicit (query, key) mask, registered with transformers as ``trie``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "trie"
QUERY_CHUNK = 256


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Masked attention in query chunks: a depth-first trie never looks ahead, so keys
    behind the chunk's end are skipped."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    chunks = [
        F.scaled_dot_product_attention(
            query[:, :, start : start + QUERY_CHUNK],
            key[:, :, : start + QUERY_CHUNK],
            value[:, :, : start + QUERY_CHUNK],
            attn_mask=attention_mask[:, :, start : start + QUERY_CHUNK, : start + QUERY_CHUNK],
            dropout_p=dropout if module.training else 0.0,
            scale=scaling,
        )
        for start in range(0, query.shape[2], QUERY_CHUNK)
    ]
    return torch.cat(chunks, dim=2).transpose(1, 2).contiguous(), None


def register() -> None:
    """Make ``attn_implementation="trie"`` known to transformers; calling it again is harmless."""
    AttentionInterface.register(NAME, _attention)
    # The mask comes ready-made with every batch; transformers is not to build one.
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
