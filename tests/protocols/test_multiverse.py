from __future__ import annotations

from typing import Any

import pytest

from apr_agents.graph.build import create_parallel_agent
from apr_agents.limits import Limits
from apr_agents.protocols.base import Ended, Malformed, Shown, Spawn
from apr_agents.protocols.multiverse import Multiverse
from apr_agents.types import Note, Outline
from tests.protocols.traces import read, shape

GOAL = "<Parallel>\n<Goal>\n<Outline>1: left</Outline>\n<Outline>2: right</Outline>\n</Goal>"

TRACES = {
    "as the figures show it": (
        "Let's think in parallel! <Parallel> <Goal> Two cases are to be told apart."
        " <Outline> 1: n is even </Outline> <Outline> 2: n is odd </Outline> </Goal>"
        " <Path> 1: Then n = 2k, so n² = 4k². It leaves 0. </Path>"
        " <Path> 2: Then n = 2k+1. It leaves 1. </Path>"
        " <Conclusion> A square leaves 0 or 1. </Conclusion> </Parallel> So never 2.",
        [
            (
                {"1": "n is even", "2": "n is odd"},
                {"1": "Then n = 2k, so n² = 4k². It leaves 0.", "2": "Then n = 2k+1. It leaves 1."},
                "A square leaves 0 or 1.",
            )
        ],
    ),
    "numbers with a full stop": (
        "<Parallel><Goal>Solve both.\n<Outline> 1.small x</Outline>\n"
        "<Outline> 2.large x</Outline>\n</Goal>\n<Path> 1. Let's see: x < 3.5\n</Path>\n"
        "<Path> 2. x > 12.5\n</Path>\n<Conclusion>3.5 and 12.5</Conclusion></Parallel>",
        [
            (
                {"1": "small x", "2": "large x"},
                {"1": "Let's see: x < 3.5", "2": "x > 12.5"},
                "3.5 and 12.5",
            )
        ],
    ),
    "a block within a path": (
        "<Think>\nFirst.\n<Parallel>\n<Goal>\n<Outline>\n1: factor\n</Outline>\n<Outline>\n"
        "2: guess\n</Outline>\n</Goal>\n<Path>\n1: I look at both primes.\n<Parallel>\n<Goal>\n"
        "<Outline>\n1.1: prime 2\n</Outline>\n<Outline>\n1.2: prime 3\n</Outline>\n</Goal>\n"
        "<Path>\n1.1: 2 divides it 4 times\n</Path>\n<Path>\n1.2: 3 divides it twice\n</Path>\n"
        "<Conclusion>\n16 · 9\n</Conclusion>\n</Parallel>\nThat is 144.\n</Path>\n"
        "<Path>\n2: It looks like 144.\n</Path>\n"
        "<Conclusion>\nBoth say 144.\n</Conclusion>\n</Parallel>\n</Think>\n144",
        [
            (
                {"1": "factor", "2": "guess"},
                {
                    "1": (
                        "That is 144.",
                        [
                            (
                                {"1.1": "prime 2", "1.2": "prime 3"},
                                {
                                    "1.1": "2 divides it 4 times",
                                    "1.2": "3 divides it twice",
                                },
                                "16 · 9",
                            )
                        ],
                    ),
                    "2": "It looks like 144.",
                },
                "Both say 144.",
            )
        ],
    ),
    "tags that are missing": (
        "<Parallel><Goal><Outline>1: a<Outline>2: b</Goal><Path>1: x<Path>2: y\n<Conclusion>z"
        "</Parallel>\nNext:\n<Goal><Outline>1: c</Outline></Goal><Path>w",
        [
            ({"1": "a", "2": "b"}, {"1": "x", "2": "y"}, "z"),
            ({"1": "c"}, {"1": "w"}, None),
        ],
    ),
    "a block inside a path that nobody closed": (
        "<Parallel><Goal><Outline>1: a</Outline><Outline>2: b</Outline></Goal><Path>1: in:"
        "<Parallel><Goal><Outline>1.1: c</Outline></Goal><Path>1.1: u</Path><Conclusion>v"
        "</Conclusion></Path><Path>2: y</Path><Conclusion>z</Conclusion></Parallel>",
        [
            (
                {"1": "a", "2": "b"},
                {"1": ("v", [({"1.1": "c"}, {"1.1": "u"}, "v")]), "2": "y"},
                "z",
            )
        ],
    ),
    "doubles, gaps and paths without a number": (
        "<Parallel>\n<Goal>\n<Outline>2: b</Outline><Outline>2: again</Outline>"
        "<Outline>5: e</Outline><Outline>none</Outline>\n</Goal>\n<Path>by place</Path>"
        "<Path>5: e!</Path><Path>5: once more</Path><Path>third</Path>\n</Parallel>",
        [
            (
                {"2": "b", "5": "e"},
                {"2": "by place", "5": "e!", "3": "third"},
                None,
            )
        ],
    ),
    "an answer that quotes the tags": (
        f"{GOAL}<Path>1: 4</Path><Path>2: 5</Path></Parallel>\n</think>\nI wrote {GOAL}</Parallel>",
        [({"1": "left", "2": "right"}, {"1": "4", "2": "5"}, None)],
    ),
    "no block": ("4. </Path></Goal></Parallel><Conclusion>4</Conclusion><Path>1: x</Path>", []),
}  # fmt: skip


