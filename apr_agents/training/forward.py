"""What a decoder makes of packed tries: masks, and log-probabilities of the targets.

Any Hugging Face decoder whose layers are attention: transformers takes a mask as it is given.
On a GPU it is a block-sparse one for FlexAttention, elsewhere a dense one.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedModel

from apr_agents.engine.decoder import KINDS
from apr_agents.errors import UnsupportedModel
from apr_agents.training.config import Precision
from apr_agents.training.trie import Batch

FLEX, FLEX_BLOCK = "flex_attention", 128
"""transformers' name for FlexAttention; its masks come in blocks of so many tokens."""


def choose_attention(model: PreTrainedModel, *, flex: bool = True) -> None:
    """Have the model attend in the fastest way that takes a mask of our own.

    Args:
        flex: whether that may be FlexAttention, where the model is on a GPU.

    Raises:
        UnsupportedModel: not all of its layers are attention.
    """
    strange = set(getattr(model.config.get_text_config(), "layer_types", None) or KINDS) - KINDS
    if strange:
        raise UnsupportedModel(type(model).__name__, f"it has layers of the kind {min(strange)}")
    for name in (FLEX, "sdpa") if flex and model.device.type == "cuda" else ("sdpa",):
        with suppress(ValueError):  # the model does not have it
            model.set_attn_implementation(name)
            return
    model.set_attn_implementation("eager")


def padding_for(model: PreTrainedModel) -> int:
    """What the width of a batch should be a multiple of."""
    return FLEX_BLOCK if model.config._attn_implementation == FLEX else 1


def in_precision(model: PreTrainedModel, precision: Precision) -> AbstractContextManager[Any]:
    """Compute in bfloat16 where that is safe, or all in the precision of the weights."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(model.device.type, torch.bfloat16)


def target_logprobs(model: PreTrainedModel, batch: Batch, *, temperature: float = 1.0) -> Tensor:
    """Log-probability ``S`` of each target in its own context, in float32.

    Args:
        model: attends as `choose_attention` has it.
        temperature: at which the targets were sampled.
    """
    batch = batch.to(model.device)
    kept_K = batch.sources_S.unique()
    logits_BKV = model(
        input_ids=batch.ids_BT,
        position_ids=batch.positions_BT,
        attention_mask=masks(model, batch),
        use_cache=False,
        logits_to_keep=kept_K,
    ).logits
    logits_SV = logits_BKV[batch.rows_S, torch.searchsorted(kept_K, batch.sources_S)].float()
    return -F.cross_entropy(logits_SV / temperature, batch.targets_S, reduction="none")


def masks(model: PreTrainedModel, batch: Batch) -> Any:
    """The ancestor-only mask as the model takes it; per kind of layer where it has several.

    In a layer whose window slides, tokens that are further up than the window are out of sight.
    """
    config = model.config.get_text_config()
    window: int | None = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    kind = model.device.type
    half = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if half else model.dtype

    def make(window: int | None) -> Tensor | BlockMask:
        if model.config._attn_implementation == FLEX:
            return block_mask(batch, window)
        return dense_mask(batch, window, dtype)

    if "sliding_attention" in kinds:
        return {"full_attention": make(None), "sliding_attention": make(window)}
    return make(None if kinds else window)


def allowed(batch: Batch, window: int | None) -> Tensor:
    """``B1TT``: whether query sees key."""
    index_T = torch.arange(batch.ids_BT.shape[1], device=batch.ids_BT.device)
    seen_BTT = (index_T <= index_T[:, None]) & (index_T[:, None] < batch.ends_BT[:, None])
    if window is not None:
        seen_BTT &= batch.positions_BT[:, :, None] - batch.positions_BT[:, None] < window
    return seen_BTT[:, None]


def dense_mask(batch: Batch, window: int | None, dtype: torch.dtype) -> Tensor:
    """0 where query sees key, minus infinity elsewhere."""
    seen_B1TT = allowed(batch, window)
    return torch.zeros_like(seen_B1TT, dtype=dtype).masked_fill_(~seen_B1TT, float("-inf"))


def block_mask(batch: Batch, window: int | None) -> BlockMask:
    """The same, block-sparse; nothing of size ``T*T`` is kept."""
    ends_BT, positions_BT = batch.ends_BT, batch.positions_BT

    def sees(b: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (key <= query) & (query < ends_BT[b, key])
        if window is not None:
            seen = seen & (positions_BT[b, query] - positions_BT[b, key] < window)
        return seen

    rows, width = batch.ids_BT.shape
    compiled = ends_BT.device.type == "cuda"
    return create_block_mask(
        sees, rows, None, width, width, device=ends_BT.device, _compile=compiled
    )
