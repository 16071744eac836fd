"""Best of N: several samples, and the one that scores best.

Cobbe et al., Training verifiers to solve math word problems (2021), section 4, for a verifier or
a model that rates; Adiwardana et al., Towards a human-like open-domain chatbot (2020), section
3.2 ("sample-and-rank"), for log-probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from apr_agents.errors import InvalidOption
from apr_agents.strategies.base import Ask, Attempt, Plan, Strategy, check_counts, useful
from apr_agents.strategies.scores import Score, judged, ranked, remembered, scored
from apr_agents.types import Call, ThreadResult


@dataclass(frozen=True, kw_only=True)
class BestOfN(Strategy):
    """Ask ``n`` times, and take the sample with the best score; of equal ones the first.

    It takes ``n`` model calls, and with ``score="model"`` one more for each sample. Samples of
    a model without a temperature are all the same.

    Args:
        n: samples.
        score: ``"model"``: the model rates each sample; ``"logprob"``: the mean log-probability
            of a sample's tokens, for backends that tell it; or a function from the question and
            a sample to its score. The first sample for which it returns ``True`` is taken at
            once, and the others are stopped. A sample on which it raises has no score and comes
            last.

    Raises:
        InvalidOption: an option has a value it cannot have.
    """

    name: ClassVar[str] = "best_of_n"

    n: int = 8
    score: Literal["model", "logprob"] | Score = "model"

    def __post_init__(self) -> None:
        check_counts(self, "n")
        if isinstance(self.score, str) and self.score not in ("model", "logprob"):
            raise InvalidOption("score", self.score, "'model', 'logprob' or a function")
        if callable(self.score):
            object.__setattr__(self, "score", remembered(self.score))

    @property
    def needs_logprobs(self) -> bool:
        return self.score == "logprob"

    def plan(self, question: str, attempt: Attempt) -> Plan:
        found = yield Ask([question] * self.n)
        samples = [thread for thread in found if thread]
        texts = [sample.conclusion for sample in samples]
        if not texts:
            return None
        if self.score == "model":
            scores = yield from judged(question, texts, attempt, texts[0])
        elif isinstance(self.score, str):
            scores = [attempt(mean_logprob, sample) for sample in samples]
        else:
            scores = scored(question, texts, attempt, self.score)
        return ranked(texts, scores)[0]

    def settled(self, finished: Sequence[ThreadResult], threads: int) -> bool:
        return len(finished) >= threads or any(map(self._is_verified, filter(useful, finished)))

    def _is_verified(self, sample: ThreadResult) -> bool:
        if isinstance(self.score, str) or sample.outline is None:
            return False
        try:
            return self.score(sample.outline.text, sample.conclusion) is True
        except Exception:  # the plan tells of it
            return False


def mean_logprob(sample: ThreadResult) -> float:
    """The mean log-probability of the tokens that a thread wrote.

    Raises:
        LookupError: the model did not tell.
    """
    calls = [step for step in sample.steps if isinstance(step, Call)]
    known = [call.logprob for call in calls if call.logprob is not None]
    if not known or len(known) < len(calls):
        raise LookupError("the model told no log-probability")
    return sum(known) / sum(call.tokens for call in calls)
