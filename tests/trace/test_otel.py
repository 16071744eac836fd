"""A run as OpenTelemetry spans."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.trace import SpanKind, StatusCode

from apr_agents.errors import NoTimes, SpansRefused
from apr_agents.trace.otel import export_spans, send
from apr_agents.trace.trajectory import Trajectory
from tests.trace.runs import call, thread, trajectory

WORDS = ("Split.", "sweet", "<b>nothing", "broke")
"""What the model, a tool and an error of the nested run said."""

VERSION_1 = Path(__file__).parent / "version_1.json"


def exported(run: Trajectory, **options: Any) -> dict[str, list[ReadableSpan]]:
    """The spans by name."""
    kept = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    export_spans(run, provider, **options)
    spans: dict[str, list[ReadableSpan]] = {}
    for span in kept.get_finished_spans():
        spans.setdefault(span.name, []).append(span)
    return spans


def parent(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


async def test_spans_are_nested_as_the_threads_are(run: Trajectory) -> None:
    spans = exported(run)
    ids = {thread: spans[f"invoke_agent thread {thread}"][0] for thread in run.threads()}
    numbers = {thread: span.context.span_id for thread, span in ids.items()}
    assert parent(ids["0"]) is None
    assert {thread: parent(span) for thread, span in ids.items() if thread != "0"} == {
        thread: numbers[thread.rpartition(".")[0]] for thread in ids if thread != "0"
    }
    tools = spans["execute_tool look_up"]
    assert [parent(span) for span in tools] == [numbers["0"], numbers["0"], numbers["0.2.1"]]
    everything = [span for named in spans.values() for span in named]
    assert len({span.context.trace_id for span in everything}) == 1
    by_number = {span.context.span_id: span for span in everything}
    for span in everything:
        if (above := by_number.get(parent(span) or 0)) is not None:
            assert above.start_time <= span.start_time <= span.end_time <= above.end_time


async def test_model_calls_have_the_attributes_of_the_conventions(run: Trajectory) -> None:
    spans = exported(run)
    calls = spans["chat ToolChat"]
    assert {span.kind for span in calls} == {SpanKind.CLIENT}
    told = [dict(span.attributes or {}) for span in calls]
    assert {one[gen_ai.GEN_AI_OPERATION_NAME] for one in told} == {"chat"}
    assert {one[gen_ai.GEN_AI_REQUEST_MODEL] for one in told} == {"ToolChat"}
    assert all(one[gen_ai.GEN_AI_PROVIDER_NAME] for one in told)
    metrics = run.metrics()
    assert sum(one[gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS] for one in told) == metrics.total_tokens
    assert sum(one[gen_ai.GEN_AI_USAGE_INPUT_TOKENS] for one in told) == metrics.prompt_tokens
    known = {value for name, value in vars(gen_ai).items() if name.startswith("GEN_AI_")}
    for span in (span for named in spans.values() for span in named):
        assert span.attributes is not None
        assert all(
            key in known or key == ERROR_TYPE or key.startswith("apr.") for key in span.attributes
        )
        assert span.attributes[gen_ai.GEN_AI_OPERATION_NAME] == span.name.partition(" ")[0]


def test_prefix_hits_and_the_first_token_are_told_where_they_are_known() -> None:
    calls = [call(3, 40, cached_tokens=30, waited=0.5, first_token=0.25, seconds=1.0), call(1, 5)]
    first, second = exported(trajectory(thread("0", calls)))["text_completion m"]
    assert first.attributes is not None
    assert second.attributes is not None
    assert first.attributes[gen_ai.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS] == 30
    assert first.attributes[gen_ai.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK] == 0.25
    assert first.end_time - first.start_time == pytest.approx(1e9, abs=1000)
    assert gen_ai.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS not in second.attributes


async def test_a_failed_thread_and_a_failed_tool_are_errors(run: Trajectory) -> None:
    spans = exported(run, texts=True)
    (failed,) = spans["invoke_agent thread 0.3"]
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.status.description == "OSError: line\nbroke"
    assert failed.attributes is not None
    assert failed.attributes[ERROR_TYPE] == "failed"
    wrong = [span.status.status_code for span in spans["execute_tool look_up"]]
    assert wrong == [StatusCode.UNSET, StatusCode.UNSET, StatusCode.ERROR]
    (done,) = spans["invoke_agent thread 0.1"]
    assert done.status.status_code is StatusCode.UNSET


async def test_texts_are_handed_over_only_if_asked_for(run: Trajectory) -> None:
    def texts(**options: Any) -> str:
        return "".join(
            span.to_json() for named in exported(run, **options).values() for span in named
        )

    assert not any(word in texts() for word in WORDS)
    assert all(word in texts(texts=True) for word in WORDS)


def test_a_record_without_times_has_no_spans() -> None:
    with pytest.raises(NoTimes, match="has no times"):
        exported(Trajectory.load(VERSION_1))


@contextmanager
def collector(status: int) -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """A collector that answers so, and what it got."""
    got: list[ExportTraceServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", got
        server.shutdown()
        serving.join()


async def test_a_collector_gets_every_span(run: Trajectory) -> None:
    with collector(200) as (url, got):
        count = send(run, url)
    spans = [
        span
        for request in got
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert len(spans) == count == sum(map(len, exported(run).values()))
    assert {span.name for span in spans} == set(exported(run))


async def test_a_collector_that_refuses_is_named(run: Trajectory) -> None:
    with collector(400) as (url, _), pytest.raises(SpansRefused, match=url):
        send(run, url)
