"""Prometheus metrics of one process. A registry per platform: two of them may live in one interpreter."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.045, 0.06, 0.1, 0.2, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """Every series this process offers at /metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.http_seconds = Histogram(
            "shortlist_http_request_seconds",
            "Time from the first byte of a request to the last of its answer",
            ("method", "route", "status"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "shortlist_stage_seconds",
            "Time of one stage of a recommendation",
            ("stage",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.degraded = Counter(
            "shortlist_degraded", "Stages replaced by their fallback", ("stage", "cause"), registry=self.registry
        )
        self.recommendations = Counter(
            "shortlist_recommendations", "Slates answered", ("cold_start",), registry=self.registry
        )
        self.events = Counter("shortlist_events", "Events received, by outcome", ("outcome",), registry=self.registry)
        self.impressions_dropped = Counter(
            "shortlist_impressions_dropped", "Impressions lost: queue full or log unavailable", registry=self.registry
        )
        self.applied = Counter(
            "shortlist_follower_applied", "Stream entries applied", ("follower",), registry=self.registry
        )
        self.follower_errors = Counter(
            "shortlist_follower_errors", "Failures of a follower; it retries", ("follower",), registry=self.registry
        )
        self.model_reloads = Counter(
            "shortlist_model_reloads",
            "Newly promoted models: put to use, or refused while the old one stays",
            ("kind", "outcome"),
            registry=self.registry,
        )
        self.llm_work = Counter(
            "shortlist_llm_work",
            "Work asked of the language model, by what became of it",
            ("outcome",),
            registry=self.registry,
        )
        self.llm_label_mass = Histogram(
            "shortlist_llm_label_mass",
            "Probability of yes or no among all words; low: the model has not understood the question",
            buckets=(0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0),
            registry=self.registry,
        )
        self.snapshot_seconds = Histogram(
            "shortlist_snapshot_seconds",
            "Time to write an index snapshot",
            buckets=(0.1, 0.5, 1, 5, 15, 60, 300),
            registry=self.registry,
        )
        self.snapshot_bytes = Gauge(
            "shortlist_snapshot_bytes", "Size of the newest index snapshot", registry=self.registry
        )
        self.snapshot_failures = Counter(
            "shortlist_snapshot_failures", "Index snapshots that failed", registry=self.registry
        )
        self._lag_ms = Gauge(
            "shortlist_follower_lag_ms",
            "Age of the oldest stream entry a follower has not applied; 0 when it has caught up",
            ("follower",),
            registry=self.registry,
        )

    def watch_lag(self, follower: str, lag_ms: Callable[[], float]) -> None:
        """Read the follower's lag at every scrape."""
        self._lag_ms.labels(follower).set_function(lag_ms)

    def watch(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """A gauge that is read at every scrape."""
        Gauge(f"shortlist_{name}", help_text, registry=self.registry).set_function(value)

    def exposition(self) -> bytes:
        """The text that /metrics answers."""
        return generate_latest(self.registry)
