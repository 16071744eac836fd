"""P-GRPO: reinforcement of the decision to think in parallel (ThreadWeaver, section on RL).

Groups of runs through the agent that serves, on the weights as they are; every token of every
thread of a run gets the run's advantage: its reward less the mean of its group.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from apr_agents.backends.base import Backend
from apr_agents.errors import BackendFailed, InvalidOption, TrainingCollapsed
from apr_agents.graph.merge import resolve_merge
from apr_agents.tasks.base import Task
from apr_agents.tasks.registry import resolve
from apr_agents.training.collapse import Watch
from apr_agents.training.config import GRPOConfig
from apr_agents.training.forward import in_precision, padding_for, target_logprobs
from apr_agents.training.learner import Learner, position, summed, together
from apr_agents.training.models import Policy, load
from apr_agents.training.rewards import REWARDS, ParallelEfficiency, Reward, repetitions
from apr_agents.training.rollouts import Rollout, draw, roll_out
from apr_agents.training.runs import Recorder, serving
from apr_agents.training.scripts import Rules, text_protocol
from apr_agents.training.trie import Batch, Trie, by_length, collate, pack


def judge_of(config: GRPOConfig) -> Reward:
    """The reward that is asked for.

    Raises:
        InvalidOption: none is called so.
    """
    if config.reward not in REWARDS:
        raise InvalidOption("reward", config.reward, f"one of {', '.join(REWARDS)}")
    kind = REWARDS[config.reward]
    return kind(config.rho, config.clip) if issubclass(kind, ParallelEfficiency) else kind()


class Serve(Protocol):
    """Brings a model's present weights to a backend that samples at ``temperature``."""

    def __call__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, temperature: float
    ) -> AbstractContextManager[Backend]: ...


def advantages(rewards_PG: Tensor, *, divide_by_sigma: bool = False) -> Tensor:
    """``PG``: what each run of a group is worth more than the group's mean."""
    # Centre only: where all runs are right, dividing by sigma would blow their small bonus up.
    centred_PG = rewards_PG - rewards_PG.mean(-1, keepdim=True)
    if not divide_by_sigma:
        return centred_PG
    return centred_PG / (rewards_PG.std(-1, keepdim=True, correction=0) + 1e-6)


def policy_loss(logprobs_S: Tensor, sampled_S: Tensor, advantages_S: Tensor, clip: float) -> Tensor:
    """``S``: the clipped surrogate (PPO), to be minimised.

    Args:
        sampled_S: log-probabilities when the tokens were sampled.
    """
    ratio_S = (logprobs_S - sampled_S).exp()
    clipped_S = ratio_S.clamp(1 - clip, 1 + clip)
    return -torch.minimum(ratio_S * advantages_S, clipped_S * advantages_S)


def distance(logprobs_S: Tensor, reference_S: Tensor) -> Tensor:
    """``S``: an estimate of the divergence from a reference, never negative (Schulman's k3)."""
    difference_S = reference_S - logprobs_S
    return difference_S.exp() - difference_S - 1


