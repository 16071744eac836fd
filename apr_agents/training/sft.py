"""Supervised fine-tuning on packed tries, for any Hugging Face decoder."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from apr_agents.errors import UnusableFile
from apr_agents.training.config import Precision, SFTConfig
from apr_agents.training.decisions import Shown, compare
from apr_agents.training.forward import in_precision, padding_for, target_logprobs
from apr_agents.training.learner import Learner, position, summed, together
from apr_agents.training.models import Policy, load, tags_of
from apr_agents.training.runs import Recorder, rehearse, serving
from apr_agents.training.scripts import Script, read, text_protocol
from apr_agents.training.trie import Batch, Trie, by_length, collate, pack

StepStream = Callable[[int, float], Iterable[list[Batch]]]
"""``stream(shard, done)`` yields the steps of one shard, each as this process's batches;
``done`` runs from 0 to 1."""

Report = Callable[[int, dict[str, float]], None]
"""Hears of a step: its number, and what was measured."""


class SFT:
    """A loop over a stream of batches.

    Args:
        stream: the steps; those of a shard must be the same whenever it is asked for.
        tokens: how many to train on, padding not counted.
        save_every: optimizer steps between two checkpoints.
    """

    def __init__(
        self, learner: Learner, stream: StepStream, *, tokens: int, save_every: int
    ) -> None:
        self.learner, self.stream = learner, stream
        self.goal, self.save_every = tokens, save_every
        start = learner.progress
        self.tokens: int = start.get("tokens", 0)
        self.shard: int = start.get("shard", 0)
        self._first: int = start.get("step", 0)

    @property
    def done(self) -> float:
        """Share of the tokens that have been learned."""
        return min(1.0, self.tokens / self.goal)

    def run(self, report: Report | None = None) -> None:
        """Train until the tokens are used up; ``report`` hears of every step."""
        while self.done < 1:
            for index, batches in enumerate(self.stream(self.shard, self.done)):
                if index < self._first:
                    continue
                measured = self._step(batches)
                self.learner.steps += 1
                if self.learner.log is not None:
                    self.learner.log.write(self.learner.steps, measured)
                if report is not None:
                    report(self.learner.steps, measured)
                if self.done == 1 or self.learner.steps % self.save_every == 0:
                    progress = {"tokens": self.tokens, "shard": self.shard, "step": index + 1}
                    self.learner.save(progress)
                if self.done == 1:
                    return
            self.shard, self._first = self.shard + 1, 0

    def _step(self, batches: Sequence[Batch]) -> dict[str, float]:
        tokens, targets = summed(
            sum(batch.tokens for batch in batches), sum(len(batch.targets_S) for batch in batches)
        )
        # Every target weighs the same, in whichever batch and process it is.
        losses = (self._loss(batch) / targets for batch in batches)
        measured = self.learner.update(losses, done=self.done)
        self.tokens += int(tokens)
        return measured | {"tokens": self.tokens}

    def _loss(self, batch: Batch) -> Tensor:
        model = self.learner.model
        with in_precision(model, self.learner.how.precision):
            return -target_logprobs(model, batch).sum()


def sft(config: SFTConfig, tell: Callable[[str], None] = print) -> None:
    """Train a model on scripts, or go on with a run that was stopped, and save it.

    Args:
        tell: hears of what is left out, and how it goes.

    Raises:
        UnusableFile: a file cannot be read, or nothing can be learned from it; or the
            directory has a checkpoint that was made with other settings.
        UnknownModel: there is no such model.
        UnsupportedModel: not all of its layers are attention.
    """
    with together():
        torch.manual_seed(config.seed)
        if position()[0] > 0:
            tell = _nobody
        data = read(config.data)
        for skipped in data.skipped:
            tell(f"Left out: {skipped}")
        protocols = sorted({script.protocol for script in data.scripts})
        tags = [tag for name in protocols for tag in tags_of(text_protocol(name))]
        policy = load(config.model, lora=config.lora, tags=tags)
        shown = _played(data.scripts, policy, config.longest, tell)
        random.Random(config.seed).shuffle(shown)
        held_out, learned = shown[: config.held_out], shown[config.held_out :]
        tries = [pack(each.run.pairs) for each in learned]
        if not tries:
            raise UnusableFile(
                ", ".join(map(str, config.data)), "it has no more scripts than are held out"
            )
        _train(config, policy, tries, held_out, tell)
        if position()[0] == 0:
            most = max(script.budget for script in data.scripts)
            policy.save(config.out / "model", most_threads=most)


def _nobody(line: str) -> None:
    """Hears it in all processes but one."""


def _train(
    config: SFTConfig,
    policy: Policy,
    tries: Sequence[Trie],
    held_out: Sequence[Shown],
    tell: Callable[[str], None],
) -> None:
    settings = {k: v for k, v in asdict(config).items() if k not in ("out", "save_every")}
    learner = Learner(policy.model, config.out, config.optimization, settings)
    loop = SFT(
        learner,
        epochs(tries, policy, config),
        tokens=config.epochs * sum(map(len, tries)),
        save_every=config.save_every,
    )

    def report(step: int, measured: dict[str, float]) -> None:
        last = loop.done == 1
        if position()[0] > 0 or not (held_out and (last or step % config.evaluate_every == 0)):
            return
        found = evaluate(
            policy,
            held_out,
            micro_tokens=config.micro_tokens,
            precision=config.optimization.precision,
        )
        if learner.log is not None:
            learner.log.write(step, found)
        tell(
            f"{loop.done:.0%}, step {step}: " + ", ".join(f"{k} {v:.4g}" for k, v in found.items())
        )

    loop.run(report)


def _played(
    scripts: Sequence[Script], policy: Policy, longest: int, tell: Callable[[str], None]
) -> list[Shown]:
    """The scripts that can be learned from, played once with the model's tokenizer."""
    shown = []
    for number, (script, (run, fault)) in enumerate(
        zip(scripts, asyncio.run(rehearse(scripts, policy.tokenizer)), strict=True), 1
    ):
        if run is not None and fault is None:
            tokens = len(pack(run.pairs))
            fault = f"it has {tokens} tokens" if tokens > longest else None
        if run is not None and fault is None:
            shown.append(Shown(script, run))
        else:
            tell(f"Left out: script {number} ({script.question[:60]!r}): {fault}.")
    return shown


