"""What holds for every protocol of models that continue text, whatever a model writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_agents.errors import InvalidOption
from apr_agents.graph.build import create_parallel_agent
from apr_agents.protocols import PROTOCOLS, resolve_protocol
from apr_agents.protocols.apr import APR
from apr_agents.protocols.base import (
    Discard,
    Ended,
    Malformed,
    Shown,
    Spawn,
    TextProtocol,
    TraceBlock,
)
from apr_agents.protocols.tags import TagProtocol
from apr_agents.protocols.tool_calls import ToolCalls
from apr_agents.types import Outline
from tests.protocols import (
    test_apr,
    test_multiverse,
    test_npr,
    test_parallel_r1,
    test_threadweaver,
)
from tests.protocols.traces import mutants, read

TEXT: dict[str, TextProtocol] = {
    name: protocol
    for name in PROTOCOLS
    if isinstance(protocol := resolve_protocol(name), TextProtocol)
}
TRACES = {
    "threadweaver": test_threadweaver.TRACES,
    "apr": test_apr.TRACES,
    "multiverse": test_multiverse.TRACES,
    "parallel_r1": test_parallel_r1.TRACES,
    "npr": test_npr.TRACES,
}
SEARCHES = [
    "<Calling Sub Searches>", "<End Calling Sub Searches>", "<Sub Searches>", "<End Sub Searches>",
    "<Start Sub Search 0 at level 1>", "<Start Sub Search 1>", "<No Solution in Sub Search 0>",
    "<Goal Reached in Sub Search 1 at level 1 at Node #0,1>", "<Sub Search 1>",
    " Moving to Node #0,1\n", "Current State: 27:[3, 9], Operations: ['1+2=3']\n",
    "Generated Node #0,1,0: 27:[27] Operation: 3*9=27\n", "27,27 equal: Goal Reached\n",
    "No solution found.", "spawn(", "spawn([", "join(", "join(\"", "])", ")", "[", "]", "(", '"',
    "'", "\\", ",", "msgs=", ".",
]  # fmt: skip


def pieces(protocol: TextProtocol) -> list[str]:
    """What the texts of a protocol are made of."""
    if isinstance(protocol, TagProtocol):
        names = protocol.tags.names
        tags = [f"<{slash}{name}>" for name in names for slash in ("", "/")]
    else:
        tags = SEARCHES
    return [*tags, "1: a", "2: b", "1.2: c", "3.", ":", " ", "\n", "<", "</", ">", "a"]


texts = {
    name: st.lists(
        st.one_of(st.sampled_from(pieces(protocol)), st.text(max_size=6)), max_size=40
    ).map("".join)
    for name, protocol in TEXT.items()
}
everywhere = pytest.mark.parametrize("name", TEXT)


def check(blocks: Sequence[TraceBlock], text: str) -> None:
    """Blocks are where they say, in order, and each number occurs once."""
    edges = [edge for block in blocks for edge in block.span]
    assert edges == sorted(edges)
    assert all(0 <= edge <= len(text) for edge in edges)
    for block in blocks:
        assert block.outlines or block.threads
        for numbered in (block.outlines, block.threads):
            numbers = [one.number for one in numbered]
            assert len(set(numbers)) == len(numbers)
        for thread in block.threads:
            assert thread.text in text[slice(*block.span)]
            check(thread.blocks, thread.text)


def endure(protocol: TextProtocol, text: str, *, thread: bool, written: str = "") -> None:
    """Use all of a protocol on ``text``."""
    decision, kept = read(protocol, text, thread=thread, written=written, ends=True)
    assert isinstance(decision, Spawn | Discard | Ended | Malformed)
    assert text.startswith(kept)
    if isinstance(decision, Spawn):
        assert decision.outlines
        numbers = [outline.number for outline in decision.outlines]
        assert len(set(numbers)) == len(numbers)
        for outline in decision.outlines:
            assert isinstance(protocol.question(outline, written + text), str)
    assert isinstance(protocol.close(decision, kept), str)
    assert isinstance(protocol.conclusion(kept), str)
    for complete in (True, False):
        assert protocol.answer(kept, complete=complete) != ""
    check(protocol.read_trace(text), text)


@everywhere
@given(data=st.data())
def test_no_text_raises(name: str, data: st.DataObject) -> None:
    text, written = data.draw(texts[name]), data.draw(texts[name])
    endure(TEXT[name], text, thread=data.draw(st.booleans()), written=written)


@everywhere
@given(data=st.data())
def test_decisions_are_the_same_wherever_the_text_is_cut(name: str, data: st.DataObject) -> None:
    text, written = data.draw(texts[name]), data.draw(texts[name])
    options: dict[str, Any] = {"thread": data.draw(st.booleans()), "written": written}
    options["ends"] = data.draw(st.booleans())
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8))
    chunks = [text[a:b] for a, b in pairwise([0, *sorted(cuts), len(text)])]
    whole = read(TEXT[name], text, **options)
    assert read(TEXT[name], *chunks, **options) == whole
    assert read(TEXT[name], *text, **options) == whole


@everywhere
@given(data=st.data())
def test_inert_text_decides_nothing_and_loses_nothing(name: str, data: st.DataObject) -> None:
    protocol, text = TEXT[name], data.draw(texts[name])
    broken = protocol.inert(text)
    assert protocol.inert(broken) == broken
    assert re.sub(r"(<|spawn|join) ", r"\1", broken) == re.sub(r"(<|spawn|join) ", r"\1", text)
    assert read(protocol, broken, thread=data.draw(st.booleans()))[0] is None
    assert protocol.read_trace(broken) == []


@everywhere
@given(data=st.data())
def test_a_join_of_short_results_decides_nothing(name: str, data: st.DataObject) -> None:
    protocol = TEXT[name]
    shown = [
        Shown(str(i), data.draw(texts[name]), id=f"0.{i}", asked=data.draw(texts[name]))
        for i in range(3)
    ]
    joined = protocol.join(shown)
    if isinstance(protocol, APR):  # whose one tag may be written by nobody but the runtime
        joined = joined.removeprefix("<Sub Searches>")
    assert read(protocol, joined)[0] is None


@everywhere
def test_spoiled_traces_never_raise(name: str) -> None:
    protocol = TEXT[name]
    published = [text for text, _ in TRACES[name].values()]
    for text, chance in mutants(published, pieces(protocol), 300, seed=7):
        thread = chance.random() < 0.5
        endure(protocol, text, thread=thread, written=chance.choice(published))
        whole = read(protocol, text, thread=thread, ends=True)
        cut = chance.randrange(len(text) + 1)
        assert read(protocol, text[:cut], text[cut:], thread=thread, ends=True) == whole


@everywhere
def test_a_megabyte_of_open_tags_is_read(name: str) -> None:
    """Anything but linear time would take minutes here."""
    protocol = TEXT[name]
    if isinstance(protocol, TagProtocol):
        tags = protocol.tags
        every = "".join(f"<{tag}>" for tag in tags.names)
        repeated = [
            every,
            f"<{tags.block}><{tags.outlines}><{tags.outline}>1: <{tags.thread}>1: ",
            f"<{tags.conclusion}></{tags.outlines or tags.thread}>",
        ]
    else:
        repeated = ["".join(SEARCHES), 'spawn(["a", ', "<Calling Sub Searches><Start Sub Search 0"]
    for unit in repeated:
        text = unit * (1_000_000 // len(unit))
        parser = protocol.parser(thread=True, written=text)
        for start in range(0, len(text), 5_000):
            if parser.feed(text[start : start + 5_000]) is not None:
                break
        assert text.startswith(parser.text)
        assert isinstance(protocol.conclusion(text), str)
        assert isinstance(protocol.answer(text, complete=True), str | None)
        assert all(block.span[1] <= len(text) for block in protocol.read_trace(text))


TAGGED = [protocol for protocol in TEXT.values() if isinstance(protocol, TagProtocol)]


@pytest.mark.parametrize("protocol", TAGGED, ids=lambda protocol: protocol.name)
@given(data=st.data())
def test_what_is_written_is_what_is_read(protocol: TagProtocol, data: st.DataObject) -> None:
    said = data.draw(st.lists(texts[protocol.name].map(protocol.inert), min_size=1, max_size=4))
    outlines = [Outline(str(i), text.strip()) for i, text in enumerate(said, 1)]
    shown = [Shown(str(i), text, verbatim=True) for i, text in enumerate(said, 1)]
    written = protocol.block(outlines)
    if protocol.tags.outline:
        assert read(protocol, written) == (Spawn(outlines), written)
    (block,) = protocol.read_trace(f"so {written}{protocol.join(shown)}")
    assert [outline.number for outline in block.outlines] == [one.number for one in shown]
    assert block.outlines == outlines or not protocol.tags.outline
    assert [thread.text for thread in block.threads] == said


# --- names --------------------------------------------------------------------------


@everywhere
async def test_a_protocol_may_be_given_by_name(name: str, ask: Any, scripted: Any) -> None:
    agent = create_parallel_agent(scripted({"0/0": "4</think>4"}), protocol=name)
    assert (await ask(agent)).protocol == name


def test_a_name_that_is_none_is_refused_with_those_that_are(scripted: Any) -> None:
    with pytest.raises(InvalidOption, match="one of threadweaver, apr, multiverse, parallel_r1"):
        create_parallel_agent(scripted({}), protocol="thread_weaver")


def test_a_protocol_must_fit_the_kind_of_model(scripted: Any, ruled: Any) -> None:
    with pytest.raises(InvalidOption, match="one for a model that continues text"):
        create_parallel_agent(scripted({}), protocol="tool_calls")
    with pytest.raises(InvalidOption, match="'tool_calls' for a chat model"):
        create_parallel_agent(ruled(lambda messages: "4"), protocol="npr")


def test_a_protocol_is_resolved_to_itself() -> None:
    protocol = ToolCalls()
    assert resolve_protocol(protocol) is protocol
    assert resolve_protocol(None) is None
    assert isinstance(resolve_protocol("tool_calls"), ToolCalls)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_says_what_it_is(name: str) -> None:
    assert PROTOCOLS[name].name == name
    assert all(PROTOCOLS[name].profile)
