"""What searches over thoughts share: what they say to the model, and how they read its replies.

A state of a search is the thoughts so far, from the first to the latest.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from apr_agents.strategies.base import Ask, Asking, Attempt
from apr_agents.strategies.scores import RATE, number, rating

State = tuple[str, ...]

_NUMBERED = re.compile(r"^[-*•># \t]*\d+[.):]\**[ \t]+(\S.*)", re.MULTILINE)
_LINE = re.compile(r"^[ \t]*(?:[-*•>][ \t]+)*(\S.*)", re.MULTILINE)


class ThoughtPrompts:
    """Prompts and parsers of a search over thoughts; those here are for any task.

    Subclass it to fit a task: what a step is, how a state is judged, what the answer looks
    like. The functions must give the same for the same each time. One that reads a reply and
    raises has read nothing.
    """

    def propose(self, question: str, thoughts: State, count: int) -> str:
        """Asks for ``count`` different next thoughts in one reply."""
        return (
            f"{self.state(question, thoughts)}\n\nPropose {count} different next steps towards the "
            "answer, each in one line, numbered. Propose only the next step, not the whole way."
        )

    def proposals(self, text: str) -> list[str]:
        """The thoughts in such a reply: its numbered lines; if there are none, all its lines."""
        return [line.strip() for line in _NUMBERED.findall(text) or _LINE.findall(text)]

    def sample(self, question: str, thoughts: State) -> str:
        """Asks for one next thought, which is the whole reply."""
        return (
            f"{self.state(question, thoughts)}\n\nWrite the next step towards the answer, in one "
            "short paragraph. Only the next step, not the whole way."
        )

    def value(self, question: str, thoughts: State) -> str:
        """Asks how good a state is. States with the same prompt share one value."""
        return (
            f"{self.state(question, thoughts)}\n\nHow likely do these steps lead to the right "
            f"answer? Check them. {RATE}"
        )

    def worth(self, text: str) -> float | None:
        """The value in such a reply; ``None`` if it has none."""
        return rating(text)

    def vote(self, question: str, states: Sequence[State]) -> str:
        """Asks which state is the best, counted from 1."""
        choices = "\n\n".join(
            f"Choice {i}:\n" + "\n".join(thoughts) for i, thoughts in enumerate(states, 1)
        )
        return (
            f"{question}\n\nWays to begin:\n\n{choices}\n\nCompare the choices. End with one line: "
            "the number of the most promising one."
        )

    def choice(self, text: str) -> int | None:
        """The number in such a reply; ``None`` if it has none."""
        numbers = re.findall(r"\d+", text)
        return int(numbers[-1]) if numbers else None

    def answer(self, question: str, thoughts: State) -> str:
        """Asks for the answer that the thoughts lead to, on from where they are."""
        if not thoughts:
            return question
        return (
            f"{self.state(question, thoughts)}\n\nGo on from these steps to the end, then state "
            "the answer."
        )

    def is_complete(self, question: str, thoughts: State) -> bool:
        """Whether there is nothing more to think before the answer."""
        return False

    def state(self, question: str, thoughts: State) -> str:
        """A state in words, for the prompts above."""
        if not thoughts:
            return question
        return f"{question}\n\nSteps so far:\n" + "\n".join(thoughts)


GENERAL = ThoughtPrompts()
"""For any task."""


@dataclass(frozen=True)
class Thinking:
    """One search at work. The text that is passed as ``best`` is the answer if no more threads
    may start.

    Attributes:
        values: those known so far, by the prompts that asked for them.
    """

    question: str
    prompts: ThoughtPrompts
    attempt: Attempt
    values: dict[str, float | None] = field(default_factory=dict)

    def proposed(
        self, states: Sequence[State], count: int, best: str | None
    ) -> Asking[list[list[State]]]:
        """The next states of each state, ``count`` at most, from one call for each."""
        prompts = [self.prompts.propose(self.question, state, count) for state in states]
        found = yield Ask(prompts, best)
        texts = [thread.conclusion if thread else "" for thread in found]
        read = [self.attempt(self.prompts.proposals, text) or [] for text in texts]
        return [_grown(*each)[:count] for each in zip(states, read, strict=True)]

    def sampled(
        self, states: Sequence[State], count: int, best: str | None
    ) -> Asking[list[list[State]]]:
        """The next states of each state, from ``count`` calls for each; equal ones count once."""
        prompts = [self.prompts.sample(self.question, state) for state in states]
        found = yield Ask([prompt for prompt in prompts for _ in range(count)], best)
        texts = [thread.conclusion.strip() if thread else "" for thread in found]
        return [_grown(state, texts[i * count : (i + 1) * count]) for i, state in enumerate(states)]

    def valued(
        self, states: Sequence[State], times: int, best: str | None
    ) -> Asking[list[float | None]]:
        """The mean of ``times`` values of each state, where there are any."""
        prompts = [self.prompts.value(self.question, state) for state in states]
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.values]
        found = yield Ask([prompt for prompt in new for _ in range(times)], best)
        texts = [thread.conclusion if thread else None for thread in found]
        worths = [
            None if text is None else self.attempt(number, self.attempt(self.prompts.worth, text))
            for text in texts
        ]
        for i, prompt in enumerate(new):
            known = [w for w in worths[i * times : (i + 1) * times] if w is not None]
            self.values[prompt] = fmean(known) if known else None
        return [self.values[prompt] for prompt in prompts]

    def voted(
        self, states: Sequence[State], times: int, best: str | None
    ) -> Asking[list[float | None]]:
        """The share that each state has of ``times`` votes; one state needs none."""
        if len(states) < 2:
            return [1.0] * len(states)
        found = yield Ask([self.prompts.vote(self.question, states)] * times, best)
        votes = Counter(
            self.attempt(self.prompts.choice, thread.conclusion) for thread in found if thread
        )
        counts = [votes[i] for i in range(1, len(states) + 1)]
        return [count / sum(counts) if any(counts) else None for count in counts]

    def is_complete(self, state: State) -> bool:
        return bool(self.attempt(self.prompts.is_complete, self.question, state))

    def answered(self, state: State) -> Asking[str | None]:
        """The answer that a state leads to; the thoughts themselves, where that fails."""
        prompt = self.prompts.answer(self.question, state)
        (thread,) = yield Ask([prompt], as_text(state))
        return thread.conclusion if thread else as_text(state)


def as_text(state: State) -> str | None:
    """A state in the place of an answer."""
    return "\n".join(state) or None


def _grown(state: State, thoughts: Sequence[str]) -> list[State]:
    return [(*state, thought) for thought in dict.fromkeys(thoughts) if thought]
