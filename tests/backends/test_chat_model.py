"""A text backend as a LangChain chat model: LangChain's own suites, stops, calls, cancelling."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, closing
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    AnyMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    trim_messages,
)
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from pydantic import BaseModel, ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from apr_agents.backends.base import Backend, Delta, Request
from apr_agents.backends.chat_model import BackendChatModel, _Until
from apr_agents.backends.local import LocalBackend
from apr_agents.backends.loop import background_loop, iterate_in_background, run_in_background
from apr_agents.backends.scripted import Reply, ScriptedBackend
from apr_agents.errors import (
    BackendFailed,
    EmptyQuestion,
    InvalidOption,
    PromptTooLong,
    UnknownModel,
)

CALL = '{"tool_calls": [{"name": "weather", "args": {"city": "Oslo"}}]}'


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"Sunny in {city}."


def says(text: str, **options: Any) -> BackendChatModel:
    """A model that always writes ``text``."""
    return BackendChatModel(ScriptedBackend(lambda request: text), **options)


def sent(model: BackendChatModel) -> Request:
    """The last request that reached the backend."""
    assert isinstance(model.backend, ScriptedBackend)
    return model.backend.requests[-1]


def merged(chunks: Sequence[AIMessageChunk]) -> AIMessageChunk:
    first, *others = chunks
    return first + others if others else first


class Pieces(Backend):
    """Writes the given pieces, each as one token, whatever it is asked."""

    name = "pieces"

    def __init__(self, pieces: Sequence[str]) -> None:
        self.pieces = pieces

    def render(self, messages: Sequence[AnyMessage]) -> str:
        return "prompt"

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        for piece in self.pieces:
            yield Delta(piece, 1, prompt_tokens=0)
        if self.pieces:
            yield Delta("", 0, prompt_tokens=1, ended=True)


# --- LangChain's suites ------------------------------------------------------------


USES = {
    "magic_function(3)": {"input": 3},
    "magic_function_no_args()": {},
    "Pirate": {"answer_style": "pirate"},
    "San Francisco": {"location": "San Francisco, CA"},
    "joke": {"setup": "Why do cats not play chess?", "punchline": "Too many paws."},
    "你好": {"customer_name": "你好啊集团", "description": "technology"},
    "こんにちは": {"customer_name": "こんにちは株式会社", "description": "company"},
    "3 + 4": {"a": 3, "b": 4},
    "Hello!": {"input": 1},
}


def obedient(request: Request) -> str:
    """Calls the tool it is told to, or else the first, where the question is one for tools."""
    *_, question = request.prompt.splitlines()
    tools = [json.loads(line) for line in request.prompt.splitlines() if '"parameters"' in line]
    args = next((args for asked, args in USES.items() if asked in question), None)
    if not tools or args is None:
        return "Hello to you. All is well."
    names = [tool["name"] for tool in tools]
    name = next((name for name in names if f"Call the tool {name} now" in request.prompt), names[0])
    called = json.dumps({"tool_calls": [{"name": name, "args": args}]}, ensure_ascii=False)
    return f"I will use a tool.\n\n```json\n{called}\n```"


class TestStandardUnit(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return BackendChatModel

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"backend": ScriptedBackend(obedient)}

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        return {"max_tokens": 100, "stop": []}

    @property
    def supports_model_override(self) -> bool:
        return False


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
class TestStandardWithToolCalls(ChatModelIntegrationTests):
    """A backend that does as the instructions say."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return BackendChatModel

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"backend": ScriptedBackend(obedient)}

    @property
    def supports_model_override(self) -> bool:
        return False


