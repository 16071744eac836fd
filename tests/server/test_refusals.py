"""Whatever a client sends, it gets an error of OpenAI's form and never a 500."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from tests.server.harness import CONTEXT, NAME, Running

COMPLETION = {"model": NAME, "prompt": "a", "max_tokens": 2}
CHAT = {"model": NAME, "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error in a response, which has all of OpenAI's parts."""
    (name,) = response.json()
    error = response.json()[name]
    assert (name, set(error)) == ("error", {"message", "type", "param", "code"})
    assert error["message"]
    return error


def call(number: str) -> dict[str, Any]:
    function = {"name": "add", "arguments": number}
    return {
        "role": "assistant",
        "tool_calls": [{"id": "1", "type": "function", "function": function}],
    }


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"a": schema}
    return schema


WRONG: list[tuple[str, dict[str, Any], str | None]] = [
    ("completions", {"prompt": 5}, "prompt"),
    ("completions", {"prompt": []}, "prompt"),
    ("completions", {"prompt": ""}, "prompt"),
    ("completions", {"prompt": None}, "prompt"),
    ("completions", {"prompt": ["a", 1]}, "prompt.1"),
    ("completions", {"prompt": [[]]}, "prompt.0"),
    ("completions", {"prompt": [[-1]]}, "prompt.0.0"),
    ("completions", {"prompt": [0, 260]}, "prompt"),
    ("completions", {"prompt": [2**70]}, "prompt.0"),
    ("completions", {"prompt": "a" * CONTEXT}, "prompt"),
    ("completions", {"prompt": ["a", "b" * CONTEXT]}, "prompt"),
    ("completions", {"prompt": ["a"] * 600}, "prompt"),
    ("completions", {"max_tokens": 0}, "max_tokens"),
    ("completions", {"max_tokens": "5"}, "max_tokens"),
    ("completions", {"max_tokens": 2.5}, "max_tokens"),
    ("completions", {"max_tokens": True}, "max_tokens"),
    ("completions", {"max_tokens": 10**30}, "prompt"),
    ("completions", {"temperature": -0.1}, "temperature"),
    ("completions", {"temperature": 2.1}, "temperature"),
    ("completions", {"top_p": 0}, "top_p"),
    ("completions", {"top_k": -2}, "top_k"),
    ("completions", {"min_p": 1}, "min_p"),
    ("completions", {"repetition_penalty": 0}, "repetition_penalty"),
    ("completions", {"n": 0}, "n"),
    ("completions", {"n": 129}, "n"),
    ("completions", {"seed": 2**63}, "seed"),
    ("completions", {"stop": ""}, "stop"),
    ("completions", {"stop": ["a", ""]}, "stop.1"),
    ("completions", {"stop": ["a"] * 17}, "stop"),
    ("completions", {"stop": 5}, "stop"),
    ("completions", {"logprobs": 21}, "logprobs"),
    ("completions", {"logprobs": True}, "logprobs"),
    ("completions", {"logprobs": 1, "echo": True}, None),
    ("completions", {"stream": "yes"}, "stream"),
    ("completions", {"stream_options": {"include_usage": True}}, None),
    ("completions", {"stream": True, "stream_options": {"foo": 1}}, "stream_options.foo"),
    ("completions", {"frequency_penalty": 0.5}, "frequency_penalty"),
    ("completions", {"logit_bias": {"5": 1}}, "logit_bias"),
    ("completions", {"best_of": 3}, "best_of"),
    ("completions", {"\ud800": 3}, None),
    ("completions", {"messages": []}, "messages"),
    ("chat/completions", {"messages": []}, "messages"),
    ("chat/completions", {"messages": "hello"}, "messages"),
    ("chat/completions", {"messages": [{"content": "a"}]}, "messages.0.role"),
    ("chat/completions", {"messages": [{"role": "god", "content": "a"}]}, "messages.0.role"),
    ("chat/completions", {"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages.0.content.0.type",
    ),
    (
        "chat/completions",
        {"messages": [call("{")]},
        "messages.0.tool_calls.0.function.arguments",
    ),
    (
        "chat/completions",
        {"messages": [call("[1]")]},
        "messages.0.tool_calls.0.function.arguments",
    ),
    ("chat/completions", {"max_completion_tokens": 5}, None),
    ("chat/completions", {"top_logprobs": 2}, None),
    ("chat/completions", {"tool_choice": "required"}, None),
    ("chat/completions", {"tools": [TOOL], "tool_choice": "perhaps"}, "tool_choice"),
    (
        "chat/completions",
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "sub"}}},
        None,
    ),
    ("chat/completions", {"tools": [{"type": "web_search"}]}, "tools.0.type"),
    (
        "chat/completions",
        {"tools": [{"type": "function", "function": {"name": "a", "parameters": deep(90)}}]},
        "tools",
    ),
    ("chat/completions", {"tools": [TOOL], "response_format": {"type": "json_object"}}, None),
    ("chat/completions", {"response_format": {"type": "xml"}}, "response_format.type"),
    ("chat/completions", {"functions": []}, "functions"),
]


