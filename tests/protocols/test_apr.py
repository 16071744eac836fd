from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from apr_agents.graph.build import create_parallel_agent
from apr_agents.limits import Limits
from apr_agents.protocols.apr import APR, CALLED, CALLING, RETURNED, RETURNING
from apr_agents.protocols.base import Decision, Ended, Malformed, Shown, Spawn
from apr_agents.tools import spawn_tool
from apr_agents.types import Call, Note, Outline
from tests.protocols.traces import read, shape

ROOT = "Moving to Node #0\nCurrent State: 27:[22, 26, 31, 53], Operations: []"
EXPLORED = (
    "\nExploring Operation: 53-22=31, Resulting Numbers: [26, 31, 31]\n"
    "Generated Node #0,0: 27:[26, 31, 31] Operation: 53-22=31\n"
    "Exploring Operation: 53-26=27, Resulting Numbers: [22, 31, 27]\n"
    "Generated Node #0,1: 27:[22, 31, 27] Operation: 53-26=27\n"
)
SEARCHES = (
    "<Calling Sub Searches>\n"
    "<Start Sub Search 0 at level 1> Moving to Node #0,0\n"
    "<Start Sub Search 1 at level 1> Moving to Node #0,1\n"
    "<End Calling Sub Searches>"
)
NODES = {"0": "Moving to Node #0,0", "1": "Moving to Node #0,1"}
PATH = (
    "Moving to Node #0,1\nCurrent State: 27:[22, 31, 27], Operations: ['53-26=27']\n"
    "Exploring Operation: 27*1=27, Resulting Numbers: [27]\n27,27 equal: Goal Reached"
)
RESULTS = (
    "<Sub Searches>\n"
    "<No Solution in Sub Search 0 at level 1 at Node #0,0>\n"
    "<Goal Reached in Sub Search 1 at level 1 at Node #0,1>\n"
    f"{PATH}\n"
    "<End Sub Searches>\n"
)

TRACES = {
    "a search that calls others": (
        ROOT + EXPLORED + SEARCHES,
        [(NODES, {}, None)],
    ),
    "results whose call was deleted": (
        f"{ROOT}{EXPLORED}{RESULTS}27,27 equal: Goal Reached\n{PATH}\n",
        [(NODES, {"0": "no solution", "1": PATH}, None)],
    ),
    "a call and its results, twice": (
        f"{ROOT}\n{SEARCHES}\n{RESULTS}Moving to Node #0,2\n{SEARCHES}\n{RESULTS}",
        [(NODES, {"0": "no solution", "1": PATH}, None)] * 2,
    ),
    "as the figures show it": (
        "Moving to Node #0 … <Calling Sub Searches> <Start Sub Search 0 at level 1> Moving to "
        "Node #0,0 <Start Sub Search 1 at level 1> Moving to Node #0,1 <End Calling Sub Searches> "
        "…<Sub Searches> <No Solution in Sub Search 0 at level 1 at Node #0,0> <Goal Reached in "
        "Sub Search 1 at level 1 at Node #0,1>...<End Sub Searches> 27,27 equal: Goal Reached",
        [(NODES, {"0": "no solution", "1": "..."}, None)],
    ),
    "one line for each result": (
        "<Calling Sub Searches>\n<Start Sub Search 3 at level 1> Moving to Node #0,3\n"
        "<Start Sub Search 4 at level 1> Moving to Node #0,4\n<Start Sub Search 4 at level 1> again"
        "\n<End Calling Sub Searches>\n<Sub Searches>\n53-22=31, 31-4=27\nno solution\n"
        "<End Sub Searches>",
        [
            (
                {"3": "Moving to Node #0,3", "4": "Moving to Node #0,4"},
                {"3": "53-22=31, 31-4=27", "4": "no solution"},
                None,
            )
        ],
    ),
    "functions, results listed": (
        'Two parts. spawn(["sum of 1 to 9", "sum of 10 to 12"])\n<Sub Searches>\n'
        "<Sub Search 1> 45\n<Sub Search 2> 33\n<End Sub Searches>\nTogether 78.",
        [({"1": "sum of 1 to 9", "2": "sum of 10 to 12"}, {"1": "45", "2": "33"}, None)],
    ),
    "functions, threads written out": (
        "Split: spawn(msgs=['left', \"right's\"])\nLeft is 4. join(\"4\")\n"
        'Right: spawn(["half"]) It is 2. join("2")\nDoubled: join(msg="the answer is 4")\n'
        'So 8. spawn(["check"])',
        [
            (
                {"1": "left", "2": "right's"},
                {"1": "4", "2": ("the answer is 4", [({"1": "half"}, {"1": "2"}, None)])},
                None,
            ),
            ({"1": "check"}, {}, None),
        ],
    ),
    "results that break off": (
        f"{SEARCHES}\n<Sub Searches>\n<No Solution in Sub Search 0 at level 1 at Node #0,0>\n",
        [(NODES, {"0": "no solution"}, None)],
    ),
    "a call without its first tag": (
        SEARCHES.removeprefix(f"{CALLING}\n"),
        [(NODES, {}, None)],
    ),
    "no call": ("We spawn(x) and os.path.join(a) and </End Calling Sub Searches>, no more.", []),
}  # fmt: skip


