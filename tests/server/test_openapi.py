"""The server keeps to its own description, whatever it is sent."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.harness import NAME, Running, Scripted, running

TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": None},
}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
COMMON = {
    "model": NAME, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "n": 2, "seed": 1,
    "repetition_penalty": 1.1, "stop": ["x", "yz"], "stream": False, "user": "u", "metadata": {},
    "frequency_penalty": 0, "logit_bias": {}, "include_stop_str_in_output": True, "max_tokens": 3,
}  # fmt: skip
BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/completions": [
        COMMON | {"prompt": "text", "logprobs": 2},
        COMMON | {"prompt": ["a", "b"], "echo": True},
        COMMON | {"prompt": [[1, 2], [3]], "stream": True, "stream_options": {}},
    ],
    "/v1/chat/completions": [
        COMMON | {"messages": [{"role": "user", "content": "a"}], "logprobs": True},
        COMMON
        | {
            "messages": [
                {"role": "system", "content": [{"type": "text", "text": "a"}]},
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "c", "content": "b"},
            ],
            "tools": [TOOL],
            "tool_choice": "auto",
            "stream": True,
        },
        COMMON
        | {
            "messages": [{"role": "user", "content": "a"}],
            "tools": [TOOL],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
        },
        COMMON
        | {
            "messages": [{"role": "user", "content": "a"}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "s", "schema": {"type": "object"}},
            },
        },
    ],
}
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.integers(-2, 300)
    | st.floats()
    | st.text(st.characters(), max_size=4)
    | st.sampled_from(
        ["text", "json_object", "user", "tool", "function", "object", "array", "$ref"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "role", "content", "properties", "items", "$ref", "a"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=5,
)


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of everything inside a body."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*here, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*here, key))


@st.composite
def changed(draw: st.DrawFn, path: str) -> dict[str, Any]:
    """A body with something else in one or two of its places, or something missing, or more."""
    body = copy.deepcopy(draw(st.sampled_from(BODIES[path])))
    for _ in range(draw(st.integers(1, 2))):
        *above, last = draw(st.sampled_from(sorted(places(body), key=str)))
        holder: Any = body
        for key in above:
            holder = holder[key]
        change = draw(st.sampled_from(["set", "delete", "add"]))
        if change == "delete":
            del holder[last]
        elif change == "set":
            holder[last] = draw(ANYTHING)
        elif isinstance(holder, list):
            holder.append(draw(ANYTHING))
        else:
            holder[draw(st.text(max_size=3))] = draw(ANYTHING)
        if not body:
            break
    return body


class Described:
    """A server, and what its document says about it."""

    def __init__(self, server: Running) -> None:
        self._client = httpx.Client(base_url=server.url, timeout=60)
        self.document = self._client.get("/openapi.json").json()

    def send(self, path: str, body: Any) -> httpx.Response:
        content = json.dumps(body)
        headers = {"content-type": "application/json"}
        return self._client.post(path, content=content, headers=headers)

    def check(self, response: httpx.Response, path: str, method: str = "post") -> None:
        """See that a response has a status and a shape that the document knows."""
        responses = self.document["paths"][path][method]["responses"]
        status = str(response.status_code)
        known = responses.get(status) or responses[f"{status[0]}XX"]
        kind = response.headers["content-type"].partition(";")[0]
        content = known["content"][kind]
        if kind == "application/json":
            components = {"components": self.document["components"]}
            jsonschema_rs.validate(content["schema"] | components, response.json())

    def close(self) -> None:
        self._client.close()


@pytest.fixture(scope="module")
def described(make_engine: Callable[..., Scripted]) -> Iterator[Described]:
    with running(make_engine()) as server:
        described = Described(server)
        yield described
        described.close()


@pytest.mark.parametrize("path", BODIES)
def test_requests_of_every_kind_are_answered_as_described(described: Described, path: str) -> None:
    for body in BODIES[path]:
        response = described.send(path, body)
        assert response.status_code == 200, response.text
        described.check(response, path)


@pytest.mark.parametrize("path", BODIES)
def test_what_is_wrong_somewhere_is_refused_as_described_and_never_a_fault(
    described: Described, path: str
) -> None:
    @given(changed(path))
    @settings(max_examples=150, derandomize=True, database=None)
    def try_it(body: dict[str, Any]) -> None:
        response = described.send(path, body)
        assert response.status_code in (200, 400, 404), response.text
        described.check(response, path)

    try_it()


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/{name}", "/health", "/metrics"])
def test_what_can_be_read_is_as_described(described: Described, path: str) -> None:
    for name in (NAME, "other", "a/b", "%ff"):
        response = described._client.get(path.replace("{name}", name))
        described.check(response, path, "get")
