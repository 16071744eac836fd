"""A Hugging Face decoder that attends through a pool. Knows tensors; never requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from apr_agents.engine import attention
from apr_agents.engine.attention import Unfit
from apr_agents.engine.linear import arrange, watching
from apr_agents.engine.plan import Plan, Rows
from apr_agents.engine.pool import Pool, Run
from apr_agents.errors import UnsupportedModel

KINDS = {"full_attention", "sliding_attention"}
"""Kinds of layers whose whole state is keys and values that stay as they are."""

PROBE, BRANCH = 12, 8
"""Tokens with which a model is tried, and how many of them two prompts share."""


class Part(NamedTuple):
    """Consecutive tokens of one sequence that a step computes.

    Attributes:
        ids: the tokens.
        position: how many tokens come before them.
        context: slots of those, a list for each stretch that sequences share.
        own: slots for their keys and values.
        samples: whether the logits behind the last of them are asked for.
    """

    ids: list[int]
    position: int
    context: list[list[Run]]
    own: list[Run]
    samples: bool


class Decoder:
    """A model and the pool it attends through.

    Args:
        model: from then on it belongs to the decoder.

    Attributes:
        context_length: tokens that one sequence may have; ``None`` where that is not known.
        vocabulary: how many tokens there are.

    Raises:
        UnsupportedModel: its attention cannot be replaced, or gives other results then. The
            model is then as it was.
    """

    def __init__(self, model: PreTrainedModel, pool: Pool) -> None:
        self.model, self.pool = model.eval(), pool
        self.vocabulary = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
        self.context_length = _context_length(model)
        attention.register()
        before = model.config._attn_implementation
        if before == attention.NAME:  # a decoder before this one saw that it works
            return
        try:
            self._adopt()
        except Exception as error:
            _set_attention(model, before)
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise UnsupportedModel(type(model).__name__, _in_one_line(error)) from error

    @torch.inference_mode()
    def _adopt(self) -> None:
        """Have the model attend through the pool, and see that nothing else changes."""
        config = self.model.config.get_text_config()
        kinds = getattr(config, "layer_types", None) or ["full_attention"]
        if self.model.config.is_encoder_decoder:
            raise Unfit("it is not a decoder alone")
        if strange := set(kinds) - KINDS:
            raise Unfit(f"it has layers of the kind {min(strange)}")
        with watching(self.model) as groups:
            expected = torch.cat([self._plain(ids) for ids in self._probe_ids()])
        _set_attention(self.model, attention.NAME)
        if self.model.config._attn_implementation != attention.NAME:
            raise Unfit("transformers cannot replace its attention")
        found, windows = self._probe()
        if len(windows) != config.num_hidden_layers:
            raise Unfit("not all of its layers are attention that can be replaced")
        window = getattr(config, "sliding_window", None)
        slides = "sliding_attention" in kinds or not hasattr(config, "layer_types")
        if window and slides and not any(windows.values()):
            raise Unfit("it keeps its sliding window to itself")
        _compare(found, expected)
        undo = arrange(groups)
        try:
            _compare(self._probe()[0], expected)
        except Exception:  # it looks into its linear layers: they stay as they were
            undo()

    def _probe_ids(self) -> tuple[list[int], list[int]]:
        """Two prompts that part with their last tokens."""
        ids = [place % self.vocabulary for place in range(1, PROBE + 2)]
        return ids[:PROBE], [*ids[:BRANCH], ids[PROBE]]

    def _plain(self, ids: list[int]) -> Tensor:
        """The last logits of a prompt, as the model gives them by itself: ``1V``."""
        inputs = torch.tensor([ids], device=self.model.device)
        logits: Tensor = self.model(input_ids=inputs, use_cache=False).logits
        return logits[:, -1]

    def _probe(self) -> tuple[Tensor, dict[int, int | None]]:
        """The same for both prompts in three steps, the last with both of them; and the windows."""
        run = self.pool.take(PROBE + 1)
        assert run is not None
        try:
            ids, other = self._probe_ids()
            half, rest = BRANCH // 2, PROBE - BRANCH
            prefix = [[run.cut(0, BRANCH)]]
            self._compute([Part(ids[:half], 0, [], [run.cut(0, half)], False)])
            second = Part(
                ids[half:BRANCH], half, [[run.cut(0, half)]], [run.cut(half, half)], False
            )
            self._compute([second])
            logits, plan = self._compute(
                [
                    Part(ids[BRANCH:], BRANCH, prefix, [run.cut(BRANCH, rest)], True),
                    Part(other[BRANCH:], BRANCH, prefix, [run.cut(PROBE, 1)], True),
                ]
            )
        finally:
            self.pool.give_back(run)
        assert logits is not None
        return logits, plan.windows

    @torch.inference_mode()
    def logits(self, parts: Sequence[Part]) -> Tensor | None:
        """Compute the parts; ``NV`` for those that sample, ``None`` where none does."""
        return self._compute(parts)[0]

    def _compute(self, parts: Sequence[Part]) -> tuple[Tensor | None, Plan]:
        ids: list[int] = []
        positions: list[int] = []
        rows: list[Rows] = []
        asked: list[int] = []
        for part in parts:
            count = len(part.ids)
            rows.append(Rows(len(ids), count, part.position, part.context, part.own))
            ids += part.ids
            positions += range(part.position, part.position + count)
            if part.samples:
                asked.append(len(ids) - 1)
        device = self.model.device
        plan = Plan(self.pool, rows, device)
        output = self.model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.tensor([positions], device=device),
            use_cache=False,
            logits_to_keep=torch.tensor(asked or [0], device=device),
            plan=plan,
        )
        return (output.logits[0] if asked else None), plan


def _compare(found: Tensor, expected: Tensor) -> None:
    """See that two ways to compute the same logits agree."""
    if found.shape != expected.shape:
        raise Unfit("it cannot give the logits of some tokens alone")
    tolerance = 1e-3 if expected.dtype == torch.float32 else 0.2
    spread = expected.float().std().clamp_min(1e-6)
    # In half precision single logits stray far without anything being wrong.
    if not (found - expected).float().square().mean().sqrt() / spread < tolerance:
        raise Unfit("its layers do something of their own")


def _in_one_line(error: Exception) -> str:
    why = str(error).strip().partition("\n")[0].rstrip(".")
    return why if isinstance(error, Unfit) else f"{type(error).__name__}: {why}"


def _set_attention(model: PreTrainedModel, name: str) -> None:
    """Without the warnings that it cannot be set: its caller sees whether it was."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        model.set_attn_implementation(name)
    finally:
        transformers_logging.set_verbosity(before)


def _context_length(model: PreTrainedModel) -> int | None:
    """Tokens of a sequence at most; up to there, positions do not depend on its length."""
    config = model.config.get_text_config()
    limits = [getattr(config, "max_position_embeddings", None)]
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in (rope, *rope.values()):
        if isinstance(parameters, dict) and parameters.get("rope_type") == "longrope":
            # Beyond that, all positions would be turned by other angles, earlier ones too.
            limits.append(parameters.get("original_max_position_embeddings"))
    return min((limit for limit in limits if limit), default=None)
