"""Every fault, at every place of a block, with either kind of model: siblings are unaffected."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver

from apr_agents.backends.base import Request
from apr_agents.backends.scripted import Reply, ScriptedBackend
from apr_agents.graph.build import create_parallel_agent
from apr_agents.graph.join import NOT_NEEDED
from apr_agents.limits import Limits
from apr_agents.trace.trajectory import Trajectory
from tests.graph.chat_script import Asked, Says, StreamingChat, ToolChat, spawn

THREADS = (1, 2, 3)
IDS = [f"0.{i}" for i in THREADS]
PLACES = {"first": (1,), "middle": (2,), "last": (3,), "all": THREADS}
BIG = ("w" * 49 + " ") * 20_000 + "the end"
ROOM = 600


class TooManyRequests(Exception):
    """As a provider's client raises it."""

    status_code = 429


class Fault(NamedTuple):
    """What a thread does, and how it ends.

    Attributes:
        text: what its model writes.
        fails: what its call raises.
        hangs: it never ends.
        wrong: a spawn that cannot be read comes first.
        status: how the thread ends.
        reason: why, or the beginning of it.
    """

    text: str = ""
    fails: BaseException | None = None
    hangs: bool = False
    wrong: bool = False
    status: str = "done"
    reason: str | None = None


FAULTS = {
    "exception": Fault(fails=ValueError("no"), status="failed", reason="ValueError: no"),
    "429": Fault(
        fails=TooManyRequests("slow down"), status="failed", reason="TooManyRequests: slow down"
    ),
    "reset": Fault(
        fails=ConnectionResetError(104, "reset by peer"),
        status="failed",
        reason="ConnectionResetError: [Errno 104] reset by peer",
    ),
    "hang": Fault(hangs=True, status="timed_out", reason="it took longer than 0.3 s"),
    "lost race": Fault(hangs=True, status="cancelled", reason=NOT_NEEDED),
    "cancelled": Fault(
        fails=asyncio.CancelledError(), status="cancelled", reason="the call was cancelled"
    ),
    "malformed": Fault("7", wrong=True),
    "oversize": Fault(BIG),
}


class Model(NamedTuple):
    """A scripted model, and how many calls of each thread it has got."""

    model: Any
    calls: Callable[[str], int]


def chat_model(chat: Any, fault: Fault, faulty: tuple[int, ...], join: dict[str, Any]) -> Model:
    def script(asked: Asked) -> Says | AIMessage | str:
        if asked.thread == "0":
            return spawn("a", "b", "c", **join) if asked.number == 0 else "4"
        if int(asked.thread[-1]) not in faulty:
            return f"I am {asked.thread}"
        if fault.wrong and asked.number == 0:
            return spawn({"nothing": 1})
        return Says(fault.text, hangs=fault.hangs, fails=fault.fails)

    # Where a model does not stream, LangChain makes an error of its own of a cancelled call.
    cancelled = isinstance(fault.fails, asyncio.CancelledError)
    model = chat(script, StreamingChat if cancelled else ToolChat)
    return Model(model, lambda thread: len(model.asked_by(thread)))


def text_model(fault: Fault, faulty: tuple[int, ...]) -> Model:
    block = "".join(f"<Outline>{i}: x</Outline>" for i in THREADS)

    def script(request: Request) -> Reply | str:
        thread, _, number = request.key.partition("/")
        if thread == "0":
            end = "\n</Parallel>\n</think>\n4"
            return f"<Outlines>{block}</Outlines>" if number == "0" else end
        if int(thread[-1]) not in faulty:
            return f" I am {thread}</Thread>"
        if fault.wrong and number == "0":
            return " <Outlines>nothing</Outlines>"
        end = "" if fault.hangs or fault.fails else "</Thread>"
        return Reply(f"\n{fault.text}{end}", hangs=fault.hangs, fails=fault.fails)

    backend = ScriptedBackend(script, chunk=10**6)

    def calls(thread: str) -> int:
        return sum(request.key.startswith(f"{thread}/") for request in backend.requests)

    return Model(backend, calls)


def made(
    protocol: str, chat: Any, fault: Fault, faulty: tuple[int, ...], join: str = "all"
) -> Model:
    if protocol == "threadweaver":
        return text_model(fault, faulty)
    k = int(join[0]) if join != "all" else None
    return chat_model(chat, fault, faulty, {"join": "k_of_n", "k": k} if k else {})


CELLS = pytest.mark.parametrize("place", PLACES)
PROTOCOLS = pytest.mark.parametrize("protocol", ["tool_calls", "threadweaver"])


@PROTOCOLS
@CELLS
@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_stays_where_it_happens(
    chat: Any, ask: Any, name: str, place: str, protocol: str
) -> None:
    fault, faulty = FAULTS[name], PLACES[place]
    healthy = [i for i in THREADS if i not in faulty]
    if name == "lost race" and not healthy:
        pytest.skip("somebody wins a race")
    join = f"{len(healthy)}_of_n" if name == "lost race" else "all"
    limits = Limits(
        thread_timeout=0.3 if name == "hang" else 60.0,
        max_tokens_per_thread=10**6,
        max_total_tokens=10**7,
        max_join_tokens=ROOM,
    )
    model = made(protocol, chat, fault, faulty, join)
    run = await ask(create_parallel_agent(model.model, limits=limits, join=join))

    assert (run.answer, run.root.status) == ("4", "done")
    [block] = run.root.blocks
    assert [thread.id for thread in block.threads] == IDS
    for i, thread in enumerate(block.threads, 1):
        if i not in faulty:
            assert (thread.status, thread.conclusion) == ("done", f"I am {thread.id}")
            assert thread.transcript.strip() == thread.conclusion
            assert f" I am {thread.id}" in block.joined
            continue
        assert (thread.status, thread.reason) == (fault.status, fault.reason)
        if fault.status == "done":
            assert thread.conclusion == fault.text
            assert fault.text in thread.transcript
            assert thread.conclusion[-7:] in block.joined
        else:
            assert f"({fault.status}: {fault.reason})" in block.joined
        assert [step.kind for step in thread.steps].count("note") == fault.wrong
    count = model.model.count if protocol == "threadweaver" else lambda text: -(-len(text) // 4)
    assert count(block.joined) <= ROOM
    assert model.model.in_flight == 0
    assert Trajectory.model_validate(run.to_dict()) == run


@PROTOCOLS
@CELLS
async def test_a_caller_that_gives_up_loses_nothing_that_was_finished(
    chat: Any, place: str, protocol: str
) -> None:
    faulty = PLACES[place]
    config: Any = {"configurable": {"thread_id": "1"}}
    saver = InMemorySaver()
    hanging = made(protocol, chat, Fault(hangs=True), faulty)
    agent = create_parallel_agent(hanging.model, checkpointer=saver)
    running = asyncio.ensure_future(agent.ainvoke({"messages": [("user", "Q")]}, config))
    async with asyncio.timeout(30):
        while hanging.model.in_flight < len(faulty) or sum(map(hanging.calls, IDS)) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    # What has finished by now is written behind the scenes, a moment later.
    for _ in range(50):
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert hanging.model.in_flight == 0

    mended = made(protocol, chat, Fault("mended"), faulty)
    output = await create_parallel_agent(mended.model, checkpointer=saver).ainvoke(None, config)
    run = Trajectory.model_validate(output["trajectory"])
    assert run.answer == "4"
    assert [thread.conclusion for thread in run.root.blocks[0].threads] == [
        "mended" if i in faulty else f"I am 0.{i}" for i in THREADS
    ]
    assert list(map(mended.calls, IDS)) == [int(i in faulty) for i in THREADS]
