"""Where data sets come from: teachers, a model's own runs, recorded runs, written traces.

Whatever the source, a script is kept only if it plays to its end without a fault and its
answer is right.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from apr_agents.backends.base import Backend
from apr_agents.errors import InvalidOption, InvalidScript, UnusableFile
from apr_agents.limits import MOST_THREADS
from apr_agents.protocols.apr import APR
from apr_agents.protocols.base import TextProtocol, TraceBlock, last_line
from apr_agents.protocols.tags import TagProtocol
from apr_agents.tasks.base import Problem, Task, Teacher
from apr_agents.tasks.file import FileTask
from apr_agents.trace.trajectory import Trajectory
from apr_agents.training.rollouts import Rollout, Setting, roll_out
from apr_agents.training.runs import Recorder, rehearse
from apr_agents.training.scripts import (
    Rules,
    Script,
    calls_of,
    fault_of,
    from_demonstration,
    from_trajectory,
    lines,
    reason,
    text_protocol,
)

_STATED = re.compile(r"\s*join\([^\n]*\)\s*\Z")
"""The end of an APR trace that states its result."""

Line = TypeVar("Line", bound=BaseModel)
Verify = Callable[[str | None], bool]


class Harvest(NamedTuple):
    """The scripts of a source, and a sentence for everything that was left out."""

    scripts: list[Script]
    left_out: list[str]

    def save(self, path: Path) -> None:
        """Write the scripts, one a line.

        Raises:
            UnusableFile: the file cannot be written.
        """
        text = "".join(script.model_dump_json() + "\n" for script in self.scripts)
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UnusableFile(str(path), error.strerror or "it cannot be written") from error


def checked(scripts: Sequence[tuple[Script, Verify]]) -> Harvest:
    """Play scripts, and keep those that go well and whose answers are right."""
    kept, left_out = [], []
    played = asyncio.run(rehearse([script for script, _ in scripts]))
    for (script, is_right), (run, fault) in zip(scripts, played, strict=True):
        if run is not None and fault is None and not is_right(run.trajectory.answer):
            fault = f"its answer is wrong: {(run.trajectory.answer or '')[:60]!r}"
        if fault is None:
            kept.append(script)
        else:
            left_out.append(f"{script.source}: {fault}")
    return Harvest(kept, left_out)


def taught(
    task: Task, problems: Sequence[Problem], budgets: Sequence[int], *, protocol: str, merge: str
) -> Harvest:
    """A teacher's demonstrations: of each problem, the budgets in turn.

    Raises:
        InvalidOption: the task has no teacher, or there is no such protocol.
    """
    if not isinstance(task, Teacher):
        raise InvalidOption("the task", task.name, "one whose problems a teacher can solve")
    spoken = text_protocol(protocol)
    scripts = []
    for number, problem in enumerate(problems):
        shown = task.demonstrate(problem, budgets[number % len(budgets)])
        script = from_demonstration(shown, spoken, merge=merge)
        named = script.model_copy(update={"source": f"teacher of {task.name}, problem {number}"})
        scripts.append((named, right_for(task, problem)))
    return checked(scripts)


def sampled(
    task: Task,
    problems: Sequence[Problem],
    budgets: Sequence[int],
    backend: Backend,
    *,
    protocol: str,
    merge: str,
    samples: int,
    keep: int,
    temperature: float,
    max_tokens: int,
) -> Harvest:
    """A model's own runs, those that are right: self-training.

    Args:
        samples: runs of each problem.
        keep: how many of them at most, those with the shortest critical paths.
    """
    settings = [
        Setting(
            f"sampled/{number}",
            task,
            problem,
            Rules(budgets[number % len(budgets)], 1, protocol, merge),
        )
        for number, problem in enumerate(problems)
    ]
    recorder = Recorder(backend, temperature=temperature, max_tokens=max_tokens)
    groups = asyncio.run(roll_out(settings, recorder, size=samples))
    scripts, left_out = [], []
    for setting, group in zip(settings, groups, strict=True):
        source = f"{backend.name} on {task.name}, problem {setting.name.partition('/')[2]}"
        right = []
        for rollout in group:
            fault = _fault(rollout)
            if rollout.trajectory is not None and fault is None:
                right.append(rollout.trajectory)
            else:
                left_out.append(f"{source}: {fault}")
        right.sort(key=lambda trajectory: trajectory.metrics().critical_path)
        for trajectory in right[:keep]:
            script = from_trajectory(setting.question, setting.problem.answer, trajectory)
            named = script.model_copy(update={"source": source})
            scripts.append((named, right_for(task, setting.problem)))
    again = checked(scripts)
    return Harvest(again.scripts, left_out + again.left_out)


def _fault(rollout: Rollout) -> str | None:
    if rollout.trajectory is None:
        return rollout.error
    return fault_of(rollout.trajectory) or (None if rollout.correct else "its answer is wrong")


class RecordedLine(BaseModel):
    """A line of a file of recorded runs: what was asked, the right answer, and the run."""

    model_config = ConfigDict(extra="ignore")

    question: str
    answer: str
    trajectory: Trajectory


def recorded(path: Path) -> Harvest:
    """The runs in a file that are right: a `RecordedLine` each line.

    Raises:
        UnusableFile: the file cannot be read.
    """
    read, left_out = parsed(path, RecordedLine)
    scripts = []
    for number, line in read:
        source = f"{path}, line {number}"
        fault = fault_of(line.trajectory)
        if fault is not None:
            left_out.append(f"{source}: {fault}")
            continue
        script = from_trajectory(line.question, line.answer, line.trajectory)
        scripts.append(
            (script.model_copy(update={"source": source}), right_answer(path, line.answer))
        )
    again = checked(scripts)
    return Harvest(again.scripts, left_out + again.left_out)


class Searches(BaseModel):
    """A trace as APR's released generator writes it.

    Attributes:
        main_calls: texts of one search up to each call and to its end; the last has it all.
        sub_calls: for each call, the searches that it started.
    """

    model_config = ConfigDict(extra="ignore")

    main_calls: list[str] = Field(min_length=1)
    sub_calls: list[list[Searches]] = []


class TraceLine(BaseModel):
    """A line of a file of written traces.

    Attributes:
        question: what was asked; without one, the head of an APR search.
        answer: the right one; without one, what the trace says.
        trace: all that was written, threads and joins included; or an APR search
            (``trace_dict`` in the files of APR's generator).
        budget: threads that might be used.
    """

    model_config = ConfigDict(extra="ignore")

    question: str = ""
    answer: str | None = None
    trace: str | Searches = Field(validation_alias=AliasChoices("trace", "trace_dict"))
    budget: int | None = None


class Passage(NamedTuple):
    """A trace as it stands, and its parallel blocks."""

    text: str
    blocks: list[TraceBlock]

    @property
    def outside(self) -> str:
        """What is not in a block."""
        edges = [0, *(edge for block in self.blocks for edge in block.span), len(self.text)]
        return "".join(self.text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True))


def converted(path: Path, source: TextProtocol, target: TextProtocol, *, merge: str) -> Harvest:
    """The traces in a file, a `TraceLine` each line, in the words of another protocol.

    Raises:
        UnusableFile: the file cannot be read.
    """
    read, left_out = parsed(path, TraceLine)
    scripts = []
    for number, line in read:
        script = _converted(line, source, target, merge)
        named = script.model_copy(update={"source": f"{path}, line {number}"})
        scripts.append((named, right_answer(path, script.answer)))
    again = checked(scripts)
    return Harvest(again.scripts, left_out + again.left_out)


def _converted(line: TraceLine, source: TextProtocol, target: TextProtocol, merge: str) -> Script:
    if isinstance(line.trace, Searches):
        head, passage = _search(line.trace, alone=isinstance(target, APR))
    else:
        head, passage = "", Passage(line.trace, source.read_trace(line.trace))
    said = source.answer(passage.outside, complete=True) or ""
    text, blocks = _thought(passage, source)
    widest = max((len(block.outlines) for block in blocks), default=0)
    return Script(
        question=line.question or head,
        answer=line.answer or said,
        budget=line.budget if line.budget is not None else max(widest, MOST_THREADS),
        protocol=target.name,
        merge=merge,
        calls=calls_of(text, blocks, target, said),
    )


def _thought(passage: Passage, protocol: TextProtocol) -> Passage:
    """What a trace says between the tag that opens its thought and its answer."""
    text, start = passage.text, 0
    if not isinstance(protocol, TagProtocol):
        return Passage(_STATED.sub("", text), list(map(_unstated, passage.blocks)))
    for name in protocol.tags.think:
        before, opened, _ = text.partition(f"<{name}>")
        start = len(before + opened) if opened and not before.strip() else start
        text = text.rpartition(f"</{name}>")[0] or text
    return _behind(Passage(text, passage.blocks), start)


def _unstated(block: TraceBlock) -> TraceBlock:
    """The block with threads whose last line is the result that they state by a call."""
    threads = []
    for thread in block.threads:
        text = _STATED.sub("", thread.text)
        if last_line(text) != thread.conclusion and "\n" not in thread.conclusion:
            text = f"{text}\n{thread.conclusion}"
        threads.append(thread._replace(text=text, blocks=list(map(_unstated, thread.blocks))))
    return block._replace(threads=threads)


def _behind(passage: Passage, start: int) -> Passage:
    moved = [
        block._replace(span=(block.span[0] - start, block.span[1] - start))
        for block in passage.blocks
    ]
    return Passage(passage.text[start:], moved)


def _search(search: Searches, *, alone: bool) -> tuple[str, Passage]:
    """The head of an APR search, and the search with the texts of those that it started.

    Args:
        alone: leave the head away: the thread will be asked it.
    """
    text = search.main_calls[-1]
    state, _, rest = text.partition("\n")
    second, _, rest = rest.partition("\n")
    head = f"{state}\n{second}"
    start = len(text) - len(rest) if alone else 0
    blocks = []
    for place, block in enumerate(APR().read_trace(text)):
        below = search.sub_calls[place] if place < len(search.sub_calls) else []
        threads = []
        for number, thread in enumerate(block.threads):
            if number < len(below):
                written = _search(below[number], alone=alone)[1]
                thread = thread._replace(text=written.text, blocks=written.blocks)
            threads.append(thread)
        blocks.append(block._replace(threads=threads))
    return head, _behind(Passage(text, blocks), start)


def parsed(path: Path, kind: type[Line]) -> tuple[list[tuple[int, Line]], list[str]]:
    """The lines of a file with their numbers, and a sentence for each that is none."""
    read, left_out = [], []
    for number, line in lines(path):
        try:
            read.append((number, kind.model_validate_json(line)))
        except ValidationError as error:
            left_out.append(str(InvalidScript(str(path), number, reason(error))))
    return read, left_out


def right_for(task: Task, problem: Problem) -> Verify:
    return lambda answer: task.verify(problem, answer)


def right_answer(path: Path, right: str) -> Verify:
    """As numbers, or else as texts."""
    return right_for(FileTask(path), Problem("", right))
