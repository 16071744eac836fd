"""One training run in a directory: gradients, optimizers, checkpoints, logs.

Whatever is trained, and however the losses come about: SFT and P-GRPO are loops around this.
A checkpoint holds everything, so a killed run goes on with the step it was at. Several
processes (``accelerate launch`` or ``torchrun``) compute their own losses and learn together.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from apr_agents.errors import MissingExtra, UnusableFile
from apr_agents.training.config import Optimization

try:
    from accelerate import PartialState
    from accelerate.utils import reduce
except ImportError as error:
    raise MissingExtra("train", "accelerate") from error

Progress = dict[str, Any]
"""How far a loop has come: plain data of its own."""


@contextmanager
def together() -> Iterator[None]:
    """Train with the other processes that a launcher started; alone without one."""
    team = PartialState(cpu=not torch.cuda.is_available())
    try:
        yield
    finally:
        # Left open, its threads abort the process at exit.
        team.destroy_process_group()


def position() -> tuple[int, int]:
    """This process's rank, and how many processes train together."""
    team = PartialState()
    return team.process_index, team.num_processes


def summed(*numbers: float) -> list[float]:
    """Each number, summed over all processes."""
    team = PartialState()
    mine = torch.tensor(numbers, dtype=torch.float32, device=team.device)
    total: list[float] = reduce(mine, "sum").tolist()
    return total


class Learner:
    """A model that learns, from where its directory says it was.

    Args:
        model: those of its parameters are trained that require a gradient.
        directory: of the checkpoint and the logs.
        settings: what must be the same when the run goes on.

    Attributes:
        steps: of the loop around it; the loop counts.
        progress: what `save` was last given; empty at the start.
        log: ``None`` in all processes but one.

    Raises:
        UnusableFile: the directory has a checkpoint that was made with other settings.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        directory: Path,
        how: Optimization,
        settings: Mapping[str, Any],
    ) -> None:
        self.model, self.directory, self.how = model, directory, how
        self.settings = json.loads(json.dumps(settings, default=str))
        self.trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.optimizers = list(self._optimizers())
        self.steps = 0
        self.progress: Progress = {}
        directory.mkdir(parents=True, exist_ok=True)
        if self._checkpoint.exists():
            self._restore()
        self.log = Log(directory, self.steps) if position()[0] == 0 else None

    def _optimizers(self) -> Iterator[torch.optim.Optimizer]:
        how = self.how
        hidden = [p for name, p in self.trained.items() if p.ndim > 1 and "embed" not in name]
        chosen = set(map(id, hidden))
        others = [p for p in self.trained.values() if id(p) not in chosen]
        groups: list[dict[str, Any]] = [{"params": others, "weight_decay": 0.0}]
        if hidden and how.matrix_rate is not None:
            yield torch.optim.Muon(hidden, lr=how.matrix_rate, weight_decay=how.weight_decay)
        else:
            groups.append({"params": hidden, "weight_decay": how.weight_decay})
        if groups := [group for group in groups if group["params"]]:
            yield torch.optim.AdamW(groups, lr=how.rate, betas=(0.9, 0.98))

    def update(self, losses: Iterable[Tensor], *, done: float) -> dict[str, float]:
        """One optimizer step; the sum of the losses over all processes, and the gradient's length.

        Args:
            losses: of this process, each computed when the one before is done with.
            done: share of the training that is done.
        """
        total = 0.0
        for loss in losses:
            loss.backward()
            total += loss.item()
        self._sum_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.trained.values(), self.how.max_norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group.setdefault("peak", group["lr"])
                group["lr"] = group["peak"] * self.how.factor(done)
            optimizer.step()
            optimizer.zero_grad()
        return {"loss": summed(total)[0], "gradient": float(norm)}

    def _sum_gradients(self) -> None:
        parameters = self.trained.values()
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if position()[1] > 1:
            total = reduce([parameter.grad for parameter in parameters], "sum")
            for parameter, gradient in zip(parameters, total, strict=True):
                parameter.grad = gradient

    # --- what outlives a kill ------------------------------------------------------------

    @property
    def _checkpoint(self) -> Path:
        return self.directory / "checkpoint.pt"

    def save(self, progress: Progress) -> None:
        """Write a checkpoint in the place of the one before."""
        self.progress = progress
        if position()[0] > 0:
            return
        state = {
            "settings": self.settings,
            "steps": self.steps,
            "progress": progress,
            "model": {name: parameter.detach() for name, parameter in self.trained.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "random": torch.get_rng_state(),
        }
        partial = self._checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self._checkpoint)

    def _restore(self) -> None:
        try:
            state = torch.load(self._checkpoint, map_location="cpu", weights_only=True)
            then = state["settings"]
        except (OSError, RuntimeError, pickle.UnpicklingError, KeyError) as error:
            why = "it is no checkpoint of this version; remove it to start over"
            raise UnusableFile(str(self._checkpoint), why) from error
        changed = [
            f"{name}: {then.get(name)!r} then, {value!r} now"
            for name, value in self.settings.items()
            if then.get(name) != value
        ]
        if changed:
            why = f"it was made with other settings ({'; '.join(changed)}); use another directory"
            raise UnusableFile(str(self._checkpoint), why)
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(state["model"][name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        torch.set_rng_state(state["random"])
        self.steps, self.progress = state["steps"], state["progress"]


class Log:
    """Numbers of each step: in ``log.jsonl``, a line each, and for TensorBoard.

    Lines of steps after ``steps`` are dropped: a run that goes on writes them again.
    """

    def __init__(self, directory: Path, steps: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtra("train", "tensorboard") from error
        self._path = directory / "log.jsonl"
        kept = [line for line in self._lines() if json.loads(line)["step"] <= steps]
        self._path.write_text("".join(kept), encoding="utf-8")
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=steps + 1)

    def _lines(self) -> list[str]:
        if not self._path.exists():
            return []
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [line for line in lines if line.endswith("\n")]  # a kill may cut the last one

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add what is known of a step."""
        with self._path.open("a", encoding="utf-8") as file:
            print(json.dumps({"step": step, **numbers}), file=file)
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()
