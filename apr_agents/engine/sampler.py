"""From logits to tokens. Knows requests; never slots."""

from __future__ import annotations

import torch
from torch import Tensor

from apr_agents.engine.request import Generate, Token

LIKELIEST = 1024
"""Tokens among which the nucleus of top-p is looked for before all are sorted."""


class Sampler:
    """The choice of one request's tokens, with random numbers of its own."""

    def __init__(self, request: Generate) -> None:
        self.request = request
        self._random = torch.Generator().manual_seed(request.seed)
        self._seen: Tensor | None = None
        self._noted = 0

    @property
    def is_plain(self) -> bool:
        """Whether it just takes the likeliest token and reports nothing."""
        request = self.request
        return (
            request.temperature == 0
            and request.repetition_penalty == 1
            and request.constraint is None
            and request.logprobs is None
        )

    def choose(self, logits_V: Tensor, context: list[int]) -> Token:
        """The next token behind ``context``, which only grows from call to call.

        Args:
            logits_V: in float32, on the CPU; they stay as they are.
        """
        request = self.request
        adjusted_V = self._penalised(logits_V, context)
        if request.constraint is not None:
            adjusted_V = adjusted_V.clone()
            request.constraint.restrict(adjusted_V)
        if not adjusted_V.max() > float("-inf"):
            raise ValueError("No token may come next.")
        token = self._draw(adjusted_V) if request.temperature else int(adjusted_V.argmax())
        if request.constraint is not None:
            request.constraint.accept(token)
        if request.logprobs is None:
            return Token(token)
        logprobs_V = logits_V.log_softmax(-1)
        best = logprobs_V.topk(min(request.logprobs, len(logprobs_V)))
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return Token(token, logprob=float(logprobs_V[token]), top=top)

    def _penalised(self, logits_V: Tensor, context: list[int]) -> Tensor:
        penalty = self.request.repetition_penalty
        if penalty == 1:
            return logits_V
        if self._seen is None:
            self._seen = torch.zeros(logits_V.shape, dtype=torch.bool)
        self._seen[context[self._noted :]] = True
        self._noted = len(context)
        weighed_V = torch.where(logits_V > 0, logits_V / penalty, logits_V * penalty)
        return torch.where(self._seen, weighed_V, logits_V)

    def _draw(self, logits_V: Tensor) -> int:
        # Without the maximum, a very low temperature would divide to infinity.
        probabilities_V = ((logits_V - logits_V.max()) / self.request.temperature).softmax(-1)
        kept, tokens = self._kept(probabilities_V)
        reached = kept.double().cumsum(-1)
        drawn = torch.rand((), generator=self._random, dtype=torch.float64) * reached[-1]
        place = min(int(torch.searchsorted(reached, drawn, right=True)), len(kept) - 1)
        return place if tokens is None else int(tokens[place])

    def _kept(self, probabilities_V: Tensor) -> tuple[Tensor, Tensor | None]:
        """What top-k, top-p and min-p leave, in this order, and whose tokens' that is.

        Nothing comes to stand in place of what they leave out; it may just be a 0. ``None``
        for the tokens of the vocabulary as they come.
        """
        request = self.request
        kept, tokens = probabilities_V, None
        if request.top_k or request.top_p < 1:
            total, size = 1.0, min(request.top_k or LIKELIEST, len(kept))
            kept, tokens = probabilities_V.topk(size)
            if request.top_k:
                total = float(kept.sum())
            elif float(kept.sum()) < request.top_p:
                kept, tokens = probabilities_V.sort(descending=True)
            before = kept.cumsum(-1) - kept
            # The likeliest stays, however small top-p is.
            before[0] = -1
            kept = kept.masked_fill(before >= request.top_p * total, 0)
        if request.min_p:
            kept = kept.masked_fill(kept < request.min_p * kept.max(), 0)
        return kept, tokens
