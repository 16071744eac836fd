"""Where questions are asked: one at a time, heard by everybody."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import ValidationError

from apr_agents.errors import EmptyQuestion, InvalidOption
from apr_agents.graph.build import create_parallel_agent
from apr_agents.ui.desk import Busy, Desk, Question
from tests.graph.chat_script import Asked, Says, ToolChat, spawn


def splits(asked: Asked) -> Any:
    return spawn("a", "b") if (asked.thread, asked.number) == ("0", 0) else f"{asked.thread}!"


def desk_of(script: Any) -> Desk:
    return Desk(lambda question: create_parallel_agent(ToolChat(script=script)))


async def heard(desk: Desk, last: str) -> list[Any]:
    """The messages up to one of this type."""
    messages: list[Any] = []
    async for news in desk.messages():
        messages += news
        if messages[-1]["type"] == last:
            break
    return messages


async def test_everybody_hears_a_run_from_its_asking_to_its_record() -> None:
    desk = desk_of(splits)
    early = asyncio.create_task(heard(desk, "record"))
    run = await desk.ask(Question(question="Q"))
    late = await heard(desk, "record")
    assert await early == late
    assert late[0] == {"type": "asked", "question": "Q"}
    kinds = [message["type"] for message in late]
    assert {"started", "spawned", "merged", "finished"} <= set(kinds)
    assert late[-1]["answer"] == run.answer
    assert [each["id"] for each in late[-1]["threads"]] == ["0", "0.1", "0.2"]


async def test_who_stops_listening_ends_nothing_but_listening() -> None:
    desk = desk_of(splits)
    run = desk.ask(Question(question="Q"))
    async for _ in desk.messages():
        break
    assert (await run).answer


async def test_a_page_that_lags_goes_on_with_the_next_run() -> None:
    desk = desk_of(splits)
    await desk.ask(Question(question="first"))
    messages = desk.messages()
    assert (await anext(messages))[0]["question"] == "first"
    await desk.ask(Question(question="second"))
    assert (await anext(messages))[0]["question"] == "second"


async def test_one_question_at_a_time_and_a_stop_makes_room() -> None:
    desk = desk_of(lambda asked: Says(hangs=True))
    run = desk.ask(Question(question="Q"))
    with pytest.raises(Busy):
        desk.ask(Question(question="Q"))
    await desk.stop()
    assert run.cancelled()
    assert (await heard(desk, "failed"))[-1]["why"] == "stopped"
    desk.ask(Question(question="Q"))
    await desk.stop()


async def test_a_failed_run_is_told_in_one_line() -> None:
    desk = desk_of(lambda asked: Says(fails=OSError("the line\nbroke")))
    await asyncio.wait([desk.ask(Question(question="Q"))])
    assert (await heard(desk, "failed"))[-1]["why"] == "OSError: the line broke"


async def test_closing_ends_every_stream_and_the_run() -> None:
    desk = desk_of(lambda asked: Says(hangs=True))
    run = desk.ask(Question(question="Q"))

    async def listen() -> None:
        async for _ in desk.messages():
            pass

    listening = asyncio.create_task(listen())
    await asyncio.sleep(0)
    desk.close()
    await asyncio.wait_for(listening, 5)
    await asyncio.wait([run])
    assert run.cancelled()


async def test_what_cannot_be_asked_leaves_the_last_run_as_it_was() -> None:
    def refuse(question: Question) -> Any:
        raise InvalidOption("strategy", question.strategy, "another")

    desk = Desk(refuse)
    with pytest.raises(EmptyQuestion):
        desk.ask(Question(question=" \n"))
    with pytest.raises(InvalidOption):
        desk.ask(Question(question="Q", strategy="none"))


@pytest.mark.parametrize(
    ("typed", "read"), [("", None), (" 4 ", 4), ("auto", "auto"), (7, 7), (None, None)]
)
def test_threads_are_read_as_they_are_typed(typed: Any, read: Any) -> None:
    assert Question(question="Q", threads=typed).threads == read


@pytest.mark.parametrize("typed", ["-1", "x", "1.5", "9999999999", [], "²"])
def test_what_is_no_number_of_threads_is_refused(typed: Any) -> None:
    with pytest.raises(ValidationError, match="neither 'auto' nor a whole number"):
        Question(question="Q", threads=typed)
