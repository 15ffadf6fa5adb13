"""Retrieval without HTTP and without storage: several sources over one live index, blended.

The offline replay uses it too. Every source is asked with the same filter and the same exclusions.
"""

# n = candidates or changes, D = dimensions, S = signals

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from index.batching import BatchingIndex
from index.boosts import Boost
from index.dual import DualIndex
from index.filter import Exists, Filter, Range
from index.hits import Hits
from index.live import LiveIndex, SnapshotInfo
from models.data.items import ItemTable
from models.data.schema import FeatureSchema, Signal
from models.data.signals import decay_factors, forward_increments, next_landmark
from models.data.state import UserState
from models.retrieval.model import RetrievalModel
from services.candidates import Candidates, Plan
from services.retrieval.blending import BITS, blend
from services.retrieval.embedded import Embedded
from services.retrieval.links import LinkSource, within

MAX_PENDING_ITEMS = 10_000
"""Items that events may be kept for until the items stream brings them."""


class ItemChange(NamedTuple):
    """One entry of the items stream: the whole state of an item, or None where it was deleted."""

    key: int
    attributes: Mapping[str, object] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSignals:
    """Signals as another place has counted them."""

    sums: NDArray[np.float64]
    """[n, S], forward-decayed against `landmark_ms`."""
    landmark_ms: int | None
    """None: nothing has been counted."""
    offset: str
    """Place in the events stream up to which that is."""
    num_counted: int
    """Events that were some action, from the stream and from imports, counted so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """Parts of the candidates reserved for a source; the towers fill the rest."""

    popular: float = 0.1
    recent: float = 0.1
    recent_half_life_ms: int = 7 * 86_400_000
    links: float = 0.3
    """Of what the engine's links reach, where it has any."""