@pytest.mark.parametrize("name", TRACES)
def test_a_published_trace_is_read(name: str) -> None:
    text, expected = TRACES[name]
    assert shape(APR().read_trace(text)) == expected


def test_spans_tell_where_blocks_are_in_the_text_they_are_part_of() -> None:
    text = TRACES["functions, threads written out"][0]
    first, second = APR().read_trace(text)
    assert text[slice(*first.span)].startswith("spawn(msgs=")
    assert text[first.span[1] : second.span[0]] == "\nSo 8. "
    (inner,) = first.threads[1].blocks
    assert first.threads[1].text[: inner.span[0]] == "\nRight: "
    assert first.threads[1].text[inner.span[1] :] == '\nDoubled: join(msg="the answer is 4")'


# --- while the model writes ---------------------------------------------------------


def spawned(text: str, **options: Any) -> list[str]:
    decision, _ = read(APR(), text, **options)
    assert isinstance(decision, Spawn), decision
    assert [outline.number for outline in decision.outlines] == [
        str(i) for i in range(1, len(decision.outlines) + 1)
    ]
    return [outline.text for outline in decision.outlines]


@pytest.mark.parametrize(
    ("call", "messages"),
    [
        ('spawn(["a", "b"])', ["a", "b"]),
        ("spawn(['a', 'b'])", ["a", "b"]),
        ('spawn( [ "a" , "b", ] )', ["a", "b"]),
        ('spawn(msgs=["a"])', ["a"]),
        ('spawn([\n  "first\nline",\n  "b"\n])', ["first\nline", "b"]),
        (r'spawn(["say \"hi\"", "a\nb", "\frac{1}{2}", "C:\\x"])',
         ['say "hi"', "a\nb", r"\frac{1}{2}", r"C:\x"]),
        ('spawn(["it\'s (a, b]", \'say "no"\'])', ["it's (a, b]", 'say "no"']),
        ("spawn([solve f(1, 2), it's b])", ["solve f(1, 2)", "it's b"]),
        ('spawn(["a", "", "a", " "])', ["a"]),
        ('spawn(["a"], ["b"])', ["a"]),
        ('spawn(["["])', ["["]),
        ('spawn(["""a "b" c"""])', ['a "b" c']),
    ],
    ids=["two", "single quotes", "spaces", "keyword", "lines", "escapes", "quotes in quotes",
         "no quotes", "doubles", "two lists", "a bracket", "three quotes"],
)  # fmt: skip
def test_spawn_is_read_leniently(call: str, messages: list[str]) -> None:
    assert spawned(f"So: {call} and") == messages
    assert read(APR(), f"So: {call} and")[1] == f"So: {call}"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ('join("4")', "4"),
        ("join('4')", "4"),
        ("join( 4 )", "4"),
        ("join(x = (3+4)*2)", "x = (3+4)*2"),
        ('join(msg="it is 4")', "it is 4"),
        ('join("two\nlines")', "two\nlines"),
        ("join(\n'4'\n)", "4"),
        ("join()", ""),
    ],
)
def test_join_ends_a_thread_with_its_message(call: str, message: str) -> None:
    assert read(APR(), f"So {call} and") == (Ended(message), f"So {call}")


