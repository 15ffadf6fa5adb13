"""arrange: the slate. The best items that are still there, with their ids and, where asked for, their attributes."""

from __future__ import annotations

import asyncio

from services.problems import over_budget
from services.query import Person, Place, Query, Ranked, Slate, Trace
from services.storage.documents import Document
from services.storage.storage import Storage
from services.workers import Workers

SPARE = 8
"""Items looked up beyond the limit, in case some were deleted a moment ago."""


class Arrange:
    """Turns keys into ids. There is no answer without ids, so this stage has no fallback but the time to get them."""

    def __init__(self, storage: Storage, workers: Workers, *, fallback_ms: float) -> None:
        self._storage = storage
        self._workers = workers
        self._fallback_ms = fallback_ms

    async def __call__(self, query: Query, person: Person, ranked: Ranked, trace: Trace) -> Slate:
        left_ms = max(trace.deadline.left_ms(), self._fallback_ms)
        with trace.watch.lap("arrange"):
            try:
                async with asyncio.timeout(left_ms / 1000.0):
                    places = await self._workers.run(self._look_up, query, ranked)
            except TimeoutError:
                raise over_budget(f"item ids were not read within {left_ms:.0f} ms") from None
        return Slate(recommendation_id=query.recommendation_id, places=places, ranked=ranked, person=person)

    def _look_up(self, query: Query, ranked: Ranked) -> list[Place]:
        keys = ranked.candidates.keys
        places: list[Place] = []
        start = 0
        while len(places) < query.limit and start < len(keys):
            stop = min(len(keys), start + query.limit - len(places) + SPARE)
            for row, found in enumerate(self._fetch(query, keys[start:stop].tolist()), start):
                if found is not None and len(places) < query.limit:
                    places.append(_place(found, row))
            start = stop
        return places

    def _fetch(self, query: Query, keys: list[int]) -> list[Document | str | None]:
        if "metadata" in query.include:
            return list(self._storage.items.of_keys(keys))
        return list(self._storage.items.ids_of(keys))


def _place(found: Document | str, row: int) -> Place:
    if isinstance(found, Document):
        return Place(id=found.id, row=row, metadata=dict(found.attributes))
    return Place(id=found, row=row, metadata=None)