class RetrievalEngine:
    """One retrieval model over one index of its embeddings. Thread-safe: many searches beside one writer, and a change
    of model (`replace`) beside both.

    Searches by vector that come at the same time share passes over the index, whatever their filters.

    `landmark_ms` is the time that the index's signal sums are relative to (forward decay).
    """

    def __init__(
        self,
        *,
        index: LiveIndex,
        model: RetrievalModel,
        items: ItemTable,
        schema: FeatureSchema,
        landmark_ms: int,
        quotas: Quotas | None = None,
    ) -> None:
        self._serving = Embedded.of(model, index)
        self._filling: Embedded | None = None
        """What will serve next: it is given every change of an item, and no event."""
        self._changed: set[int] = set()
        """Items that the stream has changed since it is filled."""
        self._both = DualIndex(model.version, index)
        self.items = items
        self.schema = schema
        self.quotas = quotas or Quotas()
        self._landmark_ms = landmark_ms
        self._writing = threading.Lock()
        self._landmark_stays = threading.Lock()
        self._pending: dict[int, NDArray[np.float64]] = {}
        self.loaded: StoredSignals | None = None
        """What the signals were last loaded from."""
        self.num_counted = 0
        """Events that were some action, counted since then."""
        self.popular = _signal_nearest(schema, None)
        self.recent = _signal_nearest(schema, self.quotas.recent_half_life_ms)
        self.links: LinkSource | None = None
        """The learned links in use; another version may be put in their place at any time."""

    @property
    def landmark_ms(self) -> int:
        """The time that stored signal sums are relative to."""
        return self._landmark_ms

    @property
    def index(self) -> LiveIndex:
        """The index that the next request is answered from."""
        return self._serving.index

    @property
    def model(self) -> RetrievalModel:
        """The model that the next request is encoded with."""
        return self._serving.model

    @property
    def searches(self) -> BatchingIndex:
        """The index's searches, joined."""
        return self._serving.searches

    def replace(self, model: RetrievalModel, documents: Iterable[Sequence[ItemChange]], now_ms: int, k: int) -> None:
        """Embed every item with another model beside the one that serves, then answer with that from the next request
        on; requests under way end with model and index that they began with.

        documents: every item that is stored, in parts.  k: what requests ask for, to warm up with. Changes that come
        meanwhile reach both. Until the end memory holds two indexes. Whatever is raised, the old model stays.
        """
        index = LiveIndex(replace(self.index.config, dim=model.dim, capacity=max(1024, self.index.num_items * 9 // 8)))
        embedded = Embedded.of(model, index)
        self._both.begin(model.version, index)
        old = self.index
        try:
            with self._writing:
                self._filling, self._changed = embedded, set()
            for part in documents:
                with self._writing:
                    # What the stream has changed meanwhile is newer than what was read.
                    fresh = [change for change in part if change.key not in self._changed]
                    keys, attributes, _ = split_changes(fresh)
                    if len(keys):
                        self.items.upsert(keys, attributes)
                        index.upsert(keys, model.encode_items(self.items.gather(keys)), attributes)
            self._warm_up(embedded, now_ms, k)
            with self._writing, self._landmark_stays:
                keys = index.keys()
                index.set_signals(keys, self.index.signals(keys))
                index.offsets.update(self.index.offsets)
                self._both.switch()
                self._serving, self._filling = embedded, None
        finally:
            with self._writing:
                self._filling = None
            self._both.retire()
            (index if self.index is old else old).close()

    def versions(self) -> dict[str, str]:
        """What an answer is made with."""
        return self._versions(self._serving)

    def _versions(self, embedded: Embedded) -> dict[str, str]:
        versions, links = embedded.versions(), self.links
        return versions if links is None else versions | {"links": links.version}

    def warm_up(self, now_ms: int, k: int) -> None:
        """Run every kind of search once: kernels are compiled at their first call, which no request should wait for."""
        self._warm_up(self._serving, now_ms, k)

    def _warm_up(self, embedded: Embedded, now_ms: int, k: int) -> None:
        embedded.index.warm_up()
        nobody = UserState()
        filters: list[Filter | None] = [None]
        for attribute in embedded.index.config.schema.attributes:
            filters += [Exists(attribute.name), Exists(attribute.name, present=False)]
            if attribute.type in ("int", "float", "timestamp"):
                filters.append(Range(field=attribute.name, gte=0))
        some = embedded.index.keys()[:1]
        for filter in filters:
            self._retrieve(embedded, nobody, now_ms, k, filter, some)
        # Few and many results take different ways through the index.
        self._retrieve(embedded, nobody, now_ms, 1, None, some)

    def retrieve(
        self,
        user: UserState,
        now_ms: int,
        k: int,
        filter: Filter | None = None,
        exclude: NDArray[np.int64] | None = None,
        boosts: Sequence[Boost] = (),
    ) -> Candidates:
        """Return the k best candidates, best first; fewer only where fewer items match.

        exclude: keys that no source may return.  boosts: weights on top of the inner products; a search with boosts
        is not joined with others, and the other sources know nothing of them.
        """
        return self._retrieve(self._serving, user, now_ms, k, filter, exclude, boosts)

    def _retrieve(
        self,
        embedded: Embedded,
        user: UserState,
        now_ms: int,
        k: int,
        filter: Filter | None,
        exclude: NDArray[np.int64] | None,
        boosts: Sequence[Boost] = (),
    ) -> Candidates:
        vector_D = embedded.model.encode_users([user], now_ms)[0]
        if boosts:
            towers = embedded.index.search(vector_D, k, filter, exclude, boosts=boosts)
        else:
            towers = embedded.searches.search(vector_D, k, filter, exclude)
        lists = [
            ("links", self._by_links(embedded, user, vector_D, k, filter, exclude)),
            ("popular", embedded.by_signal(self.popular, self.quotas.popular, k, filter, exclude)),
            ("recent", embedded.by_signal(self.recent, self.quotas.recent, k, filter, exclude)),
            ("towers", _found(towers)),
        ]
        keys, sources = blend(lists, k)
        return self._candidates(embedded, keys, sources, vector_D, now_ms, embedded.plan(towers), boosts)

    def score(self, user: UserState, now_ms: int, keys: NDArray[np.int64], boosts: Sequence[Boost] = ()) -> Candidates:
        """Return exactly these items as candidates, best first; keys the index does not hold are left out."""
        keys = np.unique(keys)
        embedded = self._serving
        vector_D = embedded.model.encode_users([user], now_ms)[0]
        plan = Plan(matched=len(keys), scanned=len(keys), rescored=len(keys), strategy="given", exact=True)
        return self._candidates(embedded, keys, np.full(len(keys), BITS["given"]), vector_D, now_ms, plan, boosts)

    def similar(self, key: int, k: int, filter: Filter | None = None) -> Candidates | None:
        """Return the k items whose vectors are nearest to the item's; None where the index does not hold it."""
        embedded = self._serving
        asked = np.array([key], np.int64)
        vectors, found = embedded.index.vectors(asked)
        if not found[0]:
            return None
        hits = embedded.searches.search(vectors[0], k, filter, asked)
        keys = _found(hits)
        return Candidates(
            keys=keys,
            scores=hits.scores[0][: len(keys)],
            sources=np.full(len(keys), BITS["towers"]),
            signals=np.zeros((len(keys), len(self.schema.signals))),
            plan=embedded.plan(hits),
            versions=self._versions(embedded),
        )

    def apply_items(self, changes: Sequence[ItemChange], offset: str | None = None) -> None:
        """Embed new and changed items, take out deleted ones; the next query sees them.

        Of an item changed twice the last state stays.  offset: place in the items stream that this reaches.
        """
        keys, attributes, deleted = split_changes(changes)
        with self._writing:
            if len(keys):
                self.items.upsert(keys, attributes)
                features = self.items.gather(keys)
                vectors_nD = self.model.encode_items(features)
                if self._filling is not None:
                    self._filling.index.upsert(keys, self._filling.model.encode_items(features), attributes)
            if self._filling is not None:
                self._changed.update(change.key for change in changes)
                if len(deleted):
                    self._filling.index.delete(deleted)
            with self._applying("items", offset):
                if len(keys):
                    self.index.upsert(keys, vectors_nD, attributes)
                    self._count_pending(keys)
                if len(deleted):
                    self.index.delete(deleted)
            if len(deleted):
                self.items.delete(deleted)

    def apply_events(
        self,
        item_keys: NDArray[np.int64],
        action_masks: NDArray[np.uint32],
        ts_ms: NDArray[np.int64],
        offset: str | None = None,
    ) -> None:
        """Count n events into the items' signals.  offset: place in the events stream that this reaches."""
        counted = action_masks != 0
        keys, ts_ms = item_keys[counted], ts_ms[counted]
        with self._writing:
            if len(keys):
                self._move_landmark(int(ts_ms.max()))
            with self._applying("events", offset):
                if len(keys):
                    increments_nS = forward_increments(
                        self.schema.signals, action_masks[counted], ts_ms, self._landmark_ms
                    )
                    if self.index.add_signals(keys, increments_nS):
                        self._keep_pending(keys, increments_nS)
                self.num_counted += len(keys)

    def load_signals(self, read: Callable[[NDArray[np.int64]], StoredSignals]) -> StoredSignals | None:
        """Replace every item's signals by what `read` has counted for its key, unless that is of another moment.

        read: answers sums f64[n, S] of n keys.  The first load takes any moment, and sets the index's place in the
        events stream to it. A later one is taken only if `read` stands at the index's own place; None otherwise.
        Writers wait meanwhile.
        """
        with self._writing, self._landmark_stays:
            keys = self.index.keys()
            stored = read(keys)
            if self.loaded is not None and stored.offset != self.index.offsets.get("events"):
                return None
            self.index.set_signals(keys, stored.sums)
            self.index.offsets["events"] = stored.offset
            if stored.landmark_ms is not None:
                self._landmark_ms = stored.landmark_ms
            self._pending.clear()
            self.loaded, self.num_counted = stored, 0
            return stored

    def snapshot(self, folder: Path) -> SnapshotInfo:
        """Write the index with its offsets and its landmark, while searches and writes go on."""
        with self._landmark_stays:
            embedded = self._serving
            metadata = {
                "landmark_ms": self._landmark_ms,
                "model_version": embedded.model.version,
                "schema_hash": self.schema.hash(),
            }
            return embedded.index.snapshot(folder, metadata)

    def _applying(self, stream: str, offset: str | None) -> AbstractContextManager[None]:
        return nullcontext() if offset is None else self.index.applying(stream, offset)

    def _move_landmark(self, newest_ms: int) -> None:
        landmark_ms = next_landmark(self.schema.signals, self._landmark_ms, newest_ms)
        if landmark_ms == self._landmark_ms:
            return
        with self._landmark_stays:
            factors = decay_factors(self.schema.signals, self._landmark_ms, landmark_ms)
            self.index.rescale_signals(factors)
            self._pending = {key: sums * factors for key, sums in self._pending.items()}
            self._landmark_ms = landmark_ms

    def _keep_pending(self, keys: NDArray[np.int64], increments_nS: NDArray[np.float64]) -> None:
        """Remember events that overtook their item: the two streams are followed side by side."""
        for key, increments in zip(keys.tolist(), increments_nS, strict=True):
            if key in self.index:
                continue
            if key not in self._pending and len(self._pending) >= MAX_PENDING_ITEMS:
                del self._pending[next(iter(self._pending))]
            self._pending[key] = self._pending.get(key, 0.0) + increments

    def _count_pending(self, keys: NDArray[np.int64]) -> None:
        if self._pending:
            for key in keys.tolist():
                sums = self._pending.pop(key, None)
                if sums is not None:
                    self.index.add_signals([key], sums[None])

    def _by_links(
        self,
        embedded: Embedded,
        user: UserState,
        vector_D: NDArray[np.float32],
        k: int,
        filter: Filter | None,
        exclude: NDArray[np.int64] | None,
    ) -> NDArray[np.int64]:
        """Keys of the best items that the member's learned links reach."""
        wanted = round(self.quotas.links * k)
        links = self.links
        query = links.query(user.profile, wanted) if links is not None and wanted else None
        if query is None:
            return np.zeros(0, np.int64)
        reached = within(filter, query.filter)
        return _found(embedded.index.search(vector_D, wanted, reached, exclude, boosts=query.boosts))

    def _candidates(
        self,
        embedded: Embedded,
        keys: NDArray[np.int64],
        sources: NDArray[np.uint32],
        vector_D: NDArray[np.float32],
        now_ms: int,
        plan: Plan,
        boosts: Sequence[Boost],
    ) -> Candidates:
        vectors_nD, held = embedded.index.vectors(keys)
        if not held.all():  # deleted since the search
            keys, sources, vectors_nD = keys[held], sources[held], vectors_nD[held]
        unboosted = None
        scores = (vectors_nD @ vector_D).astype(np.float32)
        if boosts:
            unboosted, scores = scores, (scores + embedded.index.weights(keys, boosts)).astype(np.float32)
        order = np.lexsort((keys, -scores))
        keys = keys[order]
        signals = embedded.index.signals(keys) * decay_factors(self.schema.signals, self._landmark_ms, now_ms)
        return Candidates(
            keys=keys,
            scores=scores[order],
            sources=sources[order],
            signals=signals,
            plan=plan,
            versions=self._versions(embedded),
            unboosted=None if unboosted is None else unboosted[order],
        )


def split_changes(
    changes: Sequence[ItemChange],
) -> tuple[NDArray[np.int64], list[Mapping[str, object]], NDArray[np.int64]]:
    """Keys to upsert, their attributes, keys to delete: the last change of each key."""
    last = {change.key: change.attributes for change in changes}
    upserts = [(key, attributes) for key, attributes in last.items() if attributes is not None]
    deleted = [key for key, attributes in last.items() if attributes is None]
    keys = np.array([key for key, _ in upserts], np.int64)
    return keys, [attributes for _, attributes in upserts], np.array(deleted, np.int64)


def _signal_nearest(schema: FeatureSchema, half_life_ms: int | None) -> Signal | None:
    """The signal of the positive action with the half life nearest to the one asked for, by ratio."""
    signals = [signal for signal in schema.signals if signal.action == schema.positive]
    if half_life_ms is None:
        return next((signal for signal in signals if signal.half_life_ms is None), None)
    distances = [
        (abs(math.log(signal.half_life_ms / half_life_ms)), signal) for signal in signals if signal.half_life_ms
    ]
    return min(distances, key=lambda pair: pair[0])[1] if distances else None


def _found(hits: Hits) -> NDArray[np.int64]:
    """Keys of the one query's hits, without the empty tail."""
    keys: NDArray[np.int64] = hits.keys[0][np.isfinite(hits.scores[0])]
    return keys
