"""Imports change popularity beside the events stream: notice that, and load the index's signals again."""

from __future__ import annotations

import structlog

from services.ingest.retrying import RetryingThread
from services.metrics import Metrics
from services.retrieval.engine import RetrievalEngine
from services.retrieval.loading import read_signals
from services.schema import DependencyState
from services.storage.storage import Storage

CHECK_INTERVAL_S = 2.0


class SignalKeeper:
    """Compares how many events storage and the index have counted, and reloads where the stream explains too few."""

    def __init__(
        self,
        engine: RetrievalEngine,
        storage: Storage,
        *,
        metrics: Metrics,
        logger: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self._engine = engine
        self._storage = storage
        self._logger = logger
        self._thread = RetryingThread("signals", self._step, metrics=metrics, logger=logger)
        self.start = self._thread.start
        self.stop = self._thread.stop
        self.join = self._thread.join

    def state(self) -> DependencyState:
        """Popularity that is a little old endangers no answer: a failure is told, not fatal."""
        failure = self._thread.failure
        return DependencyState(ready=True, detail=f"retrying: {failure}" if failure else "ok")

    def check(self) -> bool:
        """Reload if something was counted that did not come by the stream. Returns whether it was."""
        offset, sequence = self._storage.client.call("HMGET", self._storage.names.state, "offset", "sequence")
        engine = self._engine
        held = engine.index.offsets.get("events")
        if engine.loaded is None or offset is None and not sequence:
            return False
        # At different places in the stream the two numbers cannot be compared: ask again next time.
        explained = engine.loaded.num_counted + engine.num_counted
        if (offset.decode() if offset else "0-0") != held or int(sequence or 0) == explained:
            return False
        schema = engine.schema
        stored = engine.load_signals(lambda keys: read_signals(self._storage, schema, keys))
        if stored is not None:
            self._logger.info("signals loaded again after an import", counted=stored.num_counted)
        return stored is not None

    def _step(self) -> None:
        self._thread.pause(CHECK_INTERVAL_S)
        if not self._thread.stopping:
            self.check()
