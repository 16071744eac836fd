"""Scripts: what a model writes in one run, call by call. Data sets are files of them.

A script holds nothing that the runtime adds: no prompt, no header, no join. When it is
played, the runtime adds just what it adds for a model, so what is trained is what inference
meets, and one data set serves every model that speaks its protocol.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from apr_agents.errors import InvalidOption, InvalidScript, UnusableFile
from apr_agents.protocols import resolve_protocol
from apr_agents.protocols.base import TextProtocol, TraceBlock, TraceThread
from apr_agents.protocols.tags import TagProtocol
from apr_agents.tasks.base import Demonstration
from apr_agents.trace.trajectory import Trajectory
from apr_agents.types import Call, Generated, Note, Summary, ThreadResult


class Rules(NamedTuple):
    """How a run may split, and how its model is spoken to.

    Attributes:
        budget: threads that a block may have, as the prompt says.
        depth: levels of threads below the root.
        protocol: name of the protocol.
        merge: name of the merge policy.
    """

    budget: int
    depth: int = 1
    protocol: str = "threadweaver"
    merge: str = "conclusions"


class Script(BaseModel):
    """One run: a line of a data set.

    Attributes:
        question: what is asked.
        answer: the right one.
        budget: threads that may be used, as the prompt says.
        protocol: name of the protocol in which the calls are written.
        merge: name of the merge policy: what joins show.
        calls: for each thread by its id, the root's ``0`` first, what its model calls write,
            one after the other, the tags at which they stop included.
        source: where it is from, for the reader.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str
    answer: str
    budget: int = Field(ge=0)
    protocol: str = "threadweaver"
    merge: str = "conclusions"
    calls: dict[str, list[str]]
    source: str = ""

    @property
    def rules(self) -> Rules:
        """What its run needs."""
        depth = max((thread.count(".") for thread in self.calls), default=0)
        return Rules(self.budget, max(1, depth), self.protocol, self.merge)


class DataSet(NamedTuple):
    """The scripts of some files, and a sentence for each line that is none."""

    scripts: list[Script]
    skipped: list[InvalidScript]


def read(paths: Iterable[Path]) -> DataSet:
    """All scripts of these files; a line that is none costs no other line anything.

    Raises:
        UnusableFile: a file cannot be read, or there is not one script in all of them.
    """
    scripts: list[Script] = []
    skipped: list[InvalidScript] = []
    for path in paths:
        for number, line in lines(path):
            try:
                scripts.append(Script.model_validate_json(line))
            except ValidationError as error:
                skipped.append(InvalidScript(str(path), number, reason(error)))
    if not scripts:
        raise UnusableFile(", ".join(map(str, paths)), "there is no script in it")
    return DataSet(scripts, skipped)


def reason(error: ValidationError) -> str:
    """What is wrong with a line, in a few words."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "the line"
    return f"{where}: {first['msg'].lower()}"


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not empty, numbered from 1.

    Raises:
        UnusableFile: the file cannot be read.
    """
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise UnusableFile(str(path), error.strerror or "it cannot be read") from error
    yield from ((i, line) for i, line in enumerate(content.split(b"\n"), 1) if line.strip())


# --- where scripts come from ---------------------------------------------------------


def calls_of(
    text: str, blocks: Sequence[TraceBlock], protocol: TextProtocol, answer: str
) -> dict[str, list[str]]:
    """What a model writes that thinks ``text``, with ``blocks`` where their spans are."""
    calls: dict[str, list[str]] = {}
    _write(calls, "0", text, blocks, protocol, answer)
    return calls


def _write(
    calls: dict[str, list[str]],
    thread: str,
    text: str,
    blocks: Sequence[TraceBlock],
    protocol: TextProtocol,
    result: str,
) -> None:
    own = calls[thread] = []
    begun, position, children = "", 0, 0
    for block in blocks:
        start, end = block.span
        own.append(begun + text[position:start] + protocol.block(block.outlines))
        for child, (_, written, conclusion, below) in enumerate(block.threads, children + 1):
            _write(calls, f"{thread}.{child}", written, below, protocol, conclusion)
        children += len(block.outlines)
        concluded = block.conclusion or "\n".join(each.conclusion for each in block.threads)
        begun, position = protocol.resume(concluded), end
    own.append(begun + text[position:] + protocol.end(result, thread=thread != "0"))


def from_demonstration(shown: Demonstration, protocol: TextProtocol, *, merge: str) -> Script:
    """A teacher's demonstration, as a model writes it."""
    block, blocks = shown.block, []
    if block is not None:
        threads = [
            TraceThread(outline.number, text, conclusion, [])
            for outline, text, conclusion in zip(
                block.outlines, block.threads, block.conclusions, strict=True
            )
        ]
        blocks = [TraceBlock(list(block.outlines), threads, None, (0, 0))]
    calls = calls_of(shown.thinking, blocks, protocol, shown.answer)
    # A thread that states its result apart from its text is not asked for a summary.
    if merge == "summary" and block is not None and isinstance(protocol, TagProtocol):
        for number, conclusion in enumerate(block.conclusions, 1):
            calls[f"0.{number}"].append(conclusion + protocol.summary_stop)
    return Script(
        question=shown.question,
        answer=shown.answer,
        budget=shown.budget,
        protocol=protocol.name,
        merge=merge,
        calls=calls,
    )


def from_trajectory(question: str, answer: str, recorded: Trajectory) -> Script:
    """What the model wrote in a recorded run; see `fault_of` for which ones are worth it."""
    protocol = text_protocol(recorded.protocol)
    calls = {thread.id: _written_by(thread, protocol) for thread in recorded.root.walk()}
    return Script(
        question=question,
        answer=answer,
        budget=recorded.budget,
        protocol=recorded.protocol,
        merge=recorded.merge,
        calls=calls,
    )


def _written_by(thread: ThreadResult, protocol: TextProtocol) -> list[str]:
    steps = [step for step in thread.steps if isinstance(step, Generated)]
    last = max((i for i, step in enumerate(steps) if isinstance(step, Call)), default=-1)
    written = []
    for place, step in enumerate(steps):
        text = step.text
        if isinstance(step, Summary):
            text += protocol.summary_stop
        elif place == last and thread.outline is not None and isinstance(protocol, TagProtocol):
            text += protocol.end("", thread=True)  # the runtime drops it
        written.append(text)
    return written


def fault_of(recorded: Trajectory) -> str | None:
    """What is wrong with the form of a run; ``None`` for one that can be learned from."""
    if recorded.answer is None:
        return "it gives no answer"
    for thread in recorded.root.walk():
        if thread.status != "done":
            return f"thread {thread.id} is {thread.status}: {thread.reason}"
        if thread.is_lane:
            return f"thread {thread.id} is its parent's lane"
        for step in thread.steps:
            if isinstance(step, Note):
                return f"a decision of thread {thread.id} is {step.event}: {step.why}"
    return None


def text_protocol(name: str) -> TextProtocol:
    """The protocol of a model that continues text that is called so.

    Raises:
        InvalidOption: none is called so.
    """
    protocol = resolve_protocol(name)
    if not isinstance(protocol, TextProtocol):
        raise InvalidOption("protocol", name, "one for a model that continues text")
    return protocol
