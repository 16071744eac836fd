"""``/v1/completions``, through OpenAI's own client and without it."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import httpx
import openai
import pytest
from torch import Tensor

from apr_agents.backends.base import Request
from apr_agents.backends.completions import CompletionsBackend
from apr_agents.errors import PromptTooLong
from tests.server.harness import CONTEXT, NAME, Running

PROMPT = "Once upon"


def ids(server: Running, text: str) -> list[int]:
    return server.model.fast.encode(text).ids


def complete(server: Running, **options: Any) -> Any:
    options = {"model": NAME, "prompt": PROMPT, "max_tokens": 24} | options
    return server.client.completions.create(**options)


def test_an_answer_is_that_of_the_engine_token_for_token(server: Running) -> None:
    extra = {"top_k": 40, "min_p": 0.01, "repetition_penalty": 1.2}
    settings = [
        {"temperature": 0.0},
        {"temperature": 1.0, "seed": 5},
        {"temperature": 1.5, "top_p": 0.9, "seed": -3},
    ]
    for setting in settings:
        answer = complete(server, logprobs=0, extra_body=extra, **setting)
        seed = setting.pop("seed", 0) % 2**63
        text, tokens = server.in_process(
            ids=ids(server, PROMPT), max_tokens=24, seed=seed, logprobs=0, **extra, **setting
        )
        choice = answer.choices[0]
        assert choice.text == text
        assert choice.finish_reason == ("length" if tokens[-1].finish == "length" else "stop")
        logprobs = [token.logprob for token in tokens]
        assert choice.logprobs.token_logprobs == pytest.approx(logprobs, abs=1e-5)
        assert answer.usage.completion_tokens == len(tokens)
        assert answer.usage.prompt_tokens == len(PROMPT)
        assert answer.model == NAME


def test_a_stream_says_the_same_as_one_answer(server: Running) -> None:
    for options in ({}, {"n": 3}, {"prompt": ["a", "b"], "n": 2}, {"stop": ["é", "a", "k"]}):
        asked = {"seed": 7, "temperature": 1.0, "logprobs": 2, **options}
        whole = complete(server, **asked)
        chunks = list(
            complete(server, stream=True, stream_options={"include_usage": True}, **asked)
        )
        for choice in whole.choices:
            own = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
            assert "".join(c.text for c in own) == choice.text
            assert [token for c in own for token in c.logprobs.tokens] == choice.logprobs.tokens
            assert [c.finish_reason for c in own if c.finish_reason] == [choice.finish_reason]
            assert own[-1].finish_reason == choice.finish_reason
        assert chunks[-1].choices == []
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
        assert all(chunk.usage is None for chunk in chunks[:-1])
        assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_is_events_that_end_with_done(server: Running) -> None:
    body = {"model": NAME, "prompt": PROMPT, "max_tokens": 3, "temperature": 0, "stream": True}
    response = server.post("/completions", body)
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line[6:])["object"] == "text_completion" for line in lines[:-1])


def test_usage_so_far_comes_with_every_chunk_if_asked_for(server: Running) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(complete(server, temperature=0, stream=True, stream_options=options))
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == 24


def test_the_choices_of_a_prompt_have_seeds_that_follow_each_other(server: Running) -> None:
    several = complete(server, n=3, seed=11, temperature=1.0)
    alone = [complete(server, seed=11 + i, temperature=1.0).choices[0].text for i in range(3)]
    assert [choice.text for choice in several.choices] == alone
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert several.usage.prompt_tokens == len(PROMPT)
    assert several.usage.completion_tokens == 72


def test_without_a_seed_no_two_answers_are_alike(server: Running) -> None:
    answers = {complete(server, temperature=1.0).choices[0].text for _ in range(3)}
    assert len(answers) == 3


def test_a_prompt_may_be_text_or_tokens_one_or_several(server: Running) -> None:
    first, second = ids(server, "first"), ids(server, "second")
    forms = [["first", "second"], [first, second]]
    answers = [complete(server, prompt=form, temperature=0) for form in forms]
    for answer in answers:
        texts = [choice.text for choice in answer.choices]
        assert texts == [server.in_process(ids=i, max_tokens=24)[0] for i in (first, second)]
    assert complete(server, prompt=first, temperature=0).choices[0].text == texts[0]


@pytest.mark.parametrize("included", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_is_cut_off_exactly_or_left_on(
    server: Running, included: bool, stream: bool
) -> None:
    said = "héllo, wörld – END of it. And END again"
    server.engine.says = lambda prompt: said
    extra = {"include_stop_str_in_output": included}
    for stops, cut in ((["END"], "END"), (["wörld", "END"], "wörld"), (["zzz", "d – E"], "d – E")):
        answer = complete(server, stop=stops, stream=stream, max_tokens=99, extra_body=extra)
        choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]
        before = said[: said.index(cut)]
        assert "".join(choice.text for choice in choices) == before + (cut if included else "")
        assert choices[-1].finish_reason == "stop"
        assert choices[-1].stop_reason == cut


def test_a_stop_ends_the_request_at_its_last_token(server: Running) -> None:
    server.engine.says = lambda prompt: "abc def ghi"
    answer = complete(server, stop="def")
    assert answer.choices[0].text == "abc "
    assert answer.usage.completion_tokens == len("abc def")


def test_what_only_looked_like_a_stop_is_said(server: Running) -> None:
    server.engine.says = lambda prompt: "ab</ab"
    chunks = list(
        complete(server, stop="</abc>", stream=True, stream_options={"include_usage": True})
    )
    pieces = [chunk.choices[0].text for chunk in chunks if chunk.choices]
    assert pieces == ["a", "b", "</ab"]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-2].choices[0].stop_reason is None
    assert chunks[-1].usage.completion_tokens == len("ab</ab") + 1  # and the end token


def test_logprobs_describe_the_text_that_is_given(server: Running) -> None:
    server.engine.says = lambda prompt: "aé€ b STOP"
    logprobs = complete(server, stop="STOP", logprobs=3).choices[0].logprobs
    assert logprobs.tokens == ["a", *["\ufffd"] * 5, " ", "b", " "]
    assert logprobs.text_offset == [0, 1, 1, 2, 2, 2, 3, 4, 5]
    assert all(logprob <= 0 and math.isfinite(logprob) for logprob in logprobs.token_logprobs)
    for token, top in zip(logprobs.tokens, logprobs.top_logprobs, strict=True):
        assert token in top
        assert 1 <= len(top) <= 4


def test_an_echo_puts_the_prompt_first(server: Running) -> None:
    answer = complete(server, temperature=0)
    echoed = complete(server, temperature=0, echo=True)
    assert echoed.choices[0].text == PROMPT + answer.choices[0].text
    chunks = complete(server, temperature=0, echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == echoed.choices[0].text


def test_control_tokens_are_left_out_unless_asked_for(server: Running) -> None:
    server.engine.says = lambda prompt: "a<|begin|>b"
    assert complete(server).choices[0].text == "ab"
    kept = complete(server, extra_body={"skip_special_tokens": False})
    assert kept.choices[0].text == "a<|begin|>b"


def test_a_prompt_that_was_computed_before_is_said_to_be(server: Running) -> None:
    prompt = "¿ a beginning that no other prompt has " * 4
    length = len(prompt.encode())
    first = complete(server, prompt=prompt, n=2).usage
    again = complete(server, prompt=prompt, n=2).usage
    assert first.prompt_tokens_details.cached_tokens == 0
    assert again.prompt_tokens_details.cached_tokens == length - 1


def test_an_answer_may_fill_the_context_and_no_more(server: Running) -> None:
    server.engine.says = lambda prompt: "x" * 100
    prompt = "y" * (CONTEXT - 10)
    answer = complete(server, prompt=prompt, max_tokens=10)
    assert answer.choices[0].text == "x" * 10
    assert answer.choices[0].finish_reason == "length"
    with pytest.raises(openai.BadRequestError) as caught:
        complete(server, prompt=prompt, max_tokens=11)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "prompt"
    for number in (CONTEXT, CONTEXT + 1, CONTEXT - 10, 11):
        assert f"{number} " in caught.value.body["message"]


async def test_many_at_once_get_what_each_would_get_alone(server: Running) -> None:
    async with openai.AsyncOpenAI(base_url=server.v1, api_key="none") as client:

        async def ask(number: int) -> str:
            stream = await client.completions.create(
                model=NAME, prompt=f"number {number}", max_tokens=12, seed=number, stream=True
            )
            return "".join([chunk.choices[0].text async for chunk in stream])

        texts = await asyncio.gather(*map(ask, range(20)))
    for number, text in enumerate(texts):
        prompt = ids(server, f"number {number}")
        expected = server.in_process(ids=prompt, max_tokens=12, seed=number, temperature=1.0)
        assert text == expected[0]


def test_requests_of_one_user_are_one_program(server: Running) -> None:
    complete(server, n=2, user="u")
    complete(server, n=2)
    programs = [request.program for request in server.engine.asked]
    assert programs[:2] == ["u", "u"]
    assert programs[2] == programs[3] not in ("", "u")


def test_behind_its_own_end_a_model_goes_on_if_it_is_asked_to(server: Running) -> None:
    end = server.engine.tokenizer.eos_token_id

    class Ends:
        def restrict(self, logits_V: Tensor) -> None:
            logits_V[:end] = logits_V[end + 1 :] = float("-inf")

        def accept(self, token: int) -> None: ...

    server.engine.constrain = Ends
    for ignored, finish, tokens in ((False, "stop", 1), (True, "length", 5)):
        answer = complete(server, max_tokens=5, extra_body={"ignore_eos": ignored})
        assert answer.choices[0].finish_reason == finish
        assert answer.usage.completion_tokens == tokens


def test_a_failure_of_the_engine_is_a_500_or_the_last_event(server: Running) -> None:
    class Broken:
        def restrict(self, logits_V: object) -> None:
            raise RuntimeError("no luck")

        def accept(self, token: int) -> None: ...

    server.engine.constrain = Broken
    with pytest.raises(openai.InternalServerError) as caught:
        complete(server)
    assert "no luck" in caught.value.body["message"]
    with pytest.raises(openai.APIError, match="no luck"):
        list(complete(server, stream=True))
    server.engine.reset()
    assert complete(server).choices[0].text


def test_models_are_listed_with_their_context(server: Running) -> None:
    client = server.client
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).max_model_len == CONTEXT
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("another/one")
    assert caught.value.code == "model_not_found"
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}


async def test_the_completions_backend_hears_all_it_wants_to_know(server: Running) -> None:
    whole = "one <tag> two <|end|>"
    server.engine.says = lambda prompt: whole
    backend = CompletionsBackend(server.v1)
    assert await backend.free_lanes() == 256
    for stops, text, ended in (
        (("<tag>",), "one <tag>", False),
        ((), "one <tag> two <|end|>", True),
    ):
        request = Request(prompt="say it", max_tokens=50, stops=stops)
        deltas = [delta async for delta in backend.stream(request)]
        assert "".join(delta.text for delta in deltas) == text
        assert deltas[-1].ended == ended
        assert sum(delta.prompt_tokens for delta in deltas) == len("say it")
        generated = len(ids(server, text)) + ended
        assert sum(delta.tokens for delta in deltas) == generated
    with pytest.raises(PromptTooLong) as caught:
        async for _ in backend.stream(Request(prompt="x" * 2000, max_tokens=5)):
            pass
    assert (caught.value.tokens, caught.value.limit) == (2000, CONTEXT)
    assert backend.context_length == CONTEXT
    await backend.aclose()
