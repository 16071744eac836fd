"""Groups of runs, each of a question that it shares with the others of its group."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import NamedTuple

from apr_agents.tasks.base import Problem, Task
from apr_agents.trace.trajectory import Trajectory
from apr_agents.training.rewards import Outcome
from apr_agents.training.runs import Recorder
from apr_agents.training.scripts import Rules
from apr_agents.training.trie import Pair


class Setting(NamedTuple):
    """What a group is asked, and what it may use.

    Attributes:
        name: of the group; another name gives other runs.
        price: of a thread, in units of the reward; the question tells if there is one.
    """

    name: str
    task: Task
    problem: Problem
    rules: Rules
    price: float | None = None

    @property
    def question(self) -> str:
        """The question, and the price of a thread if that is set."""
        if self.price is None:
            return self.problem.question
        return f"{self.problem.question}\nA thread costs {self.price:g}."


class Rollout(NamedTuple):
    """One run.

    Attributes:
        trajectory: ``None`` if the run broke off; ``error`` then says why.
        pairs: the tokens of its model calls.
        correct: whether its answer is right.
    """

    setting: Setting
    trajectory: Trajectory | None
    pairs: list[Pair]
    correct: bool
    error: str | None = None

    @property
    def outcome(self) -> Outcome:
        """What a reward judges."""
        root = self.trajectory.root if self.trajectory else None
        return Outcome(root, self.correct, self.setting.price or 0.0)


def draw(
    tasks: Sequence[Task],
    count: int,
    rules: Rules,
    *,
    budgets: Sequence[int],
    prices: Sequence[float],
    seed: str,
) -> list[Setting]:
    """``count`` settings: tasks, problems, budgets and prices, all drawn by ``seed``."""
    rng = random.Random(seed)
    settings = []
    for place, task in enumerate(rng.choices(tasks, k=count)):
        [problem] = task.problems(1, seed=rng.randrange(2**31))
        allowed = rules._replace(budget=rng.choice(budgets))
        price = rng.choice(prices) if prices else None
        settings.append(Setting(f"{seed}/{place}", task, problem, allowed, price))
    return settings


async def roll_out(
    settings: Sequence[Setting], recorder: Recorder, *, size: int
) -> list[list[Rollout]]:
    """A group of ``size`` runs for each setting, all at once."""

    async def run(setting: Setting, place: int) -> Rollout:
        name = f"{setting.name}/{place}"
        try:
            run = await recorder.run(setting.question, setting.rules, name=name)
        except Exception as error:  # it counts as a wrong answer and costs no other run anything
            return Rollout(setting, None, [], False, f"{type(error).__name__}: {error}")
        # On a thread of its own: a verifier may block for seconds.
        answer = run.trajectory.answer
        correct = await asyncio.to_thread(setting.task.verify, setting.problem, answer)
        return Rollout(setting, run.trajectory, run.pairs, correct)

    async def group(setting: Setting) -> list[Rollout]:
        return list(await asyncio.gather(*(run(setting, i) for i in range(size))))

    return list(await asyncio.gather(*map(group, settings)))
