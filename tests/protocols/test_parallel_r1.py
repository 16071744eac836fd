from __future__ import annotations

from typing import Any

import pytest

from apr_agents.errors import InvalidOption
from apr_agents.graph.build import create_parallel_agent
from apr_agents.limits import Limits
from apr_agents.protocols.base import Ended, Shown, Spawn
from apr_agents.protocols.parallel_r1 import ParallelR1
from apr_agents.types import Outline
from tests.protocols.traces import read, shape

TWO = {"1": "", "2": ""}

TRACES = {
    "as the runtime of the paper writes it": (
        "Dan has 8 marbles.\n\n<Parallel><Path> 8 + 5 = 13</Path><Path> 5 more than 8 is 13</Path>"
        "</Parallel>\n<Summary> Both give 13.</Summary>\n\nFinal Answer: 13",
        [(TWO, {"1": "8 + 5 = 13", "2": "5 more than 8 is 13"}, "Both give 13.")],
    ),
    "on lines of their own": (
        "<Parallel>\n<Path>\nBy counting:\n13\n</Path>\n<Path>\nBy adding:\n14\n</Path>\n"
        "</Parallel>\n\n<Summary>\nThe first is right.\n</Summary>",
        [(TWO, {"1": "13", "2": "14"}, "The first is right.")],
    ),
    "a summary inside the block": (
        "<Parallel><Path>a</Path><Path>b</Path><Summary>c</Summary></Parallel> d",
        [(TWO, {"1": "a", "2": "b"}, "c")],
    ),
    "two blocks, one without a summary": (
        "<Parallel><Path>a</Path><Path>b</Path><Path>c</Path></Parallel> so. "
        "<Parallel><Path>d</Path></Parallel><Summary>e</Summary>",
        [
            ({"1": "", "2": "", "3": ""}, {"1": "a", "2": "b", "3": "c"}, None),
            ({"1": ""}, {"1": "d"}, "e"),
        ],
    ),
    "numbers are part of a path": (
        "<Parallel><Path>1: first</Path><Path>1: second</Path></Parallel>",
        [(TWO, {"1": "1: first", "2": "1: second"}, None)],
    ),
    "a block within a path": (
        "<Parallel><Path>in: <Parallel><Path>x</Path><Path>y</Path></Parallel><Summary>xy</Summary>"
        " so z</Path><Path>b</Path></Parallel>\n<Summary>c</Summary>",
        [(TWO, {"1": ("so z", [(TWO, {"1": "x", "2": "y"}, "xy")]), "2": "b"}, "c")],
    ),
    "tags that are missing": (
        "<Parallel><Path>a<Path>b</Parallel>\n<Summary>c",
        [(TWO, {"1": "a", "2": "b"}, "c")],
    ),
    "no block": ("<Path>a</Path></Parallel><Summary>b</Summary><Parallel>", []),
}  # fmt: skip


@pytest.mark.parametrize("name", TRACES)
def test_a_published_trace_is_read(name: str) -> None:
    text, expected = TRACES[name]
    assert shape(ParallelR1().read_trace(text)) == expected


def test_a_block_reaches_to_the_end_of_its_summary() -> None:
    text = TRACES["as the runtime of the paper writes it"][0]
    (block,) = ParallelR1().read_trace(text)
    assert text[: block.span[0]] == "Dan has 8 marbles.\n\n"
    assert text[block.span[1] :] == "\n\nFinal Answer: 13"


# --- while the model writes ---------------------------------------------------------


@pytest.mark.parametrize("paths", [1, 2, 5])
def test_a_fixed_number_of_threads_starts_where_the_block_opens(paths: int) -> None:
    decision, text = read(ParallelR1(paths), "Two ways. <Parallel><Path>guess")
    assert isinstance(decision, Spawn)
    assert [outline.number for outline in decision.outlines] == [
        str(i) for i in range(1, paths + 1)
    ]
    assert text == "Two ways. <Parallel>"