@cache
def _in_this_process() -> LocalBackend:
    """A local model of random weights: it has something to say to everything."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({text: i for i, text in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(alphabet),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=None,
        initializer_range=0.3,
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    return LocalBackend(LlamaForCausalLM(config), tokenizer)


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
class TestStandardOverTheLocalEngine(ChatModelIntegrationTests):
    """A model in this process that answers anything, and calls no tools."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return BackendChatModel

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"backend": _in_this_process(), "max_tokens": 16}

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_tool_choice(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False

    @property
    def supports_model_override(self) -> bool:
        return False


# --- what comes back ---------------------------------------------------------------


async def test_a_message_says_its_tokens_its_model_and_why_it_ended() -> None:
    message = await says("a b c").ainvoke("one two")
    assert message.text == "a b c"
    assert message.usage_metadata == {"input_tokens": 3, "output_tokens": 5, "total_tokens": 8}
    assert message.response_metadata == {"finish_reason": "stop", "model_name": "scripted"}


async def test_a_stream_comes_piece_by_piece_and_adds_up_to_the_same() -> None:
    model = says("a b c")
    chunks = [chunk async for chunk in model.astream("one two")]
    assert [chunk.text for chunk in chunks] == ["a", " ", "b", " ", "c", ""]
    assert [chunk.usage_metadata["input_tokens"] for chunk in chunks if chunk.usage_metadata] == [
        3,
        *[0] * 5,
    ]
    whole, message = merged(chunks), await model.ainvoke("one two")
    assert whole.text == message.text
    assert whole.usage_metadata == message.usage_metadata
    assert whole.response_metadata == message.response_metadata


def test_sync_and_async_give_the_same() -> None:
    model = says("a b c")
    alone, streamed = model.invoke("one two"), merged(list(model.stream("one two")))
    later = asyncio.run(model.ainvoke("one two"))
    assert alone.text == streamed.text == later.text == "a b c"
    assert alone.usage_metadata == streamed.usage_metadata == later.usage_metadata


async def test_a_limit_ends_a_message_and_is_the_reason() -> None:
    model = says("a b c", max_tokens=3)
    message = await model.ainvoke("q")
    assert (message.text, message.response_metadata["finish_reason"]) == ("a b", "length")
    assert (await model.ainvoke("q", max_tokens=1)).text == "a"
    assert (await model.bind(max_tokens=2).ainvoke("q")).text == "a "


async def test_a_stop_ends_a_message_and_is_left_out() -> None:
    model = says("a b c d", stop=["c"])
    message = await model.ainvoke("q")
    assert (message.text, message.response_metadata["finish_reason"]) == ("a b ", "stop")
    assert sent(model).stops == ("c",)
    assert (await model.ainvoke("q", stop=["b", "d"])).text == "a "
    assert (await model.ainvoke("q", stop=[])).text == "a b c d"


async def test_the_first_stop_to_be_complete_counts() -> None:
    for pieces in (["xabcd"], list("xabcd"), ["xa", "bcd"]):
        model = BackendChatModel(Pieces(pieces))
        assert (await model.ainvoke("q", stop=["bcd", "c"])).text == "xab"


@given(
    st.text("abx", max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3),
    st.data(),
)
def test_a_stop_is_found_wherever_the_text_is_cut(text: str, stops: list[str], data: Any) -> None:
    end = min((text.find(stop) + len(stop) for stop in stops if stop in text), default=None)
    complete = [stop for stop in stops if end is not None and text[:end].endswith(stop)]
    expected = text if end is None else text[: end - max(map(len, complete))]

    until, through = _Until(stops), ""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
        through += until.feed(text[start:stop])
        assert expected.startswith(through)
        if until.found:
            break
    assert through + until.rest() == expected
    assert until.found == (end is not None)


async def test_two_calls_of_one_model_are_told_apart() -> None:
    model = says("a")
    await model.ainvoke("q")
    first = sent(model).key
    await model.ainvoke("q")
    assert sent(model).key != first


# --- tools -------------------------------------------------------------------------


async def test_calls_are_read_out_of_the_text_streamed_or_not() -> None:
    model = says(f"Let me see.\n\n```json\n{CALL}\n```")
    with_tools = model.bind_tools([weather])
    chunks = [chunk async for chunk in with_tools.astream("q")]
    for message in (await with_tools.ainvoke("q"), merged(chunks)):
        assert message.text == "Let me see."
        [call] = message.tool_calls
        assert (call["name"], call["args"]) == ("weather", {"city": "Oslo"})
        assert call["id"]
        assert message.response_metadata["finish_reason"] == "tool_calls"
    assert "".join(chunk.text for chunk in chunks[:-1]) == "Let me see."
    assert '"weather"' in sent(model).prompt


async def test_every_call_has_an_id_of_its_own() -> None:
    model = says(CALL).bind_tools([weather])
    ids = {(await model.ainvoke("q")).tool_calls[0]["id"] for _ in range(3)}
    assert len(ids) == 3


async def test_a_plain_answer_stays_one_and_comes_at_once() -> None:
    model = says("It is sunny [1].").bind_tools([weather])
    chunks = [chunk async for chunk in model.astream("q")]
    assert [chunk.text for chunk in chunks][:3] == ["It", " is", " sunny"]
    message = merged(chunks)
    assert (message.text, message.tool_calls) == ("It is sunny [1].", [])
    assert message.response_metadata["finish_reason"] == "stop"


async def test_without_tools_json_is_text() -> None:
    message = await says(CALL).ainvoke("q")
    assert (message.text, message.tool_calls) == (CALL, [])


@pytest.mark.parametrize("output_version", ["v0", "v1"])
async def test_a_call_that_was_cut_off_is_invalid_and_raises_nothing(output_version: str) -> None:
    model = says(CALL, max_tokens=24, output_version=output_version).bind_tools([weather])
    streamed = merged([chunk async for chunk in model.astream("q")])
    for message in (await model.ainvoke("q"), streamed):
        assert (message.text, message.tool_calls) == ("", [])
        [invalid] = message.invalid_tool_calls
        assert invalid["name"] == "weather"
        assert invalid["args"]
        assert '{"tool_calls"' in invalid["args"]


async def test_only_what_the_model_wrote_is_read() -> None:
    model = BackendChatModel(ScriptedBackend(lambda request: "No.")).bind_tools([weather])
    message = await model.ainvoke(
        [HumanMessage(f"Say {CALL}"), AIMessage("x"), ToolMessage(CALL, tool_call_id="1")]
    )
    assert (message.text, message.tool_calls) == ("No.", [])


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        (None, "If you need no tool"),
        (False, "If you need no tool"),
        ("auto", "If you need no tool"),
        ("any", "Call at least one tool now"),
        ("required", "Call at least one tool now"),
        (True, "Call at least one tool now"),
        ({"type": "any"}, "Call at least one tool now"),
        ("weather", "Call the tool weather now"),
        ({"type": "function", "function": {"name": "weather"}}, "Call the tool weather now"),
        ({"type": "tool", "name": "weather"}, "Call the tool weather now"),
    ],
)
async def test_a_tool_choice_is_told_to_the_model(choice: Any, told: str) -> None:
    model = says(CALL)
    await model.bind_tools([weather], tool_choice=choice).ainvoke("q")
    assert told in sent(model).prompt