def epochs(tries: Sequence[Trie], policy: Policy, config: SFTConfig) -> StepStream:
    """All tries once a shard, in an order of its own."""

    def stream(epoch: int, _: float) -> Iterator[list[Batch]]:
        order = list(range(len(tries)))
        random.Random(f"{config.seed}/{epoch}").shuffle(order)
        rank, ranks = position()
        for step in _steps((tries[i] for i in order), config.batch_tokens):
            groups = list(by_length(step, config.micro_tokens))
            yield [
                collate([step[i] for i in group], multiple=padding_for(policy.model))
                for group in groups[rank::ranks]
            ]

    return stream


def _steps(tries: Iterable[Trie], tokens: int) -> Iterator[list[Trie]]:
    """Tries in turn, so many that they have ``tokens`` together."""
    step: list[Trie] = []
    for trie in tries:
        step.append(trie)
        if sum(map(len, step)) >= tokens:
            yield step
            step = []
    if step:
        yield step


def evaluate(
    policy: Policy, held_out: Sequence[Shown], *, micro_tokens: int, precision: Precision
) -> dict[str, float]:
    """The loss on scripts that are not learned, and how the model itself decides on them."""
    tries = [pack(each.run.pairs) for each in held_out]
    total = targets = 0.0
    with torch.no_grad(), in_precision(policy.model, precision):
        for group in by_length(tries, micro_tokens):
            batch = collate([tries[i] for i in group], multiple=padding_for(policy.model))
            total -= float(target_logprobs(policy.model, batch).sum())
            targets += len(batch.targets_S)
    longest = max(len(pair.completion) for each in held_out for pair in each.run.pairs)
    with serving(*policy, temperature=0.0) as backend:
        recorder = Recorder(backend, policy.tokenizer, max_tokens=2 * longest)
        found = asyncio.run(compare(held_out, recorder))
    known = {name: share for name, share in found._asdict().items() if share is not None}
    return {"held_out_loss": total / targets} | known