@pytest.mark.parametrize(
    "text",
    [
        "respawn([1]) and os.path.join('a', b) and ', '.join(x)",
        "spawn (['a']) join ('b')",
        "spawn(a process) and spawn()",
        "we join(ed\nthe parts) and spawn(ed\nothers)",
        f"{RETURNED} {CALLING}\n<Start Sub Search 0 at level 1> Moving to Node #0,0",
    ],
)
def test_prose_and_code_decide_nothing(text: str) -> None:
    assert read(APR(), text) == (None, text)


def test_searches_start_at_their_nodes() -> None:
    outlines = [Outline(number, text) for number, text in NODES.items()]
    decision, text = read(APR(), f"{EXPLORED}{SEARCHES}\nmore")
    assert decision == Spawn(outlines, replaced=len(SEARCHES))
    assert text == EXPLORED + SEARCHES


def test_a_call_reaches_from_the_first_tag_to_the_last() -> None:
    decision, _ = read(APR(), 'Split. spawn(["a"])')
    assert isinstance(decision, Spawn)
    assert decision.replaced == len('spawn(["a"])')


@pytest.mark.parametrize(
    ("text", "why", "ends"),
    [
        ("spawn([])", "spawn without a message", False),
        ("spawn(['', ' '])", "spawn without a message", False),
        (f"{CALLING}\n{CALLED}", "the call starts no sub search", False),
        (f"{CALLED}", "the call starts no sub search", False),
        ("spawn([", "ended inside spawn([", True),
        ('spawn(["half of', "ended inside spawn([", True),
        (f"{CALLING}\n<Start", f"ended inside {CALLING}", True),
    ],
)
def test_a_call_that_cannot_be_read_is_malformed(text: str, why: str, ends: bool) -> None:
    assert read(APR(), text, ends=ends) == (Malformed(why), text)


def test_stopping_inside_a_call_starts_what_is_complete() -> None:
    assert spawned('spawn(["a", "b", "half of', ends=True) == ["a", "b"]
    assert spawned('spawn(["a", "b"', ends=True) == ["a", "b"]
    text = SEARCHES.removesuffix(f"\n{CALLED}")
    decision, _ = read(APR(), text, ends=True)
    assert isinstance(decision, Spawn)
    assert APR().close(decision, text) == f"\n{CALLED}"
    assert APR().close(Spawn([]), 'spawn(["a", "b"') == "])"


def test_results_that_the_model_makes_up_are_dropped() -> None:
    forged = f"{EXPLORED}{RETURNING}\n<Goal Reached in Sub Search 0"
    assert read(APR(), forged) == (
        Malformed("it wrote <Sub Searches> itself", f"{CALLING}\n"),
        EXPLORED,
    )


def test_a_call_that_the_runtime_opened_is_replaced_with_its_first_tag() -> None:
    rest = SEARCHES.removeprefix(f"{CALLING}\n")
    for written in (rest, SEARCHES):  # the model may repeat the tag
        decision, _ = read(APR(), written, written=f"so\n{CALLING}\n")
        assert isinstance(decision, Spawn)
        assert decision.replaced == len(f"{CALLING}\n{written}")


@pytest.mark.parametrize("text", [*(text for text, _ in TRACES.values()), 'join("a(b") spawn(["c'])
def test_a_call_split_at_any_position_is_the_same_call(text: str) -> None:
    def all_decisions(*chunks: str) -> list[tuple[Decision, int]]:
        parser = APR().parser(thread=False, written="")
        return [decided for chunk in chunks for decided in parser.decisions(chunk)]

    whole = all_decisions(text)
    assert all_decisions(*text) == whole
    for step in (2, 3, 7, 26):
        edges = [*range(0, len(text), step), len(text)]
        assert all_decisions(*(text[a:b] for a, b in pairwise(edges))) == whole


# --- texts --------------------------------------------------------------------------


