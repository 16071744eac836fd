"""What Prometheus reads. Counts of the engine are read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from apr_agents.engine.engine import Engine

FIRST_TOKEN = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
NEXT_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
"""Upper bounds of the histograms' buckets, in seconds."""


class Metrics:
    """The metrics of one server; several servers in one process have several."""

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_OfEngine(engine))
        self._first = Histogram(
            "apr:time_to_first_token_seconds",
            "Seconds from a request to the first token of an answer.",
            buckets=FIRST_TOKEN,
            registry=self._registry,
        )
        self._next = Histogram(
            "apr:inter_token_latency_seconds",
            "Seconds between two tokens of an answer.",
            buckets=NEXT_TOKEN,
            registry=self._registry,
        )
        self._finished = Counter(
            "apr:answers",
            "Answers that have ended, by how.",
            ["finish"],
            registry=self._registry,
        )
        self._refused = Counter(
            "apr:requests_refused",
            "Requests that came when all places were taken.",
            registry=self._registry,
        )
        for finish in ("stop", "end", "length", "cancelled", "failed"):
            self._finished.labels(finish)

    def token(self, seconds: float, *, first: bool) -> None:
        """A token came, so long after the one before or after the request."""
        (self._first if first else self._next).observe(seconds)

    def finished(self, finish: str) -> None:
        """An answer has ended."""
        self._finished.labels(finish).inc()

    def refused(self) -> None:
        """A request was refused for want of a place."""
        self._refused.inc()

    def page(self) -> bytes:
        """All of them, in Prometheus's text format."""
        return generate_latest(self._registry)


class _OfEngine(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        engine = self._engine
        running, waiting = engine.load
        slots = engine.options.cache_tokens
        gauges = {
            "running": ("Answers that the engine computes.", running),
            "waiting": ("Answers that wait for their turn.", waiting),
            "free_lanes": (
                "Answers that could be computed beside those, hardly any slower.",
                engine.free_lanes,
            ),
            "kv_slots": ("Tokens whose keys and values the cache can hold.", slots),
            "kv_slots_used": ("Tokens whose keys and values it holds.", slots - engine.pool.free),
        }
        for name, (meaning, value) in gauges.items():
            yield GaugeMetricFamily(f"apr:{name}", meaning, value=value)
        statistics = engine.statistics
        counters = {
            "prompt_tokens_computed": ("Prompt tokens computed.", statistics.prefilled),
            "prompt_tokens_cached": (
                "Prompt tokens that did not have to be computed.",
                statistics.cached,
            ),
            "generated_tokens": ("Tokens generated.", statistics.generated),
        }
        for name, (meaning, count) in counters.items():
            yield CounterMetricFamily(f"apr:{name}", meaning, value=count)