@pytest.mark.parametrize(("path", "change", "param"), WRONG)
def test_a_wrong_value_is_a_400_that_names_it(
    server: Running, path: str, change: dict[str, Any], param: str | None
) -> None:
    body = json.dumps((COMPLETION if path == "completions" else CHAT) | change)
    headers = {"content-type": "application/json"}
    response = httpx.post(f"{server.v1}/{path}", content=body, headers=headers)
    error = error_of(response)
    assert response.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"model": "tiny", "prompt": "a", "temperature": NaN}',
        b'{"model": "tiny", "prompt": "a", "temperature": 1e999}',
        b'{"model": "tiny", "prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}",
        b'{"model": "tiny", "prompt": ' + b"[" * 100_000,
        b'{"model": "tiny", "prompt": ' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"model": "tiny", "prompt": "a", "metadata": ' + b'{"a":' * 990 + b"1" + b"}" * 991,
        b'{"model": "tiny", "prompt": "\xe4"}',
        b'{"model": "tiny", "prompt": "\x01"}',
        b'{"model": "tiny", "prompt": "a"} {}',
        b"{'model': 'tiny', 'prompt': 'a'}",
    ],
)
def test_a_body_that_is_no_request_is_a_400(server: Running, body: bytes) -> None:
    for path in ("completions", "chat/completions"):
        headers = {"content-type": "application/json"}
        response = httpx.post(f"{server.v1}/{path}", content=body, headers=headers)
        assert response.status_code == 400
        assert error_of(response)["type"] == "invalid_request_error"


def test_a_body_that_is_not_said_to_be_json_is_refused(server: Running) -> None:
    # What a web page of somebody else's may send without being asked for permission.
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        headers = {"content-type": kind}
        body = json.dumps(COMPLETION)
        response = httpx.post(f"{server.v1}/completions", content=body, headers=headers)
        assert response.status_code == 400
        assert "application/json" in error_of(response)["message"]


SCHEMAS: list[Any] = [
    {"const": "<|end|>"},  # a control token of the model
    {"const": "\ud800"},
    {"const": float("nan")},
    {"type": 5},
    {"enum": []},
    {"enum": list(range(5000))},
    {"not": {}},
    {"$ref": "#"},
    {"$ref": "http://example.org/x"},
    {"pattern": "("},
    {"type": "string", "pattern": "(a{1000}){1000}"},
    {"type": "string", "minLength": 10**9},
    {"type": "string", "maxLength": 10**30},
    {"type": "number", "multipleOf": 0},
    {"type": "integer", "minimum": 5, "maximum": 1},
    {"anyOf": [{"type": "string"}] * 1000},
    {"type": "object", "properties": {"\ud800": {"type": "string"}}},
    {"type": "object", "properties": 5},
    deep(300),
]


@pytest.mark.parametrize(
    "schema", SCHEMAS, ids=lambda schema: str(schema)[:40].encode("ascii", "replace").decode()
)
def test_whatever_a_schema_says_it_is_kept_to_or_refused(server: Running, schema: Any) -> None:
    shape = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    for change in ({"response_format": shape}, {"tools": [tool], "tool_choice": "required"}):
        body = json.dumps(CHAT | {"max_tokens": 20, "temperature": 0} | change)
        headers = {"content-type": "application/json"}
        response = httpx.post(f"{server.v1}/chat/completions", content=body, headers=headers)
        assert response.status_code in (200, 400), response.text
        if response.status_code == 400:
            error_of(response)


def test_half_a_surrogate_pair_is_a_question_mark(server: Running) -> None:
    body = json.dumps(COMPLETION | {"prompt": "a\ud800", "user": "\udfff"})
    headers = {"content-type": "application/json"}
    assert httpx.post(f"{server.v1}/completions", content=body, headers=headers).status_code == 200
    body = json.dumps(CHAT | {"messages": [{"role": "user", "content": "\ud800"}]})
    response = httpx.post(f"{server.v1}/chat/completions", content=body, headers=headers)
    assert response.status_code == 200


def test_what_is_missing_or_unknown_is_said_in_openais_words(server: Running) -> None:
    error = error_of(server.post("/completions", {"prompt": "a"}))
    assert (error["message"], error["param"]) == ("Missing required parameter: 'model'.", "model")
    error = error_of(server.post("/completions", COMPLETION | {"foo": 1}))
    assert error["message"] == "Unrecognized request argument supplied: foo"


def test_another_model_is_a_404(server: Running) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        server.client.completions.create(model="gpt-5", prompt="a")
    assert caught.value.code == "model_not_found"
    response = server.post(
        "/chat/completions", CHAT | {"model": "\udcff".encode(errors="replace").decode()}
    )
    assert response.status_code == 404


def test_other_paths_and_methods_have_errors_of_the_same_form(server: Running) -> None:
    response = httpx.get(f"{server.v1}/completions")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert "GET /v1/completions" in error_of(response)["message"]
    response = httpx.post(f"{server.v1}/embeddings", json={})
    assert response.status_code == 404
    assert "/v1/embeddings" in error_of(response)["message"]


def test_what_changes_nothing_is_taken(server: Running) -> None:
    ignored = {
        "user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto",
        "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "top_k": -1,
        "stop": None, "seed": None, "top_p": None, "n": None, "stream": None,
        "temperature": 1e-320,
    }  # fmt: skip
    assert server.post("/completions", COMPLETION | ignored).status_code == 200
    assert server.post("/chat/completions", CHAT | ignored | {"tools": []}).status_code == 200


def test_a_fault_of_the_server_is_a_500_of_the_same_form(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(request: Any, hear: Any) -> int:
        raise RuntimeError("secret")

    monkeypatch.setattr(server.engine, "submit", broken)
    taken = server.app.state.service.taken
    for body in (COMPLETION, COMPLETION | {"stream": True, "n": 3}):
        response = server.post("/completions", body)
        assert response.status_code == 500
        assert error_of(response)["type"] == "server_error"
        assert "secret" not in response.text
    assert server.app.state.service.taken == taken
