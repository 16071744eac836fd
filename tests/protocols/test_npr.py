from __future__ import annotations

from typing import Any

import pytest

from apr_agents.graph.build import create_parallel_agent
from apr_agents.limits import Limits
from apr_agents.protocols.base import Ended, Malformed, Shown, Spawn
from apr_agents.protocols.npr import NPR
from apr_agents.types import Note, Outline
from tests.protocols.traces import read, shape

PLANS = "<guideline>\n<plan>1: count</plan>\n<plan>2: bound</plan>\n</guideline>"

TRACES = {
    "two rounds": (
        "<guideline>\n<plan>1: Try small cases.</plan>\n<plan>2: Look for an invariant.</plan>\n"
        "</guideline>\n<step>\n1: For n = 1, 2, 3 it is 1, 3, 6.\n</step>\n<step>\n"
        "2: The sum grows by n.\n</step>\n<takeaway>\nBoth say n(n+1)/2.\n</takeaway>\n\n"
        "<guideline>\n<plan>1: Put in 10.</plan>\n</guideline>\n<step>\n1: 10·11/2 = 55\n</step>\n"
        "<takeaway>\nIt is 55.\n</takeaway>\n\nThe sum is \\boxed{55}.",
        [
            (
                {"1": "Try small cases.", "2": "Look for an invariant."},
                {"1": "For n = 1, 2, 3 it is 1, 3, 6.", "2": "The sum grows by n."},
                "Both say n(n+1)/2.",
            ),
            ({"1": "Put in 10."}, {"1": "10·11/2 = 55"}, "It is 55."),
        ],
    ),
    "all on one line": (
        "<guideline><plan>1: a</plan><plan>2: b</plan></guideline>"
        "<step>1: x</step> <step>2: y</step><takeaway>z</takeaway>",
        [({"1": "a", "2": "b"}, {"1": "x", "2": "y"}, "z")],
    ),
    "plans on lines of their own": (
        "<guideline>\n<plan>\n1:first\n</plan>\n<plan>\n2:second\n</plan>\n</guideline>\n"
        "<step>\n1:x\n</step>\n<step>\n2:y\n</step>\n<takeaway>\nz\n</takeaway>",
        [({"1": "first", "2": "second"}, {"1": "x", "2": "y"}, "z")],
    ),
    "a guideline within a step": (
        "<guideline><plan>1: a</plan><plan>2: b</plan></guideline>\n<step>\n1: look:\n<guideline>"
        "<plan>1.1: c</plan><plan>1.2: d</plan></guideline>\n<step>\n1.1: u</step>\n<step>\n1.2: v"
        "</step>\n<takeaway>u and v</takeaway>\nso x</step>\n<step>\n2: y</step>\n"
        "<takeaway>x</takeaway>",
        [
            (
                {"1": "a", "2": "b"},
                {
                    "1": (
                        "so x",
                        [({"1.1": "c", "1.2": "d"}, {"1.1": "u", "1.2": "v"}, "u and v")],
                    ),
                    "2": "y",
                },
                "x",
            )
        ],
    ),
    "tags that are missing": (
        "<guideline><plan>1: a<plan>2: b</guideline><step>1: x<step>2: y\n<takeaway>z</takeaway>\n"
        "<guideline><plan>1: c</plan><step>1: w</step><takeaway>v",
        [
            ({"1": "a", "2": "b"}, {"1": "x", "2": "y"}, "z"),
            ({"1": "c"}, {"1": "w"}, "v"),
        ],
    ),
    "no takeaway before the next guideline": (
        "<guideline><plan>1: a</plan></guideline><step>1: x</step>"
        "<guideline><plan>1: b</plan></guideline><step>1: y</step>",
        [({"1": "a"}, {"1": "x"}, None), ({"1": "b"}, {"1": "y"}, None)],
    ),
    "doubles": (
        "<guideline><plan>1: a</plan><plan>1: again</plan><plan>3: c</plan></guideline>"
        "<step>3: z</step><step>1: x</step><step>1: again</step><takeaway>t</takeaway>",
        [({"1": "a", "3": "c"}, {"3": "z", "1": "x"}, "t")],
    ),
    "no block": ("4</guideline></step><step>1: x</step><takeaway>y</takeaway>", []),
}  # fmt: skip


@pytest.mark.parametrize("name", TRACES)
def test_a_published_trace_is_read(name: str) -> None:
    text, expected = TRACES[name]
    assert shape(NPR().read_trace(text)) == expected


def test_a_block_reaches_from_its_guideline_to_its_takeaway() -> None:
    text = TRACES["two rounds"][0]
    first, second = NPR().read_trace(text)
    assert text[slice(*first.span)].endswith("Both say n(n+1)/2.\n</takeaway>")
    assert text[first.span[1] : second.span[0]] == "\n\n"
    assert text[second.span[1] :] == "\n\nThe sum is \\boxed{55}."


# --- while the model writes ---------------------------------------------------------


