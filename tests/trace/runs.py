"""Records of runs for tests: made by hand, drawn at random, or of real runs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

from apr_agents.trace.trajectory import Trajectory
from apr_agents.types import Block, Call, Generated, Note, Outline, Step, Summary, ThreadResult

BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def thread(id: str, steps: Sequence[Step], **more: Any) -> ThreadResult:
    below = [child for step in steps if isinstance(step, Block) for child in step.threads]
    own = sum(step.tokens for step in steps if isinstance(step, Generated))
    fields = {
        "outline": None if id == "0" else Outline(id.rpartition(".")[2], f"part {id}"),
        "status": "done",
        "tokens": own + sum(child.tokens for child in below),
        "seconds": 1.5,
    }
    return ThreadResult(id=id, steps=list(steps), **{**fields, **more})


def call(tokens: int, prompt: int = 0, **more: Any) -> Call:
    return Call(**{"text": "", "tokens": tokens, "prompt_tokens": prompt, **more})


def block(*threads: ThreadResult, **more: Any) -> Block:
    return Block(**{"threads": list(threads), "joined": "", **more})


def trajectory(root: ThreadResult, **more: Any) -> Trajectory:
    fields = {"question": "Q", "answer": "A", "model": "m", "protocol": "threadweaver"}
    return Trajectory(
        **{**fields, "began": BEGAN, "merge": "full", "budget": 8, "root": root, **more}
    )


# --- at random -----------------------------------------------------------------------------------

counts = st.integers(0, 30)
seconds = st.floats(0, 5)


@st.composite
def generated(draw: st.DrawFn, kind: type[Generated]) -> Generated:
    prompt = draw(counts)
    cached = draw(st.none() | st.integers(0, prompt))
    return kind(
        text="",
        tokens=draw(counts),
        prompt_tokens=prompt,
        cached_tokens=cached,
        budget=draw(st.integers(0, 4)),
        waited=draw(seconds),
        first_token=draw(st.none() | seconds),
    )


notes = st.just(Note(event="declined", why="", told=" "))


Plan = list[Any]
"""Of a thread: its steps, and a list of plans for each block."""


def _plans(below: st.SearchStrategy[Plan] | None) -> st.SearchStrategy[Plan]:
    choices: list[Any] = [generated(Call), generated(Summary), notes]
    if below is not None:
        choices.append(st.lists(below, max_size=4))
    return st.lists(st.one_of(choices), max_size=5)


def _made(plan: Plan, id: str = "0") -> ThreadResult:
    steps: list[Step] = []
    children = 0
    for item in plan:
        if isinstance(item, list):
            numbered = enumerate(item, children + 1)
            steps.append(block(*(_made(each, f"{id}.{number}") for number, each in numbered)))
            children += len(item)
        else:
            steps.append(item)
    return thread(id, steps)


roots = _plans(_plans(_plans(None))).map(_made)
"""Root threads with two levels of threads below them."""
