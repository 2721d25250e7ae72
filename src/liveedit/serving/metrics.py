"""Metrics of a service, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from ..answers import FIRING_THRESHOLD

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ROUTING_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The metrics of one service, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.answer_seconds = Histogram(
            "liveedit_answer_seconds",
            "Seconds from accepting a question to its whole answer.",
            registry=registry,
            buckets=_SECONDS,
        )
        self.edit_seconds = Histogram(
            "liveedit_edit_seconds",
            "Seconds from accepting an edit until it is on disk.",
            registry=registry,
            buckets=_SECONDS,
        )
        self.routing_seconds = Histogram(
            "liveedit_routing_seconds",
            "Seconds of routing one batch, if any edit is active.",
            registry=registry,
            buckets=_ROUTING_SECONDS,
        )
        self.wait_seconds = Histogram(
            "liveedit_wait_seconds", "Seconds of waiting for the model.", registry=registry, buckets=_SECONDS
        )
        self.batch_size = Histogram(
            "liveedit_batch_size", "Questions answered at once.", registry=registry, buckets=_SIZES
        )
        self.edits_fired = Counter(
            "liveedit_edits_fired",
            f"Edits that fired in answers (weight >= {FIRING_THRESHOLD}).",
            registry=registry,
        )
        self.answers = Counter("liveedit_answers", "Answers, by whether an edit fired.", ["edited"], registry=registry)
        self.tokens = Counter("liveedit_tokens", "Tokens of prompts and answers.", ["kind"], registry=registry)
        self.requests = Counter(
            "liveedit_requests", "Requests, by route and status.", ["method", "route", "status"], registry=registry
        )
        self.edits = Gauge("liveedit_edits", "Active edits.", registry=registry)
        self._queue = Gauge("liveedit_queue_length", "Requests waiting for the model.", registry=registry)

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Call this function for the length of the queue whenever the metrics are read."""
        self._queue.set_function(length)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
