"""A run's tree as a Mermaid flowchart."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from apr_agents.trace.mermaid import MOST_THREADS, mermaid
from apr_agents.trace.trajectory import Trajectory
from apr_agents.types import Outline
from tests.trace.runs import block, call, roots, thread, trajectory

NODE = re.compile(r'    (t\d+)\["((?:[A-Za-z0-9 ]|#\d+;|<br>)*)"\]:::(done|failed|stopped)')
MORE = re.compile(r'    (t\d+more)\["\d+ more"\]')
LINK = re.compile(r"    (t\d+) (?:-->|-\.->) (t\d+(?:more)?)")
STYLE = re.compile(r"    classDef \w+ [\w:#,]+")


def parsed(chart: str) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Labels by node, and links; no line is anything else."""
    first, *lines = chart.splitlines()
    assert first == "flowchart TD"
    nodes, links = {}, []
    for line in lines:
        if node := NODE.fullmatch(line):
            nodes[node[1]] = node[2]
        elif more := MORE.fullmatch(line):
            nodes[more[1]] = ""
        elif link := LINK.fullmatch(line):
            links.append((link[1], link[2]))
        else:
            assert STYLE.fullmatch(line), line
    return nodes, links


def read(label: str) -> list[str]:
    """A label as Mermaid shows it."""
    return [re.sub(r"#(\d+);", lambda code: chr(int(code[1])), x) for x in label.split("<br>")]


async def test_a_nested_run_is_a_tree(run: Trajectory) -> None:
    nodes, links = parsed(mermaid(run))
    assert [read(label)[0].split(" ")[0] for label in nodes.values()] == [
        "0", "0.1", "0.2", "0.3", "0.2.1", "0.2.2"
    ]  # fmt: skip
    assert links == [("t0", "t1"), ("t0", "t2"), ("t0", "t3"), ("t2", "t4"), ("t2", "t5")]
    assert read(nodes["t1"])[1:] == ["a", "short <b>& sweet</b>"]
    assert read(nodes["t3"])[1:] == ["c", "failed"]


@given(st.text())
def test_no_text_is_more_than_a_label(text: str) -> None:
    child = thread("0.1", [call(1)], outline=Outline("1", text), conclusion=text)
    run = trajectory(thread("0", [call(1), block(child)], conclusion=text))
    nodes, links = parsed(mermaid(run))
    assert (len(nodes), links) == (2, [("t0", "t1")])


def test_hundreds_of_threads_are_counted_not_drawn() -> None:
    run = trajectory(thread("0", [block(*(thread(f"0.{i}", [call(1)]) for i in range(1, 501)))]))
    nodes, links = parsed(mermaid(run))
    assert len(nodes) == MOST_THREADS + 1
    assert len(links) == MOST_THREADS
    assert f'["{501 - MOST_THREADS} more"]' in mermaid(run)


@settings(max_examples=50)
@given(roots.map(trajectory))
def test_every_thread_has_one_parent(run: Trajectory) -> None:
    nodes, links = parsed(mermaid(run))
    assert sorted(child for _, child in links) == sorted(set(nodes) - {"t0"})
