"""Sequential traces become parallel ones in stages, each of which goes on where it was."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AnyMessage

from apr_agents.errors import UnusableFile
from apr_agents.protocols.threadweaver import ThreadWeaver
from apr_agents.training.rewriting import rewritten
from apr_agents.training.sources import Harvest

TRACE = """<think>
We need the area of both rooms.

The first room is 3 by 4 metres.

So it has 12 square metres.

The second, unlike the first with its 12, is 5 by 6.

So it has 30.

Together that is 42.
</think>
42"""
LINE = {"question": "How large is the flat?", "answer": "42", "trace": TRACE}

Model = Any


class Stages:
    """A model that does each stage as it should, and counts what it is asked."""

    def __init__(self, **replies: str | Exception) -> None:
        self.asked: Counter[str] = Counter()
        self.replies = replies

    def __call__(self, messages: list[AnyMessage]) -> AIMessage:
        text = messages[-1].text
        stage = next(name for start, name in {
            "Below are a problem": "steps",
            "Below is a part": "texts",
            "Below are parts": "outlines",
            "Someone has": "check",
        }.items() if text.startswith(start))  # fmt: skip
        self.asked[stage] += 1
        if stage in self.replies:
            reply = self.replies[stage]
            if isinstance(reply, Exception):
                raise reply
            return AIMessage(reply)
        return AIMessage(getattr(self, stage)(text))

    def steps(self, text: str) -> str:
        assert "[4] The second, unlike" in text
        return "2-3 | 4-5"

    def texts(self, text: str) -> str:
        part = text.rpartition("Part:\n")[2]
        return re.sub(r", unlike the first with its 12,", "", part)

    def outlines(self, text: str) -> str:
        assert "Part 2:\nThe second is 5 by 6." in text
        return "1: Find the area of the first room.\n2: Find the area of the second room."

    def check(self, text: str) -> str:
        assert "We need the area of both rooms." in text
        return "No."


@pytest.fixture
def rewrite(
    tmp_path: Path, ruled: Callable[[Callable[[list[AnyMessage]], AIMessage | str]], Model]
) -> Callable[..., Harvest]:
    """Have a model rewrite lines; the files of the stages are in one and the same folder."""

    def run(model: Stages, *rows: dict[str, str]) -> Harvest:
        path = tmp_path / "traces.jsonl"
        path.write_text("\n".join(map(json.dumps, rows or (LINE,))))
        return rewritten(path, tmp_path / "stages", ruled(model), ThreadWeaver())

    return run


def test_a_sequential_trace_becomes_a_parallel_one(rewrite: Callable[..., Harvest]) -> None:
    model = Stages()
    harvest = rewrite(model)
    assert harvest.left_out == []
    [made] = harvest.scripts
    opened, closed = made.calls["0"]
    assert opened.startswith("We need the area of both rooms.\n\n<Parallel>")
    assert "<Outline>2: Find the area of the second room.</Outline>" in opened
    assert "Together that is 42." in closed
    assert "12" not in closed
    assert "unlike" not in made.calls["0.2"][0]
    assert made.calls["0.1"][0].endswith("So it has 12 square metres.</Thread>")
    assert (made.answer, made.merge) == ("42", "full")
    assert model.asked == {"steps": 1, "texts": 2, "outlines": 1, "check": 2}


@pytest.mark.parametrize(
    ("replies", "why"),
    [
        ({"steps": "none"}, "no steps that do not need each other"),
        ({"steps": "2-3 | 5-6"}, "no steps that do not need each other"),
        ({"steps": "4-5 | 6-99"}, "no steps that do not need each other"),
        ({"steps": "3-2 | 3-4"}, "no steps that do not need each other"),
        ({"texts": "  "}, "a part came to nothing"),
        ({"outlines": "1: the same\n2: the same"}, "its outlines are missing or the same"),
        ({"outlines": "Find the areas."}, "its outlines are missing or the same"),
        ({"check": "Yes, it uses the 12."}, "2 of its threads need a sibling"),
    ],
)
def test_what_cannot_be_split_is_left_out_and_says_why(
    replies: dict[str, str], why: str, rewrite: Callable[..., Harvest], tmp_path: Path
) -> None:
    harvest = rewrite(Stages(**replies))
    assert harvest.scripts == []
    assert harvest.left_out == [f"{tmp_path / 'traces.jsonl'}, line 1: {why}"]


def test_a_stage_goes_on_where_it_was(rewrite: Callable[..., Harvest], tmp_path: Path) -> None:
    rows = [LINE, LINE | {"question": "And how large is it now?"}]
    failing = Stages(outlines=RuntimeError("the model is gone"))
    with pytest.raises(RuntimeError, match="gone"):
        rewrite(failing, *rows)
    assert failing.asked == {"steps": 2, "texts": 4, "outlines": 2}

    going_on = Stages()
    assert len(rewrite(going_on, *rows).scripts) == 2
    assert going_on.asked == {"outlines": 2, "check": 4}
    assert len(rewrite(again := Stages(), *rows).scripts) == 2
    assert not again.asked

    # A kill in the middle of a line loses that line and no other.
    last = tmp_path / "stages" / "4-check.jsonl"
    last.write_bytes(last.read_bytes()[:-30])
    assert len(rewrite(cut := Stages(), *rows).scripts) == 2
    assert cut.asked == {"check": 2}
    assert len(rewrite(again := Stages(), *rows).scripts) == 2
    assert not again.asked


def test_stages_of_other_traces_are_not_mixed_up(rewrite: Callable[..., Harvest]) -> None:
    rewrite(Stages())
    with pytest.raises(UnusableFile, match="line 1 of the traces was another one"):
        rewrite(Stages(), LINE | {"question": "What else?"})


def test_lines_without_what_it_takes_are_named(
    rewrite: Callable[..., Harvest], tmp_path: Path
) -> None:
    harvest = rewrite(Stages(), LINE, {"trace": TRACE, "question": "Q"}, {"question": "Q"})
    assert len(harvest.scripts) == 1
    assert sorted(why.partition(": ")[0] for why in harvest.left_out) == [
        f"{tmp_path / 'traces.jsonl'}, line {number}" for number in (2, 3)
    ]