class PGRPO:
    """A loop over steps of runs and learning.

    Args:
        tasks: where the problems are from.
        reward: instead of that of the configuration.
        serve: where the runs are sampled; by default, in this process.

    Raises:
        InvalidOption: there is no such reward, protocol or merge policy.
    """

    def __init__(
        self,
        policy: Policy,
        tasks: Sequence[Task],
        config: GRPOConfig,
        *,
        reward: Reward | None = None,
        serve: Serve = serving,
    ) -> None:
        self.policy, self.tasks, self.config, self.serve = policy, tasks, config, serve
        self.reward = reward or judge_of(config)
        for known, name in ((text_protocol, config.protocol), (resolve_merge, config.merge)):
            known(name)  # or it would be an error of every run
        self._reference = copy.deepcopy(policy.model) if config.kl and not config.lora else None
        changeable = ("out", "server", "save_every", "samples_every", "patience")
        settings = {k: v for k, v in asdict(config).items() if k not in changeable}
        self.learner = Learner(policy.model, config.out, config.optimization, settings)
        self.watch = Watch(config.patience, self.learner.progress.get("watch"))

    def run(self, report: Callable[[int, dict[str, float]], None] | None = None) -> None:
        """Train until all steps are done; ``report`` hears of every one.

        Raises:
            TrainingCollapsed: the policy has stopped deciding.
            BackendFailed: all runs of a step broke off.
        """
        learner, config = self.learner, self.config
        while learner.steps < config.steps:
            groups = self.sample()
            errors = [rollout.error for rollout in chain.from_iterable(groups)]
            if errors and errors[0] is not None and all(errors):
                raise BackendFailed(errors[0])
            rewards = [self.reward([each.outcome for each in group]) for group in groups]
            measured = self.learn(groups, rewards) | _measured(groups, rewards)
            learner.steps += 1
            collapse = self.watch.see(measured)
            if learner.log is not None:
                learner.log.write(learner.steps, measured)
                if learner.steps % config.samples_every == 0:
                    self._keep(groups, rewards)
            if report is not None:
                report(learner.steps, measured)
            if learner.steps == config.steps or learner.steps % config.save_every == 0:
                learner.save({"watch": self.watch.state})
            if collapse is not None:
                raise TrainingCollapsed(learner.steps, collapse)

    def sample(self) -> list[list[Rollout]]:
        """This process's groups of the step."""
        config = self.config
        settings = draw(
            self.tasks,
            config.problems,
            Rules(0, config.depth, config.protocol, config.merge),
            budgets=config.budgets,
            prices=config.prices,
            seed=f"{config.seed}/{self.learner.steps}",
        )
        rank, ranks = position()
        with self.serve(*self.policy, temperature=config.temperature) as backend:
            recorder = Recorder(backend, self.policy.tokenizer, max_tokens=config.max_tokens)
            return asyncio.run(roll_out(settings[rank::ranks], recorder, size=config.group))

    def learn(
        self, groups: Sequence[Sequence[Rollout]], rewards: Sequence[Sequence[float]]
    ) -> dict[str, float]:
        """Make what was worth more than its group's mean more likely."""
        worth_R = advantages(
            torch.tensor(rewards), divide_by_sigma=self.config.divide_by_sigma
        ).flatten()
        tries = [pack(rollout.pairs) for group in groups for rollout in group]
        [tokens] = summed(sum(len(trie.targets_S) for trie in tries))
        # A run that is worth its group's mean moves nothing.
        chosen = [i for i, trie in enumerate(tries) if len(trie) and (worth_R[i] or self.config.kl)]
        batches = self._batches([tries[i] for i in chosen], worth_R[chosen])
        sampled = self._logprobs(self.policy.model, batches) if self.config.epochs > 1 else None
        reference = self._reference_logprobs(batches) if self.config.kl else None
        measured: dict[str, float] = {}
        for _ in range(self.config.epochs):
            losses = (
                self._loss(
                    batch,
                    worth_B,
                    sampled[i] if sampled is not None else None,
                    reference[i] if reference is not None else None,
                )
                / max(1.0, tokens)
                for i, (batch, worth_B) in enumerate(batches)
            )
            measured = self.learner.update(losses, done=self.learner.steps / self.config.steps)
        return measured

    def _batches(self, tries: Sequence[Trie], worth_R: Tensor) -> list[tuple[Batch, Tensor]]:
        multiple = padding_for(self.policy.model)
        return [
            (collate([tries[i] for i in group], multiple=multiple), worth_R[group])
            for group in by_length(tries, self.config.micro_tokens)
        ]

    def _loss(
        self, batch: Batch, worth_B: Tensor, sampled_S: Tensor | None, reference_S: Tensor | None
    ) -> Tensor:
        logprobs_S = self._logprobs_of(self.policy.model, batch)
        if sampled_S is None:  # the weights are still those that sampled
            sampled_S = logprobs_S.detach()
        worth_S = worth_B[batch.rows_S].to(logprobs_S.device)
        loss_S = policy_loss(logprobs_S, sampled_S, worth_S, self.config.ratio_clip)
        if reference_S is not None:
            loss_S = loss_S + self.config.kl * distance(logprobs_S, reference_S)
        return loss_S.sum()

    def _logprobs_of(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        with in_precision(model, self.config.optimization.precision):
            return target_logprobs(model, batch, temperature=self.config.temperature)

    @torch.no_grad()
    def _logprobs(
        self, model: PreTrainedModel, batches: Sequence[tuple[Batch, Tensor]]
    ) -> list[Tensor]:
        return [self._logprobs_of(model, batch) for batch, _ in batches]

    def _reference_logprobs(self, batches: Sequence[tuple[Batch, Tensor]]) -> list[Tensor]:
        model: Any = self._reference or self.policy.model
        with nullcontext() if self._reference is not None else model.disable_adapter():
            return self._logprobs(model, batches)

    def _keep(
        self, groups: Sequence[Sequence[Rollout]], rewards: Sequence[Sequence[float]]
    ) -> None:
        """Save the runs that were worth least and most, for `apr-agents trace`."""
        folder = self.config.out / "samples"
        folder.mkdir(exist_ok=True)
        rollouts, worth = list(chain.from_iterable(groups)), list(chain.from_iterable(rewards))
        order = sorted(range(len(rollouts)), key=worth.__getitem__)
        for name, index in (("worst", order[0]), ("best", order[-1])):
            trajectory = rollouts[index].trajectory
            if trajectory is not None:
                file = f"{self.learner.steps:05}-{name}-{worth[index]:.3f}.json"
                trajectory.save(folder / file)


def _measured(
    groups: Sequence[Sequence[Rollout]], rewards: Sequence[Sequence[float]]
) -> dict[str, float]:
    """Means over the runs of this step, of all processes."""
    rollouts = list(chain.from_iterable(groups))
    ended = [(each.setting, each.trajectory) for each in rollouts if each.trajectory is not None]
    metrics = [trajectory.metrics() for _, trajectory in ended]
    able = [
        (setting.problem.parallel_share, float(bool(trajectory.root.blocks)))
        for setting, trajectory in ended
        if setting.rules.budget > 1
    ]
    blocks = [
        block.threads
        for _, trajectory in ended
        for thread in trajectory.root.walk()
        for block in thread.blocks
    ]
    values = {
        "reward": list(chain.from_iterable(rewards)),
        "correct": [float(each.correct) for each in rollouts],
        "errors": [float(each.error is not None) for each in rollouts],
        "split": [split for _, split in able],
        "split_parallel": [split for share, split in able if share != 0],
        "split_control": [split for share, split in able if not share],
        "repeated": [float(repeats) for threads in blocks for repeats in repetitions(threads)],
        "threads": [float(m.threads) for m in metrics],
        "critical_path": [float(m.critical_path) for m in metrics],
        "total_tokens": [float(m.total_tokens) for m in metrics],
    }
    sums = summed(*(number for each in values.values() for number in (sum(each), len(each))))
    return {
        name: total / count
        for name, total, count in zip(values, sums[::2], sums[1::2], strict=True)
        if count
    }


def _serving(config: GRPOConfig) -> Serve:
    if config.server is None:
        return serving
    from apr_agents.training.elsewhere import Elsewhere

    return Elsewhere(config.server, config.out / "rollouts")


def grpo(
    config: GRPOConfig,
    tell: Callable[[str], None] = print,
    *,
    reward: Reward | None = None,
    serve: Serve | None = None,
) -> None:
    """Reinforce a model, or go on with a run that was stopped, and save it.

    Args:
        tell: hears how it goes.
        reward: instead of that of the configuration.
        serve: where runs are sampled, instead of what the configuration says.

    Raises:
        InvalidOption: there is no such task, reward or protocol.
        UnknownModel: there is no such model.
        UnsupportedModel: not all of its layers are attention.
        UnusableFile: the directory has a checkpoint that was made with other settings.
        TrainingCollapsed: the policy has stopped deciding.
        BackendFailed: all runs of a step broke off.
    """
    with together():
        torch.manual_seed(config.seed)
        policy = load(config.model, lora=config.lora)
        tasks = [resolve(name) for name in config.tasks]
        loop = PGRPO(policy, tasks, config, reward=reward, serve=serve or _serving(config))

        def report(step: int, measured: dict[str, float]) -> None:
            if position()[0] == 0:
                numbers = ", ".join(f"{name} {value:.4g}" for name, value in measured.items())
                tell(f"step {step} of {config.steps}: {numbers}")

        loop.run(report)
        if position()[0] == 0:
            policy.save(config.out / "model", most_threads=max(config.budgets))
