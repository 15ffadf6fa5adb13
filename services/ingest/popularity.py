"""The ranker's popularity offsets: kept from the stream, stored every so often, taken up at the next start."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import structlog

from models.data.schema import FeatureSchema
from models.ranking.popularity import PopularityOffsets
from services.ingest.appliers import apply_events_to_popularity
from services.ingest.follower import find_gap
from services.ingest.retrying import RetryingThread
from services.metrics import Metrics
from services.ranking.engine import RankingEngine
from services.schema import DependencyState
from services.storage.storage import Storage
from services.storage.streams import Entry

CONSUMER = "ranker-offsets"
"""Keeps the events stream from being trimmed past what the stored offsets reach."""


class PopularityKeeper:
    """Applies events to the engine's offsets and stores them with the place that they reach.

    After a crash the stored ones are taken up and what came behind them is applied again, as the members are then
    known. Another model takes the offsets over (`RankingEngine.replace`). A model without offsets keeps none.
    """

    def __init__(
        self,
        engine: RankingEngine,
        schema: FeatureSchema,
        storage: Storage,
        *,
        interval_s: float,
        metrics: Metrics,
        logger: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self._engine = engine
        self._storage = storage
        self._apply = apply_events_to_popularity(engine, schema, storage)
        self._interval_s = interval_s
        self._logger = logger
        self._lock = threading.Lock()  # offsets and the place that they reach are read together
        self._reached = self._stored = ""
        self._thread = RetryingThread("ranker-offsets", self._step, metrics=metrics, logger=logger)
        self.start = self._thread.start
        self.stop = self._thread.stop
        self.join = self._thread.join

    def state(self) -> DependencyState:
        """Offsets that cannot be stored endanger the next start, not the answers: it is told, not fatal."""
        failure = self._thread.failure
        return DependencyState(ready=True, detail=f"retrying: {failure}" if failure else "ok")

    def restore(self) -> str:
        """Give the engine the stored offsets; return the place in the events stream to follow from.

        Called once, before the stream is followed. Without stored offsets, or where the entries behind them are gone,
        that is the stream's end.
        """
        streams, engine = self._storage.streams, self._engine
        self._reached = streams.last_offset("events")
        if engine.model.popularity is None:
            streams.unregister("events", CONSUMER)
            self._storage.ranker_offsets.delete()
            return self._reached
        stored = self._storage.ranker_offsets.load()
        if stored is not None:
            try:
                engine.model.popularity = PopularityOffsets.from_bytes(stored.content, engine.model.tasks)
            except ValueError as error:
                self._logger.warning("stored popularity offsets are not usable, new ones begin", reason=str(error))
                self._storage.ranker_offsets.delete()
            else:
                self._reached = self._place_after(stored.offset)
                self._logger.info(
                    "popularity offsets taken up", items=len(engine.model.popularity), offset=self._reached
                )
        self.write()
        return self._reached

    def apply(self, entries: Sequence[Entry]) -> str:
        """Count entries; the follower's `Apply`."""
        with self._lock:
            self._reached = self._apply(entries)
            return self._reached

    def write(self) -> None:
        """Store the offsets now, unless nothing has come since they were."""
        with self._lock:
            offsets, reached = self._engine.model.popularity, self._reached
            if offsets is None or reached == self._stored:
                return
            offsets.forget(self._storage.clock.now_ms())
            content = offsets.to_bytes()
        if self._storage.ranker_offsets.save(reached, content):
            self._storage.streams.advance("events", CONSUMER, reached)
        self._stored = reached

    def _place_after(self, stored: str) -> str:
        """Return where to go on, given where the stored offsets end."""
        gap = find_gap(self._storage.streams, "events", stored)
        if gap is None:
            return stored
        self._logger.warning("events behind the stored popularity offsets are gone", reason=gap)
        self._storage.ranker_offsets.delete()
        return self._reached

    def _step(self) -> None:
        self._thread.pause(self._interval_s)
        if not self._thread.stopping:
            self.write()