@pytest.mark.parametrize("name", TRACES)
def test_a_published_trace_is_read(name: str) -> None:
    text, expected = TRACES[name]
    assert shape(Multiverse().read_trace(text)) == expected


def test_spans_tell_where_blocks_are_in_the_text_they_are_part_of() -> None:
    text = TRACES["a block within a path"][0]
    (block,) = Multiverse().read_trace(text)
    start, end = block.span
    assert text[start:end].startswith("<Parallel>\n<Goal>\n<Outline>\n1: factor")
    assert text[end:] == "\n</Think>\n144"
    path = block.threads[0]
    (inner,) = path.blocks
    assert path.text[: inner.span[0]] == " I look at both primes.\n"
    assert path.text[inner.span[1] :] == "\nThat is 144.\n"


# --- while the model writes ---------------------------------------------------------


def test_threads_start_where_the_goal_closes() -> None:
    outlines = [Outline("1", "left"), Outline("2", "right")]
    assert read(Multiverse(), f"So. {GOAL}\n<Path>") == (Spawn(outlines), f"So. {GOAL}")
    assert Multiverse().block(outlines) == GOAL


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("so </Goal>", "</Goal> without <Goal>"),
        ("<Parallel><Goal>find x</Goal>", "no numbered outline in the block"),
    ],
)
def test_a_goal_that_cannot_be_read_is_malformed(text: str, why: str) -> None:
    assert read(Multiverse(), text) == (Malformed(why), text)


def test_tags_behind_either_spelling_of_the_thought_are_inert() -> None:
    for tag in ("</think>", "</Think>"):
        assert read(Multiverse(), f"4{tag}{GOAL}", ends=True) == (Ended(), f"4{tag}{GOAL}")
        assert Multiverse().answer(f"thought{tag}\n4 ", complete=False) == "4"


def test_paths_come_back_on_lines_of_their_own() -> None:
    joined = Multiverse().join([Shown("1", " 4\n", verbatim=True), Shown("2", "<Path>5")])
    assert joined == "\n<Path>\n1: 4\n</Path>\n<Path>\n2: < Path>5</Path>"


@pytest.mark.parametrize(
    ("text", "conclusion"),
    [
        (" 2+2\n=4\n", "=4"),
        (" a <Conclusion>both</Conclusion></Parallel>\nso 7\n", "so 7"),
        (" a <Conclusion>both</Conclusion>\n</Parallel>\n", "both"),
        ("", ""),
    ],
)
def test_a_path_comes_to_its_last_line_or_to_the_conclusion_of_its_last_block(
    text: str, conclusion: str
) -> None:
    assert Multiverse().conclusion(text) == conclusion


# --- in an agent --------------------------------------------------------------------

END = "\n<Conclusion>\n9\n</Conclusion>\n</Parallel>\n</Think>\n9"


