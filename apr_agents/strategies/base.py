"""What decides in the place of the root's model, where code fixes the shape of thinking: the
interface. One variant per file.

Knows a question and the threads that have finished; never models or graphs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from typing import ClassVar, NamedTuple, ParamSpec, Protocol, TypeAlias, TypeVar

from apr_agents.errors import InvalidOption
from apr_agents.protocols.base import Decision, Ended, Spawn, Undecided
from apr_agents.types import Block, Note, Outline, Step, ThreadResult

P = ParamSpec("P")
T = TypeVar("T")


class Ask(NamedTuple):
    """Threads that a plan wants, all at once.

    Attributes:
        prompts: what each is asked, as if that were the question.
        otherwise: the run's answer in case none of them may start: the best one so far.
    """

    prompts: Sequence[str]
    otherwise: str | None = None


Found = Sequence[ThreadResult | None]
"""What came of an `Ask`, in the order of its prompts; ``None`` where a thread came to nothing."""

Asking: TypeAlias = Generator[Ask, Found, T]
"""A part of a plan that comes to a ``T``."""

Plan: TypeAlias = Asking[str | None]
"""Comes to the answer; ``None``: to none."""


class Attempt(Protocol):
    """Calls a function of the user's."""

    def __call__(self, function: Callable[P, T], /, *args: P.args, **options: P.kwargs) -> T | None:
        """What it returns; ``None`` if it raises, of which the run then tells."""


class Strategy(ABC):
    """A fixed shape of thinking, on the same threads, limits and record as any other run.

    A strategy is a pure function of the question and the finished blocks. So the record of a
    run is all there is to save: a run that was killed goes on with what its threads had found,
    provided that the strategy has the same options.
    """

    name: ClassVar[str]

    @property
    def needs_logprobs(self) -> bool:
        """Whether the model must tell how likely its output is."""
        return False

    @abstractmethod
    def plan(self, question: str, attempt: Attempt) -> Plan:
        """Ask for threads until there is an answer.

        A generator without side effects: for each decision of the run it is started anew and
        sent what is known. A limit may cut a block; the rest is then asked for in the next one,
        and the plan gets all results together.

        Args:
            question: the text of the last human message.
            attempt: for functions of the user's that may raise.
        """

    def settled(self, finished: Sequence[ThreadResult], threads: int) -> bool:
        """Whether ``finished`` decides what ``threads`` threads were asked for.

        The others are then stopped. What has finished may be but a part of that: when a limit
        cuts a block, the threads of the block so far.
        """
        return len(finished) >= threads

    def decide(self, question: str, steps: Sequence[Step]) -> list[Decision]:
        """What the root does next: ask for threads, or end, with what went wrong before it.

        Never raises.

        Args:
            steps: the root's own: its finished blocks, and last a note if no thread may start.
        """
        amiss: Counter[str] = Counter()

        def attempt(function: Callable[P, T], /, *args: P.args, **options: P.kwargs) -> T | None:
            try:
                return function(*args, **options)
            except Exception as error:
                name = getattr(function, "__name__", type(function).__name__)
                amiss[f"{name} raised {type(error).__name__}: {error}"] += 1
                return None

        blocks = deque(step.threads for step in steps if isinstance(step, Block))
        declined = any(isinstance(step, Note) and step.event == "declined" for step in steps)
        answer: str | None = None
        found: Found | None = None  # starts a generator
        try:
            plan = self.plan(question, attempt)
            while True:
                prompts, answer = plan.send(found)  # type: ignore[arg-type]
                threads: list[ThreadResult] = []
                while blocks and len(threads) < len(prompts):
                    threads += blocks.popleft()
                missing = len(prompts) - len(threads)
                if missing and not attempt(self.settled, _ended(threads), len(prompts)):
                    if not declined:
                        return [Spawn(_outlines(prompts, len(threads)))]
                    if not threads:
                        break
                found = [*(useful(thread) for thread in threads), *[None] * missing]
        except StopIteration as end:
            answer = end.value
        except Exception as error:  # the answer is the one that was the best before
            amiss[f"{self.name} raised {type(error).__name__}: {error}"] += 1
        whys = [f"{why} ({times} times)" if times > 1 else why for why, times in amiss.items()]
        return [*map(Undecided, whys), _end(answer, steps, declined=declined)]


def check_counts(strategy: Strategy, *options: str) -> None:
    """Make sure that these options are counts of at least 1.

    Raises:
        InvalidOption: one is not.
    """
    for option in options:
        value = getattr(strategy, option)
        if type(value) is not int or value < 1:
            raise InvalidOption(option, value, "a whole number of at least 1")


def _outlines(prompts: Sequence[str], started: int) -> list[Outline]:
    """The outlines of the prompts that have no thread yet."""
    return [Outline(str(i), str(prompt)) for i, prompt in enumerate(prompts, 1) if i > started]


def _ended(threads: Sequence[ThreadResult]) -> list[ThreadResult]:
    return [thread for thread in threads if thread.status != "cancelled"]


def useful(thread: ThreadResult) -> ThreadResult | None:
    """The thread, if it came to something."""
    return thread if thread.status == "done" and thread.conclusion.strip() else None


def _end(answer: str | None, steps: Sequence[Step], *, declined: bool) -> Ended:
    if answer is not None:
        return Ended(str(answer))
    threads = [thread for step in steps if isinstance(step, Block) for thread in step.threads]
    lost = Counter(thread.status for thread in threads if thread.status != "done")
    why = "no more threads may start" if declined else "none of its threads came to an answer"
    if not lost:
        return Ended(None, "over_budget" if declined else "failed", why)
    told = ", ".join(f"{count} {status}" for status, count in lost.items())
    last = next(thread.reason for thread in reversed(threads) if thread.status != "done")
    return Ended(None, lost.most_common(1)[0][0], f"{why}: of {len(threads)} {told} ({last})")
