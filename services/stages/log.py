"""log: after the answer, append what was shown to the events stream, in the background."""

from __future__ import annotations

import queue
import threading

import structlog

from services.metrics import Metrics
from services.query import Query, Slate
from services.storage.errors import StorageError
from services.storage.events import IMPRESSION, Event
from services.storage.storage import Storage

MAX_WAITING_SLATES = 1000
MAX_BATCH_EVENTS = 500


class Log:
    """A queue and one thread. A full queue or a log that is away loses impressions, counted, and never an answer."""

    def __init__(self, storage: Storage, metrics: Metrics, logger: structlog.typing.FilteringBoundLogger) -> None:
        self._storage = storage
        self._metrics = metrics
        self._logger = logger
        self._waiting: queue.Queue[list[Event] | None] = queue.Queue(MAX_WAITING_SLATES)
        self._thread = threading.Thread(target=self._run, name="impressions", daemon=True)

    def start(self) -> None:
        """Begin to append."""
        self._thread.start()

    def stop(self) -> None:
        """Append what waits, then end."""
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()

    def __call__(self, query: Query, slate: Slate) -> None:
        """Note the slate's impressions; returns at once."""
        events = impressions(query, slate)
        if not events:
            return
        try:
            self._waiting.put_nowait(events)
        except queue.Full:
            self._metrics.impressions_dropped.inc(len(events))

    def _run(self) -> None:
        running = True
        while running:
            batch = self._waiting.get()
            running = batch is not None
            events = list(batch or ())
            while running and len(events) < MAX_BATCH_EVENTS and not self._waiting.empty():
                more = self._waiting.get()
                running = more is not None
                events += more or ()
            if events:
                self._append(events)

    def _append(self, events: list[Event]) -> None:
        try:
            self._storage.events.append(events)
        except StorageError as error:
            self._metrics.impressions_dropped.inc(len(events))
            self._logger.warning("impressions lost", count=len(events), error=str(error))


def impressions(query: Query, slate: Slate) -> list[Event]:
    """One event per place of the slate; an anonymous visitor is a new one in each.

    Where the order was drawn, an event carries how likely the item was to stand at its place among the ranked, which
    is its position but for items deleted since.
    """
    user_id = query.user_id or f"anonymous:{slate.recommendation_id}"
    drawn, places = slate.ranked.explored, slate.places
    chances = None if drawn is None or not places else drawn.propensities(places[-1].row + 1)
    return [
        Event(
            event_id=f"{slate.recommendation_id}:{position}",
            user_id=user_id,
            item_id=place.id,
            type=IMPRESSION,
            ts_ms=query.now_ms,
            recommendation_id=slate.recommendation_id,
            position=position,
            propensity=None if chances is None else float(chances[place.row]),
        )
        for position, place in enumerate(places, start=1)
    ]
