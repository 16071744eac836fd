"""Short ways to write records of runs."""

from __future__ import annotations

from apr_agents.types import Block, Call, Outline, Step, ThreadResult, ThreadStatus


def call(text: str, tokens: int) -> Call:
    return Call(text=text, tokens=tokens, prompt_tokens=0)


def thread(
    text: str,
    tokens: int,
    *below: ThreadResult,
    then: int = 0,
    number: str = "1",
    status: ThreadStatus = "done",
) -> ThreadResult:
    """A thread that writes ``text``, has others do something, and writes ``then`` tokens more."""
    steps: list[Step] = [call(text, tokens)]
    if below:
        steps += [Block(threads=list(below), joined=""), call("so it is", then)]
    return ThreadResult(
        id="0",
        outline=Outline(number, "a part"),
        status=status,
        tokens=tokens + then + sum(child.tokens for child in below),
        seconds=0.0,
        steps=steps,
    )
