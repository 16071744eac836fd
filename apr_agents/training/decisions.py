"""How a model's decisions compare with those of the scripts that it learns from."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from apr_agents.tasks.base import Problem
from apr_agents.tasks.file import FileTask
from apr_agents.trace.trajectory import Trajectory
from apr_agents.training.runs import Recorder, Run
from apr_agents.training.scripts import Script
from apr_agents.types import Outline

ANSWERS = FileTask(Path("held-out"))
"""Compares answers as numbers, or else as texts."""


class Shown(NamedTuple):
    """A script, and its run."""

    script: Script
    run: Run


class Compared(NamedTuple):
    """Shares, 0 to 1; ``None`` where nothing can be compared.

    Attributes:
        when: of the problems that may be split: split where the script does, and only there.
        how_many: of those that both split: into as many threads.
        which: of these, mean share of the script's outlines that the model wrote too.
        answers: of all problems: the script's answer.
    """

    when: float | None
    how_many: float | None
    which: float | None
    answers: float | None


async def compare(shown: Sequence[Shown], recorder: Recorder) -> Compared:
    """Have the model answer each script's question, and compare the first block of the root."""
    runs = await asyncio.gather(*(_answer(each.script, recorder) for each in shown))
    when, how_many, which = [], [], []
    for (script, ideal), run in zip(shown, runs, strict=True):
        theirs, ours = _first_block(ideal.trajectory), _first_block(run)
        if script.budget > 1:
            when.append(bool(ours) == bool(theirs))
        if theirs and ours:
            how_many.append(len(ours) == len(theirs))
            texts = {" ".join(outline.text.split()) for outline in ours}
            which.append(fmean(" ".join(each.text.split()) in texts for each in theirs))
    answers = [
        run is not None and ANSWERS.verify(Problem("", each.script.answer), run.answer)
        for each, run in zip(shown, runs, strict=True)
    ]
    return Compared(_mean(when), _mean(how_many), _mean(which), _mean(answers))


async def _answer(script: Script, recorder: Recorder) -> Trajectory | None:
    try:
        run = await recorder.run(script.question, script.rules, name="held-out")
    except Exception:  # no answer, and no split
        return None
    return run.trajectory


def _first_block(run: Trajectory | None) -> list[Outline]:
    block = next(iter(run.root.blocks), None) if run is not None else None
    return [thread.outline for thread in block.threads if thread.outline] if block else []


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