def test_a_search_is_asked_its_node_and_the_state_there() -> None:
    asked = APR().question(Outline("1", "Moving to Node #0,1"), ROOT + EXPLORED)
    assert asked == (
        "Moving to Node #0,1\nCurrent State: 27:[22, 31, 27], Operations: ['53-26=27']"
    )
    deeper = f"{asked}\nGenerated Node #0,1,0: 27:[22, 4] Operation: 31-27=4\n"
    assert APR().question(Outline("0", "Moving to Node #0,1,0"), deeper) == (
        "Moving to Node #0,1,0\nCurrent State: 27:[22, 4], Operations: ['53-26=27', '31-27=4']"
    )


def test_a_node_that_was_never_generated_is_asked_as_it_stands() -> None:
    for text in ("Moving to Node #0,9", "sum of 1 to 9"):
        assert APR().question(Outline("0", text), ROOT + EXPLORED) == text


def test_results_of_searches_are_listed_as_in_the_paper() -> None:
    shown = [
        Shown("0", "no solution", id="0.1", asked=NODES["0"]),
        Shown("1", PATH, id="0.2", asked=NODES["1"]),
    ]
    assert APR().join(shown) == RESULTS


def test_every_other_result_is_one_line() -> None:
    shown = [
        Shown("1", " two\nlines ", id="0.1", asked="a"),
        Shown("2", f"{RETURNED} spawn(['x'])", id="0.2", asked="b"),
        Shown("3", "(failed: gone)", id="0.2.1", asked=NODES["0"]),
        Shown("4", "(not started)"),
    ]
    assert APR().join(shown) == (
        "<Sub Searches>\n<Sub Search 1> two lines\n"
        "<Sub Search 2> < End Sub Searches> spawn (['x'])\n"
        "<No Solution in Sub Search 3 at level 2 at Node #0,0> (failed: gone)\n"
        "<Sub Search 4> (not started)\n<End Sub Searches>\n"
    )


@pytest.mark.parametrize(
    ("text", "complete", "answer"),
    [
        (f"…27,27 equal: Goal Reached\n{PATH}\n", True, PATH),
        (f"…27,27 equal: Goal Reached\n{PATH}\n", False, PATH),
        ("Exploring Operation: 26+1=27\n27,27 equal: Goal Reached", True,
         "Exploring Operation: 26+1=27\n27,27 equal: Goal Reached"),
        ("Exploring Operation: 3-1=2\n2,27 unequal: No Solution\nNo solution found.\n", True,
         "no solution"),
        ("Exploring Operation: 3-1=2\n", False, None),
        ('Split. spawn(["a"]) So 4.', True, "So 4."),
        ('So join("4")', True, "4"),
        ("It is 4.", True, "It is 4."),
        ("It is", False, None),
        ("", True, None),
    ],
)  # fmt: skip
def test_the_answer_is_the_path_the_message_or_the_last_word(
    text: str, complete: bool, answer: str | None
) -> None:
    assert APR().answer(text, complete=complete) == answer


# --- in an agent --------------------------------------------------------------------


async def test_the_join_takes_the_place_of_the_call_and_nothing_is_lost(
    ask: Any, scripted: Any
) -> None:
    last = f"27,27 equal: Goal Reached\n{PATH}\n"
    backend = scripted(
        {
            "0/0": EXPLORED + SEARCHES,
            "0.1/0": "\nExploring Operation: 31-26=5\nNo solution found.\n",
            "0.2/0": f"\nExploring Operation: 27*1=27\n27,27 equal: Goal Reached\n{PATH}\n",
            "0/2": last,
        }
    )
    limits = Limits(max_depth=1)
    run = await ask(create_parallel_agent(backend, protocol="apr", limits=limits), ROOT)
    prompts = {request.key: request.prompt for request in backend.requests}
    assert prompts["0/0"] == f"Sub Call Budget: 8 {ROOT}"
    # A thread sees its node and the state there, nothing else.
    assert prompts["0.1/0"] == (
        "Moving to Node #0,0\nCurrent State: 27:[26, 31, 31], Operations: ['53-22=31']"
    )
    assert prompts["0/2"] == f"Sub Call Budget: 8 {ROOT}{EXPLORED}{RESULTS}"
    assert (run.answer, run.protocol) == (PATH, "apr")
    assert run.root.transcript == EXPLORED + SEARCHES + RESULTS + last
    (block,) = APR().read_trace(run.root.transcript)
    assert shape([block]) == [(NODES, {"0": "no solution", "1": PATH}, None)]