async def test_a_block_fans_out_and_the_model_concludes(ask: Any, scripted: Any) -> None:
    backend = scripted(
        {"0/0": f"Split. {GOAL}", "0.1/0": " 2+2\n4</Path>", "0.2/0": " 5</Path> more", "0/2": END}
    )
    run = await ask(create_parallel_agent(backend, protocol="multiverse", merge="full"), "How?")
    prompts = {request.key: request.prompt for request in backend.requests}
    assert prompts["0/0"] == "How?\nThreads: 8\n<think>\n"
    split = f"{prompts['0/0']}Split. {GOAL}"
    assert prompts["0.2/0"] == f"{split}\n<Path>\n2:"
    assert prompts["0/2"] == f"{split}\n<Path>\n1: 2+2\n4</Path>\n<Path>\n2: 5</Path>"
    assert (run.answer, run.protocol) == ("9", "multiverse")


async def test_a_run_reads_as_a_trace_of_its_own_threads(ask: Any, scripted: Any) -> None:
    inner = "<Parallel><Goal><Outline>1.1: deep</Outline></Goal>"
    backend = scripted(
        {
            "0/0": GOAL,
            "0.1/0": f" deeper: {inner}",
            "0.1.1/0": " 3</Path>",
            "0.1/2": "<Conclusion>3</Conclusion></Parallel>\nso 4</Path>",
            "0.2/0": " 5</Path>",
            "0/2": END,
        }
    )
    run = await ask(create_parallel_agent(backend, protocol=Multiverse(), merge="full"))
    nested = ("so 4", [({"1.1": "deep"}, {"1.1": "3"}, "3")])
    read_back = Multiverse().read_trace(run.root.transcript)
    assert shape(read_back) == [({"1": "left", "2": "right"}, {"1": nested, "2": "5"}, "9")]
    threads = run.root.blocks[0].threads
    assert [t.text for t in read_back[0].threads] == [t.transcript for t in threads]
    assert [t.conclusion for t in threads] == ["so 4", "5"]


@pytest.mark.parametrize("limits", [Limits(max_threads=0), Limits(max_depth=0)])
async def test_where_no_thread_may_start_the_model_goes_on_alone(
    ask: Any, scripted: Any, limits: Limits
) -> None:
    backend = scripted({"0/0": GOAL, "0/2": "4+5</think>9"})
    run = await ask(create_parallel_agent(backend, protocol="multiverse", limits=limits))
    assert backend.requests[-1].prompt.endswith(f"{GOAL}\n</Parallel>\n")
    assert (run.answer, [step.kind for step in run.root.steps]) == ("9", ["call", "note", "call"])


async def test_outlines_beyond_the_limit_are_left_out_and_told(ask: Any, scripted: Any) -> None:
    backend = scripted({"0/0": GOAL, "0.1/0": " 4</Path>", "0/2": END})
    limits = Limits(max_threads=1)
    run = await ask(create_parallel_agent(backend, protocol="multiverse", limits=limits))
    (block,) = run.root.blocks
    assert [outline.number for outline in block.left_out] == ["2"]
    assert "\n2: (not started: " in block.joined


async def test_a_block_that_cannot_be_read_is_noted_and_the_run_goes_on(
    ask: Any, scripted: Any
) -> None:
    backend = scripted({"0/0": "<Parallel><Goal>find x</Goal>", "0/2": "4</think>4"})
    run = await ask(create_parallel_agent(backend, protocol="multiverse"))
    note = run.root.steps[1]
    assert isinstance(note, Note)
    assert (note.event, note.why) == ("malformed", "no numbered outline in the block")
    assert (run.answer, run.root.status) == ("4", "done")


async def test_tags_in_a_question_or_a_result_start_nothing(ask: Any, scripted: Any) -> None:
    backend = scripted(
        {"0/0": GOAL, "0.*/0": f" \n<Conclusion>{GOAL[:30]}</Conclusion></Path>", "0/2": END}
    )
    run = await ask(create_parallel_agent(backend, protocol="multiverse"), GOAL)
    assert "<Goal>" not in backend.requests[0].prompt
    assert run.root.blocks[0].joined.count("<Goal>") == 0
    assert len(run.root.blocks) == 1
