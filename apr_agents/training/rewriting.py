"""Sequential traces rewritten by a model, in stages, into traces with parallel blocks.

A model finds the runs of steps that do not need each other, rewrites each so that it refers
to no other, writes their outlines, and checks that each thread can do without its siblings
(the pipeline follows ThreadWeaver's section on data). Every stage keeps what it has done in
a file of its own, so a run that was stopped, or failed halfway, goes on where it was.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage
from pydantic import BaseModel, ConfigDict, ValidationError

from apr_agents.backends.base import Backend
from apr_agents.errors import UnusableFile
from apr_agents.graph.build import create_parallel_agent
from apr_agents.limits import MOST_THREADS, Limits
from apr_agents.protocols.base import TextProtocol, TraceBlock, TraceThread, last_line
from apr_agents.training.scripts import Script, calls_of, lines
from apr_agents.training.sources import Harvest, TraceLine, checked, parsed, right_answer
from apr_agents.types import Outline

Ask = Callable[[str], Awaitable[str]]
"""Asks the model one question."""

AT_ONCE = 64
"""Traces in work."""

_THOUGHT = re.compile(r"\A\s*<think>\n?(.*)</think>.*\Z", re.DOTALL)
_PARAGRAPH = re.compile(r".+?(?:\n\s*\n\s*|\Z)", re.DOTALL)
_RANGE = re.compile(r"(\d+)(?:\s*[-–]\s*(\d+))?")
_NUMBERED = re.compile(r"^\s*(\d+)\s*[.:)]\s*(.+)$", re.MULTILINE)

STEPS = """\
Below are a problem and a solution in numbered steps. Find runs of steps that could be worked on
at the same time, because none of them needs a result of the others. They must follow each other
directly. Answer with one line for each such place, its runs separated by bars, for example
3-5 | 6-8 | 9-11
and nothing else. If there is no such place, or little would be gained, answer: none

Problem:
{question}

Solution:
{steps}"""

TEXTS = """\
Below is a part of the solution of a problem. It will be worked out by someone who has not seen
the other parts: {others}. Rewrite it so that it refers to nothing in them and needs nothing from
them. Keep every calculation and every result. End with one line that states what this part found.
Answer with the part alone.

Problem:
{question}

Part:
{part}"""

OUTLINES = """\
Below are parts of the solution of a problem, which will be worked out at the same time. Write for
each a short instruction that says what to find out, without its result. Answer with one line for
each: its number, a colon, the instruction.

Problem:
{question}

{parts}"""

CHECK = """\
Someone has to work out one part of a problem, and knows only what is below. Does the text use a
result or a name that can neither be found there nor be derived in the text itself? Answer with
one word, yes or no.

Problem:
{question}

Known so far:
{before}

Task: {outline}

