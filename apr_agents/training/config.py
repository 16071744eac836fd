"""What the training commands can be told. Plain data; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from apr_agents.errors import InvalidOption

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How gradients become steps.

    Attributes:
        rate: peak learning rate of AdamW.
        matrix_rate: peak learning rate of Muon, for hidden matrices; without it, AdamW
            trains these too.
        weight_decay: decoupled, on matrices.
        warmup: share of the training over which the rates rise.
        decay: share of the training at its end over which the rates fall to zero.
        max_norm: longer gradients are cut to this length.
        precision: what is computed in, ``float32`` or ``bfloat16``.
    """

    rate: float = 1e-4
    matrix_rate: float | None = None
    weight_decay: float = 0.01
    warmup: float = 0.03
    decay: float = 0.3
    max_norm: float = 1.0
    precision: Precision = "bfloat16"

    def factor(self, done: float) -> float:
        """The factor on the rates when this share of the training is done."""
        rising = done / self.warmup if self.warmup else 1.0
        falling = (1 - done) / self.decay if self.decay else 1.0
        return max(0.0, min(1.0, rising, falling))


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """What to train on what, and how.

    Attributes:
        model: ``bundled`` or ``local:DIRECTORY_OR_HUB_ID``.
        data: files of scripts.
        out: directory of checkpoints and logs; the model is saved in its folder ``model``.
        epochs: how often every script is learned.
        lora: rank of the adapters that are trained; 0 trains all weights.
        batch_tokens: tokens of one optimizer step, about.
        micro_tokens: tokens, padding included, that are computed at once.
        longest: tokens of the longest trie; longer ones are left out.
        held_out: scripts that are kept back for the evaluation.
        evaluate_every: optimizer steps between two evaluations.
        save_every: optimizer steps between two checkpoints.
        seed: of the order of the scripts and of new weights.
        optimization: how gradients become steps.
    """

    model: str
    data: tuple[Path, ...]
    out: Path
    epochs: int = 1
    lora: int = 0
    batch_tokens: int = 16384
    micro_tokens: int = 4096
    longest: int = 4096
    held_out: int = 64
    evaluate_every: int = 100
    save_every: int = 50
    seed: int = 0
    optimization: Optimization = field(default_factory=Optimization)


@dataclass(frozen=True, kw_only=True)
class GRPOConfig:
    """What to reinforce on which problems, and how.

    Attributes:
        model: ``bundled`` or ``local:DIRECTORY_OR_HUB_ID``.
        tasks: problems, by name; each is drawn as often as the others.
        out: directory of checkpoints, logs and samples; the model is saved in its folder
            ``model``.
        steps: how many steps of runs and learning.
        problems: in each step.
        group: runs of each problem.
        budgets: threads that a block may have; drawn for each problem.
        prices: of a thread, in units of the reward; drawn for each problem, whose question
            tells it. None: threads are free.
        depth: levels of threads below the root.
        protocol: how the model says spawn and join.
        merge: what joins show.
        max_tokens: that one thread may generate.
        temperature: at which runs are sampled.
        server: where they are sampled, ``URL`` or ``URL#MODEL``: SGLang, or vLLM with
            ``VLLM_SERVER_DEV_MODE=1``, that has this model and sees ``out``. None: in this
            process.
        lora: rank of the adapters that are trained; 0 trains all weights.
        reward: ``useful_efficiency``, ``parallel_efficiency`` or ``correctness``.
        rho: what parallel efficiency is worth.
        clip: what it is worth at most.
        divide_by_sigma: divide advantages by the standard deviation of the group, as GRPO
            does. Where all runs are right, speed then weighs as much as accuracy.
        epochs: optimizer steps on the runs of one step.
        ratio_clip: how far a token's probability may move from that at which it was sampled
            before it is learned no further.
        kl: weight of the distance from the model at the start.
        micro_tokens: tokens, padding included, that are computed at once.
        save_every: steps between two checkpoints.
        samples_every: steps between two samples that are saved to be read.
        patience: steps after which a collapse of the policy ends the training; 0: never.
        seed: of the problems and the runs.
        optimization: how gradients become steps.
    """

    model: str
    tasks: tuple[str, ...]
    out: Path
    steps: int = 100
    problems: int = 16
    group: int = 8
    budgets: tuple[int, ...] = (0, 2, 4, 8)
    prices: tuple[float, ...] = ()
    depth: int = 1
    protocol: str = "threadweaver"
    merge: str = "conclusions"
    max_tokens: int = 1024
    temperature: float = 1.0
    server: str | None = None
    lora: int = 0
    reward: str = "useful_efficiency"
    rho: float = 0.5
    clip: float = 0.2
    divide_by_sigma: bool = False
    epochs: int = 1
    ratio_clip: float = 0.2
    kl: float = 0.0
    micro_tokens: int = 4096
    save_every: int = 10
    samples_every: int = 10
    patience: int = 20
    seed: int = 0
    optimization: Optimization = field(default_factory=lambda: Optimization(rate=1e-5, decay=0))

    def __post_init__(self) -> None:
        for option, least in {"steps": 1, "problems": 1, "group": 2, "epochs": 1}.items():
            if getattr(self, option) < least:
                raise InvalidOption(option, getattr(self, option), f"at least {least}")
        if not self.temperature > 0:
            raise InvalidOption("temperature", self.temperature, "above 0")
        if not self.budgets or min(self.budgets) < 0:
            raise InvalidOption("budgets", self.budgets, "one number or more, none below 0")
