"""From logits to tokens. Knows requests; never slots."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from apr_agents.engine.request import Generate, Token


class Sampler:
    """The choice of one request's tokens, with random numbers of its own."""

    def __init__(self, request: Generate) -> None:
        self.request = request
        self._random: torch.Generator | None = None
        if request.temperature > 0:
            self._random = torch.Generator().manual_seed(request.seed)

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

    def choose(self, logits_V: Tensor, context: Sequence[int]) -> Token:
        """The next token behind ``context``."""
        request = self.request
        logits_V = logits_V.float().cpu().clone()
        if request.repetition_penalty != 1:
            seen = torch.tensor(sorted(set(context)))
            old = logits_V[seen]
            logits_V[seen] = torch.where(
                old > 0, old / request.repetition_penalty, old * request.repetition_penalty
            )
        if request.constraint is not None:
            request.constraint.restrict(logits_V)
        if self._random is None:
            token = int(logits_V.argmax())
        else:
            probabilities_V = self._kept(logits_V / request.temperature).softmax(-1)
            token = int(torch.multinomial(probabilities_V, 1, generator=self._random))
        if request.constraint is not None:
            request.constraint.accept(token)
        if request.logprobs is None:
            return Token(token)
        logprobs_V = logits_V.log_softmax(-1)
        best = logprobs_V.topk(min(request.logprobs, len(logprobs_V)))
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return Token(token, logprob=float(logprobs_V[token]), top=top)

    def _kept(self, logits_V: Tensor) -> Tensor:
        """The logits with all that top-k, top-p and min-p leave out at minus infinity."""
        request = self.request
        nothing = float("-inf")
        if 0 < request.top_k < len(logits_V):
            least = logits_V.topk(request.top_k).values[-1]
            logits_V = logits_V.masked_fill(logits_V < least, nothing)
        if request.top_p < 1:
            ordered, order = logits_V.softmax(-1).sort(descending=True)
            before = ordered.cumsum(-1) - ordered
            logits_V = logits_V.index_fill(0, order[before >= request.top_p], nothing)
        if request.min_p > 0:
            probabilities_V = logits_V.softmax(-1)
            logits_V = logits_V.masked_fill(
                probabilities_V < request.min_p * probabilities_V.max(), nothing
            )
        return logits_V
