"""retrieve: which items could it be? The index; popular items of storage where the index does not answer in time."""

# n = candidates, S = signals

from __future__ import annotations

import asyncio

import numpy as np
from numpy.typing import NDArray

from index.filter import Filter
from models.data.schema import FeatureSchema, Signal
from services.candidates import SOURCES, Candidates, Plan
from services.problems import over_budget
from services.query import Failure, Person, Query, Trace
from services.retrieval.client import RetrievalClient, RetrieveCall
from services.stages.arrange import SPARE
from services.storage.storage import Storage
from services.workers import Workers

MAX_FALLBACK_SCAN = 2000
"""How far down the list of popular items the fallback looks for some that match the filter."""

_POPULAR = np.uint32(1 << SOURCES.index("popular"))
_GIVEN = np.uint32(1 << SOURCES.index("given"))


class Retrieve:
    """Asks the index; falls back to storage."""

    def __init__(
        self,
        client: RetrievalClient,
        storage: Storage,
        workers: Workers,
        schema: FeatureSchema,
        *,
        num_candidates: int,
        fallback_ms: float,
    ) -> None:
        self._client = client
        self._storage = storage
        self._workers = workers
        self._schema = schema
        self._num_candidates = num_candidates
        self._fallback_ms = fallback_ms
        self._signal = _fallback_signal(schema)

    async def __call__(self, query: Query, person: Person, trace: Trace) -> Candidates:
        exclude = excluded(query, person)
        call = RetrieveCall(
            user=person.state,
            now_ms=query.now_ms,
            k=max(self._num_candidates, query.limit + SPARE),
            filter=query.filter,
            boosts=query.boosts,
            exclude=exclude,
            given=None if query.given is None else np.setdiff1d(query.given, exclude),
        )

        async def search(left_ms: float) -> Candidates:
            return await self._client.retrieve(call, left_ms)

        candidates = await trace.attempt("retrieve", search)
        if not isinstance(candidates, Failure):
            return candidates
        used = "the given items in their order" if call.given is not None else "popular items from storage"
        if query.boosts:
            used += ", without boosts"
        trace.degrade("retrieve", candidates, used)
        with trace.watch.lap("retrieve"):
            try:
                async with asyncio.timeout(self._fallback_ms / 1000.0):
                    return await self._workers.run(self._fall_back, query, exclude)
            except TimeoutError:
                raise over_budget(f"{candidates.reason}; popular items took too long as well") from None

    def _fall_back(self, query: Query, exclude: NDArray[np.int64]) -> Candidates:
        if query.given is not None:
            keys = query.given[~np.isin(query.given, exclude)]
            values, scanned, source = np.zeros(len(keys)), len(keys), _GIVEN
        else:
            keys, values, scanned = self._popular(query, exclude)
            source = _POPULAR
        signals = self._storage.popularity.values(self._schema.signals, keys, query.now_ms)
        strategy = "given" if query.given is not None else f"storage popularity {self._signal.name}"
        return Candidates(
            keys=keys,
            scores=values.astype(np.float32),
            sources=np.full(len(keys), source),
            signals=signals,
            plan=Plan(matched=len(keys), scanned=scanned, rescored=0, strategy=strategy, exact=False),
            versions={},
        )

    def _popular(self, query: Query, exclude: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64], int]:
        """The most popular items whose documents satisfy the filter; how many were looked at."""
        wanted = 2 * query.limit
        depth = MAX_FALLBACK_SCAN if query.filter is not None else wanted + len(exclude)
        top = self._storage.popularity.top(self._signal, depth, query.now_ms)
        allowed = ~np.isin(top.keys, exclude)
        keys, values = top.keys[allowed], top.values[allowed]
        if query.filter is not None:
            matching = self._matching(keys, query.filter)
            keys, values = keys[matching], values[matching]
        return keys[:wanted], values[:wanted], len(top.keys)

    def _matching(self, keys: NDArray[np.int64], filter: Filter) -> NDArray[np.bool_]:
        documents = self._storage.items.of_keys(keys)
        return np.array([d is not None and filter.matches(d.attributes) for d in documents], np.bool_)


def excluded(query: Query, person: Person) -> NDArray[np.int64]:
    """Keys that must not be in the answer."""
    return np.union1d(query.exclude, person.seen) if query.exclude_seen else query.exclude


def _fallback_signal(schema: FeatureSchema) -> Signal:
    """Counts of the positive action that never decay; else those that decay slowest; else the first signal."""
    positive = [signal for signal in schema.signals if signal.action == schema.positive] or list(schema.signals)
    return max(positive, key=lambda signal: signal.half_life_ms or 1 << 62)