@pytest.mark.parametrize("paths", [0, -1, 1.5, True, "2"])
def test_a_number_of_paths_that_cannot_be_is_refused(paths: Any) -> None:
    with pytest.raises(InvalidOption, match="a whole number of at least 1"):
        ParallelR1(paths)


def test_a_path_ends_at_its_tag() -> None:
    assert read(ParallelR1(), " a=4</Path>b", thread=True) == (Ended(), " a=4")


def test_all_paths_start_alike_and_come_back_closed() -> None:
    protocol = ParallelR1()
    assert protocol.thread_header(Outline("1", "")) == protocol.thread_header(Outline("2", ""))
    joined = protocol.join([Shown("1", " 4", verbatim=True), Shown("2", "</Parallel>5")])
    assert joined == "<Path> 4</Path><Path>< /Parallel>5</Path></Parallel>\n"


# --- in an agent --------------------------------------------------------------------

END = "<Summary> Both give 9.</Summary>\nFinal Answer: 9"


async def test_the_same_prompt_is_sampled_under_different_names(ask: Any, scripted: Any) -> None:
    backend = scripted({"0/0": "So. <Parallel>", "0.*/0": " 9</Path>", "0/2": END})
    agent = create_parallel_agent(backend, protocol=ParallelR1(paths=3), merge="full")
    run = await ask(agent, "How?")
    sampled = [request for request in backend.requests if "." in request.key]
    assert {request.prompt for request in sampled} == {"How?\nSo. <Parallel><Path>"}
    # Keys decide the seeds.
    assert sorted(request.key for request in sampled) == ["0.1/0", "0.2/0", "0.3/0"]
    joined = "<Path> 9</Path>" * 3
    assert backend.requests[-1].prompt == f"How?\nSo. <Parallel>{joined}</Parallel>\n"
    assert (run.answer, run.protocol) == ("Final Answer: 9", "parallel_r1")


async def test_no_more_paths_start_than_the_limits_allow_and_none_is_missed(
    ask: Any, scripted: Any
) -> None:
    backend = scripted({"0/0": "<Parallel>", "0.*/0": "9</Path>", "0/2": END})
    limits = Limits(max_threads=2)
    run = await ask(create_parallel_agent(backend, protocol=ParallelR1(4), limits=limits))
    (block,) = run.root.blocks
    assert (len(block.threads), block.left_out) == (2, [])
    assert block.joined == "<Path>9</Path><Path>9</Path></Parallel>\n"


async def test_a_run_reads_as_a_trace_of_its_own_threads(ask: Any, scripted: Any) -> None:
    backend = scripted(
        {
            "0/0": "<Parallel>",
            "0.1/0": " deeper <Parallel>",
            "0.1.*/0": " 3</Path>",
            "0.1/2": "<Summary>3</Summary> so 4</Path>",
            "0.2/0": " 5</Path>",
            "0/2": END,
        }
    )
    run = await ask(create_parallel_agent(backend, protocol="parallel_r1", merge="full"))
    nested = ("so 4", [(TWO, {"1": "3", "2": "3"}, "3")])
    read_back = shape(ParallelR1().read_trace(run.root.transcript))
    assert read_back == [(TWO, {"1": nested, "2": "5"}, "Both give 9.")]


async def test_where_no_thread_may_start_the_block_is_closed(ask: Any, scripted: Any) -> None:
    backend = scripted({"0/0": "<Parallel>", "0/2": "Final Answer: 9"})
    limits = Limits(max_threads=0)
    run = await ask(create_parallel_agent(backend, protocol="parallel_r1", limits=limits))
    assert backend.requests[-1].prompt.endswith("<Parallel>\n</Parallel>\n")
    assert (run.answer, run.metrics().threads) == ("Final Answer: 9", 0)


async def test_a_block_in_a_question_starts_nothing(ask: Any, scripted: Any) -> None:
    backend = scripted({"0/0": "4"})
    run = await ask(create_parallel_agent(backend, protocol="parallel_r1"), "<Parallel>2+2")
    assert backend.requests[0].prompt == "< Parallel>2+2\n"
    assert (run.answer, run.metrics().threads) == ("4", 0)
