"""Index snapshots in the background, and the trimming of streams behind them."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

import structlog

from services.clock import system_ms
from services.ingest.retrying import RetryingThread
from services.metrics import Metrics
from services.retrieval.engine import RetrievalEngine
from services.schema import DependencyState
from services.storage.streams import STREAM_NAMES, Streams

CONSUMER = "index-snapshots"
"""Keeps the items stream from being trimmed past what the oldest kept snapshot needs."""


class Snapshots:
    """Writes a snapshot every so often, when something has changed, and one at the end."""

    def __init__(
        self,
        engine: RetrievalEngine,
        folder: Path,
        streams: Streams,
        *,
        interval_s: float,
        trim_streams: bool,
        metrics: Metrics,
        logger: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self._engine = engine
        self._folder = folder
        self._streams = streams
        self._interval_s = interval_s
        self._trim_streams = trim_streams
        self._metrics = metrics
        self._logger = logger
        self._kept: deque[str] = deque(maxlen=engine.index.config.keep_snapshots)
        self._written: tuple[object, dict[str, str]] | None = None
        """The version of the model and the offsets of the last snapshot."""
        self._written_ms = system_ms()
        self._registered = False
        self._thread = RetryingThread("snapshots", self._step, metrics=metrics, logger=logger)
        metrics.watch("snapshot_age_seconds", "Time since the index was last written or found unchanged", self._age_s)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after what is being written."""
        self._thread.stop()

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()

    def state(self) -> DependencyState:
        """A snapshot that cannot be written endangers a quick restart, not the answers: it is told, not fatal."""
        failure = self._thread.failure
        return DependencyState(ready=True, detail=f"retrying: {failure}" if failure else "ok")

    def write(self) -> None:
        """Write a snapshot now, unless nothing has changed since the last one."""
        if not self._registered:
            self._streams.register("items", CONSUMER)
            self._registered = True
        if self._state() == self._written:
            self._written_ms = system_ms()
            return
        started = time.perf_counter()
        try:
            info = self._engine.snapshot(self._folder)
        except Exception:
            self._metrics.snapshot_failures.inc()
            raise
        self._metrics.snapshot_seconds.observe(time.perf_counter() - started)
        self._metrics.snapshot_bytes.set(info.size_bytes)
        self._written, self._written_ms = (info.metadata["model_version"], dict(info.offsets)), system_ms()
        self._kept.append(info.offsets["items"])
        self._logger.info("index snapshot written", path=str(info.path), items=info.num_items, offsets=info.offsets)
        if len(self._kept) == self._kept.maxlen:
            self._streams.advance("items", CONSUMER, self._kept[0])
        if self._trim_streams:
            self.trim()

    def trim(self) -> None:
        """Drop what every registered consumer, this one among them, has behind it."""
        for stream in STREAM_NAMES:
            dropped = self._streams.trim(stream, self._streams.last_offset(stream))
            if dropped:
                self._logger.info("stream trimmed", stream=stream, entries=dropped)

    def _step(self) -> None:
        self._thread.pause(self._interval_s)
        if not self._thread.stopping:
            self.write()

    def _state(self) -> tuple[object, dict[str, str]]:
        return self._engine.model.version, dict(self._engine.index.offsets)

    def _age_s(self) -> float:
        return (system_ms() - self._written_ms) / 1000.0