@pytest.mark.parametrize("saver", [None, InMemorySaver()])
async def test_functions_nest_and_each_join_replaces_its_own_call(
    ask: Any, scripted: Any, saver: Any
) -> None:
    backend = scripted(
        {
            "0/0": 'Two parts. spawn(["left", "right"]) done',
            "0.1/0": 'It is 4. join("4") and more',
            "0.2/0": ' deeper: spawn(["half"])',
            "0.2.1/0": "join(2)",
            "0.2/2": ' doubled: join("right is 4")',
            "0/2": 'Once more: spawn(["check"])',
            "0.3/0": "fine",
            "0/4": "8",
        }
    )
    agent = create_parallel_agent(backend, protocol=APR(), checkpointer=saver)
    run = await ask(agent, "Q: ", config={"configurable": {"thread_id": "1"}})
    prompts = {request.key: request.prompt for request in backend.requests}
    first = "<Sub Searches>\n<Sub Search 1> 4\n<Sub Search 2> right is 4\n<End Sub Searches>\n"
    assert prompts["0.2.1/0"] == "half"
    assert prompts["0.2/2"].endswith(
        "right deeper: <Sub Searches>\n<Sub Search 1> 2\n<End Sub Searches>\n"
    )
    assert prompts["0/2"].endswith(f"Q: Two parts. {first}")
    assert prompts["0/4"].endswith(
        f"{first}Once more: <Sub Searches>\n<Sub Search 1> fine\n<End Sub Searches>\n"
    )
    assert run.answer == "8"
    assert {name: thread.conclusion for name, thread in run.threads().items()} == {
        "0": "8", "0.1": "4", "0.2": "right is 4", "0.2.1": "2", "0.3": "fine",
    }  # fmt: skip


async def test_a_model_that_makes_results_up_is_stopped_and_calls_instead(
    ask: Any, scripted: Any
) -> None:
    forged = f"{EXPLORED}{RETURNING}\n<Goal Reached in Sub Search 0 at level 1 at Node #0,0>\n27\n"
    rest = SEARCHES.removeprefix(f"{CALLING}\n")
    backend = scripted(
        {"0/0": forged, "0/2": rest, "0.*/0": "\nNo solution found.\n", "0/4": "No solution found."}
    )
    run = await ask(create_parallel_agent(backend, protocol="apr"), ROOT)
    prompts = {request.key: request.prompt for request in backend.requests}
    assert prompts["0/2"].endswith(f"{EXPLORED}{CALLING}\n")
    assert prompts["0/4"].endswith(
        f"{EXPLORED}<Sub Searches>\n<No Solution in Sub Search 0 at level 1 at Node #0,0>\n"
        "<No Solution in Sub Search 1 at level 1 at Node #0,1>\n<End Sub Searches>\n"
    )
    call, note = run.root.steps[:2]
    assert isinstance(call, Call)
    assert isinstance(note, Note)
    assert call.text == EXPLORED
    assert (note.event, note.why) == ("malformed", "it wrote <Sub Searches> itself")
    assert [len(block.threads) for block in run.root.blocks] == [2]


@pytest.mark.parametrize("chunk", [1, 1000])
async def test_what_follows_made_up_results_is_dropped_even_if_it_comes_at_once(
    ask: Any, scripted: Any, chunk: int
) -> None:
    backend = scripted({"0/0": f"So {RETURNING} 27", "0/2": "on my own: 4"}, chunk=chunk)
    run = await ask(create_parallel_agent(backend, protocol="apr"))
    assert run.answer == "So on my own: 4"


async def test_a_model_that_only_makes_results_up_runs_out_of_calls(
    ask: Any, scripted: Any
) -> None:
    backend = scripted({f"0/{2 * i}": RETURNING for i in range(5)})
    limits = Limits(max_calls_per_thread=5)
    run = await ask(create_parallel_agent(backend, protocol="apr", limits=limits))
    assert (run.root.status, run.root.reason) == ("over_budget", "no model calls left")


