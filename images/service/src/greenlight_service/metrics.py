"""Prometheus metrics; each carries the colour and the version, so that live and candidate can be told apart."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

LATENCY_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one service, in a registry of their own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, colour: str, version: str) -> None:
        self._registry = CollectorRegistry()
        self._common = {"colour": colour, "version": version}
        names = ("colour", "version")
        self._requests = Counter(
            "greenlight_requests", "Answered requests.", (*names, "path", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "greenlight_request_seconds",
            "Time from a request's headers to its answer, waiting included.",
            (*names, "path"),
            buckets=LATENCY_BUCKETS,
            registry=self._registry,
        )
        self._forward_seconds = Histogram(
            "greenlight_forward_seconds",
            "Time of a forward pass, without waiting.",
            names,
            buckets=LATENCY_BUCKETS,
            registry=self._registry,
        ).labels(**self._common)
        self._rows = Histogram(
            "greenlight_batch_rows", "Images in a forward pass.", names, buckets=BATCH_BUCKETS, registry=self._registry
        ).labels(**self._common)
        self._waiting = self._gauge("greenlight_queue_requests", "Requests that wait for the model or are with it.")
        self._ready = self._gauge("greenlight_ready", "1 when the model answers, else 0.")
        self._draining = self._gauge("greenlight_draining", "1 after SIGTERM, else 0.")

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, ("colour", "version"), registry=self._registry).labels(**self._common)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Counts one answered request."""
        self._requests.labels(**self._common, path=path, status=str(status)).inc()
        self._seconds.labels(**self._common, path=path).observe(seconds)

    def passed(self, rows: int, seconds: float) -> None:
        """Counts one forward pass."""
        self._rows.observe(rows)
        self._forward_seconds.observe(seconds)

    def render(self, *, waiting: int, ready: bool, draining: bool) -> bytes:
        """Returns the text format, with the present values of the gauges."""
        self._waiting.set(waiting)
        self._ready.set(ready)
        self._draining.set(draining)
        return generate_latest(self._registry)