Text:
{text}"""


class Part(BaseModel):
    """A run of steps that becomes a thread: the first and the last, counted from 0."""

    model_config = ConfigDict(extra="forbid")

    first: int
    last: int
    text: str = ""
    outline: str = ""


class Draft(BaseModel):
    """A trace in work.

    Attributes:
        number: of its line in the file.
        steps: what it consists of; joined, they are the trace.
        blocks: the places that become blocks, each its parts.
        dropped: why it will not be used.
    """

    model_config = ConfigDict(extra="forbid")

    number: int
    question: str
    answer: str
    steps: list[str]
    blocks: list[list[Part]] = []
    dropped: str | None = None

    def text(self, first: int, last: int) -> str:
        """The steps from ``first`` to ``last``."""
        return "".join(self.steps[first : last + 1])

    def parts(self) -> Iterator[tuple[list[Part], Part]]:
        """Every part, with the block that it belongs to."""
        for block in self.blocks:
            for part in block:
                yield block, part


async def find_steps(draft: Draft, ask: Ask) -> Draft:
    """Stage 1: which runs of steps do not need each other."""
    steps = "\n".join(f"[{i}] {step.strip()}" for i, step in enumerate(draft.steps, 1))
    said = await ask(STEPS.format(question=draft.question, steps=steps))
    blocks: list[list[Part]] = []
    behind = -1
    for line in said.splitlines():
        parts = [
            Part(first=int(first) - 1, last=int(last or first) - 1)
            for first, last in _RANGE.findall(line)
        ]
        if len(parts) > 1 and _fit(parts, behind, len(draft.steps)):
            blocks.append(parts)
            behind = parts[-1].last
    dropped = None if blocks else "no steps that do not need each other"
    return draft.model_copy(update={"blocks": blocks, "dropped": dropped})


def _fit(parts: Sequence[Part], behind: int, steps: int) -> bool:
    """Whether parts are runs that follow each other, behind a step and among ``steps``."""
    runs = all(part.first <= part.last for part in parts)
    in_turn = all(after.first == before.last + 1 for before, after in pairwise(parts))
    return runs and in_turn and behind < parts[0].first and parts[-1].last < steps


async def cut_references(draft: Draft, ask: Ask) -> Draft:
    """Stage 2: no part refers to another."""

    async def rewritten(block: list[Part], part: Part) -> Part:
        others = ", ".join(f"steps {p.first + 1}-{p.last + 1}" for p in block if p is not part)
        asked = TEXTS.format(
            question=draft.question, others=others, part=draft.text(part.first, part.last)
        )
        return part.model_copy(update={"text": (await ask(asked)).strip()})

    blocks = [
        list(await asyncio.gather(*(rewritten(block, part) for part in block)))
        for block in draft.blocks
    ]
    empty = any(not part.text for block in blocks for part in block)
    return draft.model_copy(
        update={"blocks": blocks, "dropped": "a part came to nothing" if empty else None}
    )


async def write_outlines(draft: Draft, ask: Ask) -> Draft:
    """Stage 3: what each thread is to do."""
    blocks = []
    for block in draft.blocks:
        parts = "\n\n".join(f"Part {i}:\n{part.text}" for i, part in enumerate(block, 1))
        said = await ask(OUTLINES.format(question=draft.question, parts=parts))
        written = {int(number): text.strip() for number, text in _NUMBERED.findall(said)}
        texts = [written.get(i, "") for i in range(1, len(block) + 1)]
        if len(set(texts)) < len(texts) or not all(texts):
            return draft.model_copy(update={"dropped": "its outlines are missing or the same"})
        blocks.append(
            [p.model_copy(update={"outline": t}) for p, t in zip(block, texts, strict=True)]
        )
    return draft.model_copy(update={"blocks": blocks})


async def check(draft: Draft, ask: Ask) -> Draft:
    """Stage 4: each thread can do without its siblings."""
    asked = [
        CHECK.format(
            question=draft.question,
            before=draft.text(0, block[0].first - 1) or "(nothing)",
            outline=part.outline,
            text=part.text,
        )
        for block, part in draft.parts()
    ]
    said = await asyncio.gather(*map(ask, asked))
    needs = [not re.match(r"\W*no\b", each, re.IGNORECASE) for each in said]
    dropped = f"{sum(needs)} of its threads need a sibling" if any(needs) else None
    return draft.model_copy(update={"dropped": dropped})


class Stage(NamedTuple):
    """A step of the pipeline, and the file that keeps what it has done."""

    file: str
    run: Callable[[Draft, Ask], Awaitable[Draft]]


STAGES = (
    Stage("1-steps.jsonl", find_steps),
    Stage("2-texts.jsonl", cut_references),
    Stage("3-outlines.jsonl", write_outlines),
    Stage("4-check.jsonl", check),
)


def rewritten(
    path: Path,
    folder: Path,
    model: str | Backend | BaseChatModel,
    target: TextProtocol,
    *,
    merge: str = "full",
) -> Harvest:
    """The traces in a file, a `TraceLine` each line, rewritten by a model.

    Args:
        folder: of the files of the stages.

    Raises:
        UnusableFile: a file cannot be read or written, or a stage's file is of other traces.
        Exception: the model failed; what was done by then is kept.
    """
    drafts, left_out = _drafts(path)
    folder.mkdir(parents=True, exist_ok=True)
    ask = _asking(model)
    for stage in STAGES:
        drafts = asyncio.run(_stage(stage, drafts, folder, ask))
        left_out += [f"{path}, line {d.number}: {d.dropped}" for d in drafts if d.dropped]
        drafts = [draft for draft in drafts if not draft.dropped]
    scripts = []
    for draft in drafts:
        script = _script(draft, target, merge)
        named = script.model_copy(update={"source": f"{path}, line {draft.number}, rewritten"})
        scripts.append((named, right_answer(path, draft.answer)))
    again = checked(scripts)
    return Harvest(again.scripts, left_out + again.left_out)


async def _stage(stage: Stage, drafts: Sequence[Draft], folder: Path, ask: Ask) -> list[Draft]:
    """Each draft behind the stage: from its file, or run now and added to the file."""
    path = folder / stage.file
    done = {draft.number: draft for draft in _kept(path)}
    if strange := [d.number for d in drafts if d.number in done and not _same(d, done[d.number])]:
        raise UnusableFile(str(path), f"line {strange[0]} of the traces was another one then")
    places = asyncio.Semaphore(AT_ONCE)

    async def run(draft: Draft) -> None:
        async with places:
            done[draft.number] = await stage.run(draft, ask)
        with path.open("a", encoding="utf-8") as file:
            file.write(done[draft.number].model_dump_json() + "\n")

    missing = [run(draft) for draft in drafts if draft.number not in done]
    # All end before the first failure is told: what is done is kept.
    failures = [e for e in await asyncio.gather(*missing, return_exceptions=True) if e is not None]
    if failures:
        raise failures[0]
    return [done[draft.number] for draft in drafts]


def _kept(path: Path) -> Iterator[Draft]:
    if not path.exists():
        return
    if not path.read_bytes().endswith(b"\n"):  # cut short by a kill
        with path.open("ab") as file:
            file.write(b"\n")
    for _, line in lines(path):
        with suppress(ValidationError):
            yield Draft.model_validate_json(line)


def _same(draft: Draft, other: Draft) -> bool:
    return (draft.question, draft.steps) == (other.question, other.steps)


def _drafts(path: Path) -> tuple[list[Draft], list[str]]:
    read, left_out = parsed(path, TraceLine)
    drafts = []
    for number, line in read:
        if not isinstance(line.trace, str) or not line.answer or not line.question:
            left_out.append(f"{path}, line {number}: it has no question, answer and text")
            continue
        text = _THOUGHT.sub(r"\1", line.trace)
        paragraphs = _PARAGRAPH.findall(text)
        steps = paragraphs if len(paragraphs) > 3 else text.splitlines(keepends=True)
        drafts.append(Draft(number=number, question=line.question, answer=line.answer, steps=steps))
    return drafts, left_out


def _script(draft: Draft, target: TextProtocol, merge: str) -> Script:
    ends = list(accumulate(map(len, draft.steps), initial=0))
    blocks = []
    for block in draft.blocks:
        outlines = [Outline(str(i), part.outline) for i, part in enumerate(block, 1)]
        threads = [
            TraceThread(outline.number, part.text, last_line(part.text), [])
            for outline, part in zip(outlines, block, strict=True)
        ]
        span = (ends[block[0].first], ends[block[-1].last + 1])
        blocks.append(TraceBlock(outlines, threads, None, span))
    return Script(
        question=draft.question,
        answer=draft.answer,
        budget=max(MOST_THREADS, *(len(block) for block in draft.blocks)),
        protocol=target.name,
        merge=merge,
        calls=calls_of("".join(draft.steps), blocks, target, draft.answer),
    )


def _asking(model: str | Backend | BaseChatModel) -> Ask:
    limits = Limits(max_concurrency=AT_ONCE)
    agent = create_parallel_agent(model, strategy="sequential", limits=limits)

    async def ask(question: str) -> str:
        output = await agent.ainvoke({"messages": [HumanMessage(question)]})
        text: str = output["messages"][-1].text
        return text

    return ask