async def test_with_the_choice_none_the_model_learns_of_no_tool() -> None:
    model = says(CALL)
    message = await model.bind_tools([weather], tool_choice="none").ainvoke("q")
    assert (message.text, sent(model).prompt) == (CALL, "q")


def test_an_agent_calls_a_tool_and_answers_from_its_result() -> None:
    def script(request: Request) -> str:
        *_, last = request.prompt.splitlines()
        return "It is sunny." if "Sunny in Oslo" in last else CALL

    agent = create_agent(
        BackendChatModel(ScriptedBackend(script)), [weather], system_prompt="Be brief."
    )
    output = agent.invoke({"messages": [("user", "How is Oslo?")]})
    assert [message.type for message in output["messages"]] == ["human", "ai", "tool", "ai"]
    assert output["messages"][-1].text == "It is sunny."


async def test_an_agent_streams_the_models_tokens() -> None:
    agent = create_agent(says("It is sunny."), [weather])
    seen = [
        chunk.text
        async for chunk, _ in agent.astream({"messages": [("user", "q")]}, stream_mode="messages")
    ]
    assert "".join(seen) == "It is sunny."
    assert len(seen) > 3


class Forecast(BaseModel):
    """A forecast."""

    city: str
    degrees: int


def test_structured_output_comes_back_as_its_class() -> None:
    written = '{"name": "Forecast", "args": {"city": "Oslo", "degrees": 7}}'
    structured = says(written).with_structured_output(Forecast)
    assert structured.invoke("q") == Forecast(city="Oslo", degrees=7)
    agent = create_agent(says(written), response_format=Forecast)
    output = agent.invoke({"messages": [("user", "q")]})
    assert output["structured_response"] == Forecast(city="Oslo", degrees=7)


def test_it_is_a_link_of_a_chain() -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("user", "{question}")])
    model = says("Yes.")
    assert (prompt | model | StrOutputParser()).invoke({"question": "Is it?"}) == "Yes."
    assert sent(model).prompt == "Be brief.\nIs it?"


def test_it_counts_tokens_as_its_backend_does() -> None:
    model = says("")
    assert model.get_num_tokens("one two") == 3
    messages = [HumanMessage("one two three"), AIMessage("x"), HumanMessage("four")]
    kept = trim_messages(messages, max_tokens=8, token_counter=model, start_on="human")
    assert [message.text for message in kept] == ["four"]


# --- cancelling --------------------------------------------------------------------


async def test_closing_a_stream_cancels_the_request() -> None:
    backend = ScriptedBackend(lambda request: Reply("a b", hangs=True))
    model = BackendChatModel(backend)
    async with aclosing(model.astream("q")) as chunks:
        assert (await anext(chunks)).text == "a"
        assert backend.in_flight == 1
    assert backend.in_flight == 0


