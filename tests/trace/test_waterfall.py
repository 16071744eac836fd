"""A run's waterfall as a picture."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from apr_agents.errors import InvalidOption, UnusableFile
from apr_agents.trace.trajectory import Trajectory
from apr_agents.trace.waterfall import COLOURS, CRITICAL, MOST_LABELLED, draw
from apr_agents.types import Outline
from tests.trace.runs import block, call, thread, trajectory

TEXT = "{http://www.w3.org/2000/svg}text"


def texts(path: Path) -> list[str]:
    return [text.text or "" for text in ElementTree.parse(path).iter(TEXT)]


def boxes(path: Path, colour: str) -> int:
    return len(re.findall(rf"fill: {colour}", path.read_text()))


async def test_each_thread_has_a_row_and_the_critical_path_a_colour(
    run: Trajectory, tmp_path: Path
) -> None:
    path = tmp_path / "run.svg"
    draw(run, path, "tokens")
    labels = texts(path)
    assert [each for each in labels if each.startswith("0")][-6:] == [
        "0", "0.1 a", "0.2 b", "0.2.1 d", "0.2.2 e", "0.3 c"
    ]  # fmt: skip
    assert "writes, on the critical path" in labels
    assert boxes(path, CRITICAL) > 1
    assert boxes(path, COLOURS["writing"]) > 1


@pytest.mark.parametrize(
    ("suffix", "start"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")]
)
async def test_the_suffix_says_which_kind_of_picture_it_is(
    run: Trajectory, tmp_path: Path, suffix: str, start: bytes
) -> None:
    path = tmp_path / f"run{suffix}"
    draw(run, path, "seconds")
    assert path.read_bytes().startswith(start)


def test_an_outline_is_text_whatever_is_in_it(tmp_path: Path) -> None:
    outlines = ["$\\frac{1}{", "<script>", "日本語 🧵", "a\x00\x1b[2J\ud800", "_^&"]
    children = [
        thread(f"0.{i}", [call(3)], outline=Outline(str(i), text))
        for i, text in enumerate(outlines, 1)
    ]
    path = tmp_path / "run.svg"
    draw(trajectory(thread("0", [call(1), block(*children)])), path, "tokens")
    labels = texts(path)
    for label in ("0.1 $\\frac{1}{", "0.2 <script>", "0.3 日本語 🧵", "0.4 a[2J", "0.5 _^&"):
        assert label in labels


def test_hundreds_of_threads_have_no_labels(tmp_path: Path) -> None:
    children = [thread(f"0.{i}", [call(3)]) for i in range(1, MOST_LABELLED + 200)]
    path = tmp_path / "run.svg"
    draw(trajectory(thread("0", [call(1), block(*children)])), path, "tokens")
    assert f"{MOST_LABELLED + 200} threads" in texts(path)
    assert not any(label.startswith("0.1 ") for label in texts(path))


def test_a_run_without_a_token_has_a_picture(tmp_path: Path) -> None:
    draw(trajectory(thread("0", [])), tmp_path / "run.svg", "seconds")
    assert "0" in texts(tmp_path / "run.svg")


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    run = trajectory(thread("0", [call(1)]))
    with pytest.raises(InvalidOption, match=r"\.svg, \.png or \.pdf"):
        draw(run, tmp_path / "run.gif", "tokens")
    with pytest.raises(UnusableFile, match="No such file"):
        draw(run, tmp_path / "none" / "run.svg", "tokens")