def test_threads_start_where_the_guideline_closes() -> None:
    outlines = [Outline("1", "count"), Outline("2", "bound")]
    assert read(NPR(), f"{PLANS}\n<step>\n1: guess") == (Spawn(outlines), PLANS)
    assert NPR().block(outlines) == PLANS


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("so </guideline>", "</guideline> without <guideline>"),
        ("<guideline>try</guideline>", "no numbered outline in the block"),
    ],
)
def test_a_guideline_that_cannot_be_read_is_malformed(text: str, why: str) -> None:
    assert read(NPR(), text) == (Malformed(why), text)


def test_a_step_ends_at_its_tag_even_if_it_wrote_others_inline() -> None:
    inline = " alone:\n<step>\n1.1: x</step> y"
    assert read(NPR(), f"{inline}</step>z", thread=True) == (Ended(), inline)


def test_steps_come_back_on_lines_of_their_own() -> None:
    joined = NPR().join([Shown("1", " 4", verbatim=True), Shown("2", "</step>5")])
    assert joined == "\n<step>\n1: 4</step>\n<step>\n2: < /step>5</step>"


@pytest.mark.parametrize(
    ("text", "complete", "answer"),
    [
        (f"{PLANS}<takeaway>both</takeaway>\nIt is 4.\n", True, "It is 4."),
        (f"{PLANS}<takeaway>It is 4.</takeaway>\n", True, "It is 4."),
        ("25+42 = 67", True, "25+42 = 67"),
        (f"{PLANS}<takeaway>both</takeaway>\nIt is", False, None),
        ("", True, None),
    ],
)
def test_the_answer_stands_behind_the_last_takeaway(
    text: str, complete: bool, answer: str | None
) -> None:
    assert NPR().answer(text, complete=complete) == answer


# --- in an agent --------------------------------------------------------------------

END = "\n<takeaway>\nBoth say 9.\n</takeaway>\n\n\\boxed{9}"


async def test_plans_fan_out_and_the_model_takes_away(ask: Any, scripted: Any) -> None:
    backend = scripted({"0/0": PLANS, "0.1/0": " 4\n</step>", "0.2/0": " 5\n</step>", "0/2": END})
    run = await ask(create_parallel_agent(backend, protocol="npr", merge="full"), "How?")
    prompts = {request.key: request.prompt for request in backend.requests}
    assert prompts["0/0"] == "How?\nThreads: 8\n"
    assert prompts["0.1/0"] == f"{prompts['0/0']}{PLANS}\n<step>\n1:"
    assert prompts["0/2"].endswith(f"{PLANS}\n<step>\n1: 4\n</step>\n<step>\n2: 5\n</step>")
    assert (run.answer, run.protocol) == ("\\boxed{9}", "npr")


async def test_a_run_of_two_rounds_reads_as_a_trace_of_its_own_threads(
    ask: Any, scripted: Any
) -> None:
    deeper = "<guideline><plan>1.1: deep</plan></guideline>"
    backend = scripted(
        {
            "0/0": PLANS,
            "0.1/0": f" deeper: {deeper}",
            "0.1.1/0": " 3</step>",
            "0.1/2": "<takeaway>3</takeaway>\nso 4</step>",
            "0.2/0": " 5</step>",
            "0/2": f"<takeaway>4 and 5</takeaway>{PLANS}",
            "0.3/0": " 6</step>",
            "0.4/0": " 7</step>",
            "0/4": END,
        }
    )
    run = await ask(create_parallel_agent(backend, protocol=NPR(), merge="full"))
    outlines = {"1": "count", "2": "bound"}
    nested = ("so 4", [({"1.1": "deep"}, {"1.1": "3"}, "3")])
    assert shape(NPR().read_trace(run.root.transcript)) == [
        (outlines, {"1": nested, "2": "5"}, "4 and 5"),
        (outlines, {"1": "6", "2": "7"}, "Both say 9."),
    ]


async def test_where_no_thread_may_start_the_model_writes_the_steps_itself(
    ask: Any, scripted: Any
) -> None:
    alone = "<step>\n1: 4</step>\n<step>\n2: 5</step>"
    backend = scripted({"0/0": PLANS, "0/2": alone, "0/3": END})
    limits = Limits(max_threads=0)
    agent = create_parallel_agent(backend, protocol="npr", limits=limits)
    run = await ask(agent)
    assert run.answer == "\\boxed{9}"
    assert run.metrics().threads == 0
    assert [step.kind for step in run.root.steps][:2] == ["call", "note"]


async def test_a_guideline_that_cannot_be_read_is_noted_and_the_run_goes_on(
    ask: Any, scripted: Any
) -> None:
    backend = scripted({"0/0": "<guideline>try</guideline>", "0/2": "4"})
    run = await ask(create_parallel_agent(backend, protocol="npr"))
    note = run.root.steps[1]
    assert isinstance(note, Note)
    assert (note.event, note.why) == ("malformed", "no numbered outline in the block")
    assert run.root.status == "done"


async def test_plans_in_a_question_start_nothing(ask: Any, scripted: Any) -> None:
    backend = scripted({"0/0": "4"})
    run = await ask(create_parallel_agent(backend, protocol="npr"), PLANS)
    assert (run.answer, run.metrics().threads) == ("4", 0)
    assert "<plan>" not in backend.requests[0].prompt