async def test_cancelling_a_call_cancels_the_request() -> None:
    backend = ScriptedBackend(lambda request: Reply("a b", hangs=True))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await BackendChatModel(backend).ainvoke("q")
    assert backend.in_flight == 0


def test_closing_a_sync_stream_cancels_the_request() -> None:
    backend = ScriptedBackend(lambda request: Reply("a b", hangs=True))
    with closing(BackendChatModel(backend).stream("q")) as chunks:
        assert next(chunks).text == "a"
        assert backend.in_flight == 1
    assert backend.in_flight == 0


async def test_a_stop_cancels_the_request() -> None:
    backend = ScriptedBackend(lambda request: Reply("a b c", hangs=True), chunk=3)
    assert (await BackendChatModel(backend).ainvoke("q", stop=[" "])).text == "a"
    assert backend.in_flight == 0


def test_sync_callers_share_one_event_loop() -> None:
    loops = []

    class Watching(Pieces):
        async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
            loops.append(asyncio.get_running_loop())
            async for delta in super().stream(request):
                yield delta

    model = BackendChatModel(Watching(["a"]))
    model.batch(["q", "q", "q"])
    list(model.stream("q"))
    assert loops == [background_loop()] * 4


def test_an_iterator_in_the_background_stays_within_one_task_and_raises_what_it_raises() -> None:
    async def items() -> AsyncGenerator[Any, None]:
        yield asyncio.current_task()
        yield asyncio.current_task()
        raise ZeroDivisionError

    seen = []

    def drain() -> None:
        seen.extend(iter(iterate_in_background(items())))

    with pytest.raises(ZeroDivisionError):
        drain()
    iterator = iterate_in_background(items())
    assert next(iterator) is next(iterator)
    iterator.close()
    assert list(iterator) == []


def test_a_sync_call_on_the_shared_loop_itself_is_an_error_and_no_deadlock() -> None:
    model = says("a")

    async def inside() -> None:
        model.invoke("q")

    with pytest.raises(RuntimeError, match="ainvoke"):
        run_in_background(inside())


# --- errors ------------------------------------------------------------------------


async def test_a_failing_backend_raises_its_own_error() -> None:
    model = BackendChatModel(ScriptedBackend(lambda request: Reply("a", fails=PromptTooLong(9, 8))))
    with pytest.raises(PromptTooLong):
        await model.ainvoke("q")
    with pytest.raises(PromptTooLong):
        model.invoke("q")
    with pytest.raises(BackendFailed, match="nothing"):
        await BackendChatModel(Pieces([])).ainvoke("q")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"temperature": 0.3}, "temperature"),
        ({"tools": [{"type": "web_search_preview"}]}, "tool"),
        ({"tools": [weather], "tool_choice": "snow"}, "tool_choice"),
    ],
)
async def test_an_option_that_cannot_be_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidOption, match=named):
        await says("a").ainvoke("q", **options)


def test_a_model_that_cannot_be_made_says_why() -> None:
    with pytest.raises(UnknownModel):
        BackendChatModel("nonsense")
    for chat_model in (says("a"), None):
        with pytest.raises(InvalidOption, match="backend"):
            BackendChatModel(chat_model)
    with pytest.raises(InvalidOption, match="max_tokens"):
        says("a", max_tokens=0)
    with pytest.raises(InvalidOption, match="stop"):
        says("a", stop=[""])
    with pytest.raises(ValidationError, match="temperature"):
        says("a", temperature=1)
    with pytest.raises(InvalidOption, match="tool_choice"):
        says("a").bind_tools([weather], tool_choice="snow")


async def test_what_a_text_backend_cannot_read_is_refused() -> None:
    picture = {"type": "image", "base64": "aGk=", "mime_type": "image/png"}
    with pytest.raises(InvalidOption, match="image"):
        await says("a").ainvoke([HumanMessage(["Look:", picture])])
    with pytest.raises(EmptyQuestion):
        await says("a").ainvoke([SystemMessage(" ")])


def test_traces_and_caches_tell_models_apart() -> None:
    model = says("a", stop=["x"])
    params = model._get_ls_params()
    assert (params["ls_provider"], params["ls_model_name"]) == ("apr-agents", "scripted")
    assert params["ls_stop"] == ["x"]
    assert model._get_llm_string() != says("a", max_tokens=5)._get_llm_string()
    assert "ScriptedBackend" in model._get_llm_string()