async def test_where_no_thread_may_start_the_call_stays_and_the_model_is_told(
    ask: Any, scripted: Any
) -> None:
    call = 'Split. spawn(["a"])'
    backend = scripted({"0/0": call, "0/2": "4"})
    limits = Limits(max_threads=0)
    run = await ask(create_parallel_agent(backend, protocol="apr", limits=limits), "Q")
    assert backend.requests[0].prompt == "Q"
    assert backend.requests[1].prompt == f"Q{call}\n(No sub searches may start: go on alone.)\n"
    assert (run.answer, run.metrics().threads) == ("4", 0)


async def test_messages_beyond_the_limit_are_left_out_and_told(ask: Any, scripted: Any) -> None:
    backend = scripted({"0/0": 'spawn(["a", "b", "c"])', "0.1/0": 'join("4")', "0/2": "4"})
    limits = Limits(max_threads=1)
    run = await ask(create_parallel_agent(backend, protocol="apr", limits=limits))
    (block,) = run.root.blocks
    assert [outline.text for outline in block.left_out] == ["b", "c"]
    assert "\n<Sub Search 2> (not started: " in block.joined


async def test_a_thread_that_runs_out_is_told_in_one_line(ask: Any, scripted: Any) -> None:
    long = "\nExploring Operation: 1+1=2" * 20
    backend = scripted({"0/0": SEARCHES, "0.*/0": long, "0/2": "4"})
    limits = Limits(max_tokens_per_thread=100, max_depth=1)
    run = await ask(create_parallel_agent(backend, protocol="apr", limits=limits))
    first, second = run.root.blocks[0].joined.splitlines()[1:-1]
    assert first == (
        "<No Solution in Sub Search 0 at level 1 at Node #0,0> "
        "(over_budget: its 100 tokens ran out)"
    )
    assert second.startswith("<No Solution in Sub Search 1 at level 1 at Node #0,1> (over_budget")


async def test_calls_in_a_question_or_a_result_start_nothing(ask: Any, scripted: Any) -> None:
    backend = scripted(
        {"0/0": 'spawn(["a"])', "0.1/0": f"{CALLING} spawn ([1]) it says", "0/2": "4"}
    )
    question = f'What does spawn(["x"]) do? {SEARCHES}'
    run = await ask(create_parallel_agent(backend, protocol="apr"), question)
    assert 'spawn (["x"])' in backend.requests[0].prompt
    assert CALLED not in backend.requests[0].prompt
    assert CALLING not in run.root.blocks[0].joined
    assert len(run.root.blocks) == 1


async def test_a_summary_is_a_message_too(ask: Any, scripted: Any) -> None:
    backend = scripted(
        {
            "0/0": 'spawn(["a", "b"])',
            "0.1/0": "a long story",
            "0.1/1": 'short") and more',
            "0.2/0": 'join("said already")',
            "0/2": "4",
        }
    )
    run = await ask(create_parallel_agent(backend, protocol="apr", merge="summary"))
    assert [thread.conclusion for thread in run.root.blocks[0].threads] == [
        "short", "said already",
    ]  # fmt: skip


def test_threads_of_an_agent_around_it_join_too(scripted: Any) -> None:
    backend = scripted({"0.1/0": 'So join("4")', "0.2/0": "no solution here: 5"})
    spawn = spawn_tool(backend, protocol="apr")
    assert spawn.invoke({"outlines": ["a", "b"]}) == "[0.1] 4\n[0.2] no solution here: 5"


async def test_a_parent_may_go_on_with_a_lane_of_its_own(ask: Any, scripted: Any) -> None:
    backend = scripted({"0/0": 'spawn(["a"])', "0.1/0": "4", "0.2/0": "meanwhile 5", "0/2": "9"})
    run = await ask(create_parallel_agent(backend, protocol="apr", parent_lane=True), "Q")
    assert backend.requests[-1].prompt.endswith(
        "Q<Sub Searches>\n<Sub Search 1> 4\n<Sub Search lane> meanwhile 5\n<End Sub Searches>\n"
    )
    assert run.answer == "9"
