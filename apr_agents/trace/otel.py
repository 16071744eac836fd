"""A run as OpenTelemetry spans, by the semantic conventions for generative AI (extra ``otel``).

A thread is an ``invoke_agent`` span; below it are its model calls, its tools and its own
threads. What models and tools wrote is left out unless it is asked for, as the conventions
want it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from apr_agents.errors import MissingExtra, NoTimes, SpansRefused
from apr_agents.trace.trajectory import Trajectory
from apr_agents.types import Block, Generated, Summary, ThreadResult, ToolUse

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
except ImportError as error:
    raise MissingExtra("otel", error.name or "opentelemetry") from error

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.trace import Span

PROVIDER = "apr_agents"
"""The record does not say which client or server was behind a model."""


TIMEOUT = 10.0
"""Seconds that a collector may take."""


def export_spans(
    trajectory: Trajectory, provider: trace.TracerProvider, *, texts: bool = False
) -> None:
    """Hand the spans of a run to ``provider``, with the times at which it ran.

    Args:
        texts: also hand over outlines, outputs, and what tools took and returned.

    Raises:
        NoTimes: the record is of version 1.
    """
    if trajectory.began is None:
        raise NoTimes
    _Spans(trajectory, provider, trajectory.began.timestamp(), texts).thread(trajectory.root, None)


def send(trajectory: Trajectory, endpoint: str | None = None, *, texts: bool = False) -> int:
    """Send the spans of a run to a collector, by OTLP over HTTP; how many there were.

    Args:
        endpoint: its URL, such as ``http://localhost:4318/v1/traces``; without one, what the
            variables of OpenTelemetry say.
        texts: as for `export_spans`.

    Raises:
        NoTimes: the record is of version 1.
        SpansRefused: the collector did not take them.
    """
    kept = InMemorySpanExporter()
    resource = Resource.create({"service.name": PROVIDER})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    export_spans(trajectory, provider, texts=texts)
    spans = kept.get_finished_spans()
    logging.getLogger(OTLPSpanExporter.__module__).setLevel(logging.CRITICAL)  # said below
    exporter = OTLPSpanExporter(endpoint, timeout=TIMEOUT)
    if exporter.export(spans) is not SpanExportResult.SUCCESS:
        raise SpansRefused(exporter._endpoint)
    return len(spans)


class _Spans:
    """The spans of one run that began at ``began``, in seconds since 1970."""

    def __init__(
        self, trajectory: Trajectory, provider: trace.TracerProvider, began: float, texts: bool
    ) -> None:
        self._tracer, self._began, self._texts = provider.get_tracer(PROVIDER), began, texts
        self._model = trajectory.model
        self._operation = "chat" if trajectory.protocol == "tool_calls" else "text_completion"

    def thread(self, thread: ThreadResult, parent: Span | None) -> None:
        """A thread and everything below it."""
        span = self._span("invoke_agent", f"thread {thread.id}", thread.started, parent)
        outline = thread.outline.text if thread.outline else None
        self._tell(
            span,
            {
                "gen_ai.agent.id": thread.id,
                "gen_ai.agent.name": f"thread {thread.id}",
                "gen_ai.request.model": self._model,
                "apr.status": thread.status,
                "apr.tokens": thread.tokens,
            },
            {"apr.outline": outline, "apr.conclusion": thread.conclusion},
        )
        if thread.status not in ("done", "cancelled"):
            self._fail(span, thread.status, thread.reason or "")
        for step in thread.steps:
            match step:
                case Generated():
                    self._call(step, span)
                case ToolUse():
                    self._tool(step, span)
                case Block():
                    for each in step.threads:
                        self.thread(each, span)
        span.end(self._ns(thread.ended))

    def _call(self, call: Generated, parent: Span) -> None:
        span = self._span(self._operation, self._model, call.started, parent, SpanKind.CLIENT)
        self._tell(
            span,
            {
                "gen_ai.request.model": self._model,
                "gen_ai.usage.input_tokens": call.prompt_tokens,
                "gen_ai.usage.output_tokens": call.tokens,
                "gen_ai.usage.cache_read.input_tokens": call.cached_tokens,
                "gen_ai.response.time_to_first_chunk": call.first_token,
                "apr.is_summary": isinstance(call, Summary),
                "apr.gate_wait": call.waited,
            },
            {"apr.output": call.text},
        )
        span.end(self._ns(call.ended))

    def _tool(self, use: ToolUse, parent: Span) -> None:
        span = self._span("execute_tool", use.call.name, use.started, parent)
        self._tell(
            span,
            {"gen_ai.tool.name": use.call.name, "gen_ai.tool.call.id": use.call.id},
            {
                "gen_ai.tool.call.arguments": str(use.call.args),
                "gen_ai.tool.call.result": use.text,
            },
        )
        if use.failed:
            self._fail(span, "tool_error", use.text)
        span.end(self._ns(use.ended))

    def _span(
        self,
        operation: str,
        about: str,
        started: float,
        parent: Span | None,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> Span:
        return self._tracer.start_span(
            f"{operation} {about}",
            context=set_span_in_context(parent) if parent is not None else None,
            kind=kind,
            attributes={"gen_ai.operation.name": operation, "gen_ai.provider.name": PROVIDER},
            start_time=self._ns(started),
        )

    def _tell(self, span: Span, known: dict[str, Any], texts: dict[str, str | None]) -> None:
        told = known | texts if self._texts else known
        span.set_attributes({name: value for name, value in told.items() if value is not None})

    def _fail(self, span: Span, kind: str, why: str) -> None:
        span.set_attribute("error.type", kind)
        span.set_status(StatusCode.ERROR, why if self._texts else None)

    def _ns(self, seconds: float) -> int:
        return round((self._began + seconds) * 1e9)
