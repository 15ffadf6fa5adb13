"""The live index: exact filtered search beside one writer, with nothing torn, stale or doubled.

This file is what users call. Below it lie `index.searching` (reads), `index.writing` (writes) and `index.upkeep` (what
runs beside both), all three over `index.state`. None of them knows where vectors come from, what a key stands for, or
how signals decay.
"""

# B = queries, M = items in one call, D = dimensions, S = signals

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import ArrayLike, NDArray

from index.bits import have_bits, list_bits
from index.boosts import Boost
from index.config import IndexConfig
from index.hits import Hits
from index.machine import CostsFrom, find_costs, keep_costs
from index.memory import give_back_freed
from index.planner import Costs
from index.searching import Searcher
from index.snapshot import SnapshotError, SnapshotInfo, load_newest, write_snapshot
from index.snapshot import Stored as StoredIndex
from index.state import State
from index.tree import Filter
from index.upkeep import Background, Upkeep
from index.writing import Writer
from kernels.filtered_topk import Backend

__all__ = ["Boost", "Hits", "IndexConfig", "LiveIndex", "SnapshotError", "SnapshotInfo"]


class LiveIndex:
    """Items by key: a vector, filterable attributes, and signals; searched exactly while they change.

    Any number of threads may read beside one another and beside writers; writers wait for one another. A call
    that writes is visible as a whole to every read that begins after it returned, and to none partly.

    Growth, compaction and the like run on a thread of the index's own, which ends with it or with `close`.
    """

    def __init__(self, config: IndexConfig, state: State | None = None) -> None:
        self._state = state or State(config)
        self._searcher = Searcher(self._state)
        self._writer = Writer(self._state)
        self._upkeep = Upkeep(self._state, self._writer)
        self._background = Background(self._upkeep)
        self._snapshot_lock = Lock()

    @property
    def config(self) -> IndexConfig:
        return self._state.config

    @property
    def dim(self) -> int:
        return self.config.dim

    @property
    def num_items(self) -> int:
        return self._state.num_items

    @property
    def offsets(self) -> dict[str, str]:
        """Of each stream, the id of the last entry applied; written into snapshots."""
        return self._writer.offsets

    @property
    def costs(self) -> Costs:
        """What the planner weighs; `warm_up` measures it."""
        return self._searcher.costs

    @costs.setter
    def costs(self, costs: Costs) -> None:
        self._searcher.costs = costs

    @property
    def costs_from(self) -> CostsFrom:
        return self._searcher.costs_from

    def __len__(self) -> int:
        return self._state.num_items

    def __contains__(self, key: int) -> bool:
        with self._state.publish_lock:
            return bool(self._state.rows_of(np.array([key], np.int64))[0] >= 0)

    # Writing

    def upsert(self, keys: ArrayLike, vectors: ArrayLike, attributes: Sequence[Mapping[str, object]]) -> None:
        """Add items or replace them, vector and attributes as a whole; their signals stay.

        keys: int64[M]; of a key given twice the last counts.  vectors: float32[M,D], finite.  attributes: M
        mappings; names outside the schema are ignored, absent ones are missing.

        Raises ValueError, and changes nothing, for a shape that does not fit, the key -1, a vector with nan or
        inf (its key is named), or an attribute value of the wrong type.
        """
        self._writer.upsert(keys, vectors, attributes)
        self._look_after()

    def delete(self, keys: ArrayLike) -> int:
        """Remove items with their signals; the number that were there."""
        count = self._writer.delete(keys)
        self._look_after()
        return count

    def set_signals(self, keys: ArrayLike, values: ArrayLike) -> int:
        """Set all signals of the keys: values float64[M,S], finite. Returns how many keys were unknown, and ignored."""
        return self._writer.change_signals(keys, values, add=False)

    def add_signals(self, keys: ArrayLike, increments: ArrayLike) -> int:
        """Add to the signals of the keys: increments float64[M,S], finite; a key given twice gets both.

        Returns how many of the keys were unknown, and ignored.
        """
        return self._writer.change_signals(keys, increments, add=True)

    def rescale_signals(self, factors: ArrayLike) -> None:
        """Multiply every item's signals by factors float64[S]; a search sees all of them changed or none."""
        self._writer.rescale_signals(factors)

    def applying(self, stream: str, offset: str) -> AbstractContextManager[None]:
        """Hold other writers and snapshots off while one batch of a stream is applied, then note its offset.

        A snapshot therefore never holds a batch without its offset, nor an offset without its batch. The offset
        stays as it was when the block raises.
        """
        return self._writer.applying(stream, offset)

    def maintain(self) -> None:
        """Do now what the index's own thread would do in time: growth ahead of need, compaction, sorting, centring."""
        self._upkeep.catch_up()

    def close(self) -> None:
        """End the index's own thread. The index goes on working; only `maintain` compacts it from then on."""
        self._background.close()

    def _look_after(self) -> None:
        if self._upkeep.is_due:
            self._background.wake()

    # Reading

    def search(
        self,
        query: ArrayLike,
        k: int,
        filter: Filter | None = None,
        exclude: ArrayLike | None = None,
        *,
        filters: Sequence[Filter | None] | None = None,
        excludes: Sequence[ArrayLike | None] | None = None,
        boosts: Sequence[Boost] = (),
        depth: int | None = None,
    ) -> Hits:
        """The k items of largest inner product with each query, among those the filter admits.

        query: float32[D] or [B,D], finite (other float types are rounded to float32).  exclude: int64 keys that
        must not be answered.  filters, excludes: one per query; filters in place of `filter`, excludes beside
        `exclude`.  boosts: weights on top of the inner products, the same for all queries.  Scores are the exact
        inner products rounded to float64, weights added to that; order: score descending, key ascending.
        All queries of a call see one moment of the index, and each has the hits of a search of its own.

        depth: where a search would read all codes, take the best `depth` rows by 1-bit codes first, and answer the best
        among those; `Hits.exact` is then False, and `Hits.recall` what such searches found lately, measured on every
        `recall_every`-th of them. Filtered searches that list their matches stay exact. Needs `IndexConfig.signs`.

        Raises ValueError for a shape that does not fit, nan or inf, k < 1, k > MAX_RESULTS, filters or excludes
        that are not one per query, filters beside `filter`, or a depth below k or of an index without 1-bit codes.
        """
        return self._searcher.search(query, k, filter, exclude, filters, excludes, boosts, depth)

    def search_signal(self, name: str, k: int, filter: Filter | None = None, exclude: ArrayLike | None = None) -> Hits:
        """The k items with the largest value of a signal, ties to the lower key; items at 0 take part.

        Raises ValueError for an unknown signal, k < 1, or k > MAX_RESULTS.
        """
        return self._searcher.search_signal(name, k, filter, exclude)

    def count(self, filter: Filter | None = None) -> int:
        """The number of items that the filter admits."""
        return self._searcher.count(filter)

    def keys(self) -> NDArray[np.int64]:
        """The keys of all items, ascending."""
        with self._state.reading(None) as view:
            return np.sort(view.arrays.key_N[list_bits(view.live_W)])

    def vectors(self, keys: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """float32[M,D] and bool[M]: the vectors of the keys, zeros where a key is not there.

        Without stored vectors they are what the codes stand for."""
        with self._state.reading(keys) as view:
            found = view.row_M >= 0
            vector_MD = view.arrays.vectors(np.maximum(view.row_M, 0))
            vector_MD[~found] = 0.0
            return vector_MD, found

    def signals(self, keys: ArrayLike) -> NDArray[np.float64]:
        """float64[M,S]: the signals of the keys, zeros where a key is not there."""
        with self._state.reading(keys) as view:
            value_MS = view.arrays.signal_SN.T[np.maximum(view.row_M, 0)]
            value_MS[view.row_M < 0] = 0.0
            return value_MS

    def weights(self, keys: ArrayLike, boosts: Sequence[Boost]) -> NDArray[np.float64]:
        """float64[M]: what the boosts add to the scores of the keys, 0 where a key is not there."""
        with self._state.reading(keys) as view:
            held = view.row_M >= 0
            total_M = np.zeros(held.size)
            for boost in boosts:
                words = view.arrays.columns.evaluate(boost.filter, view.num_words)
                admitted = held & have_bits(words, np.maximum(view.row_M, 0)) if words.size else held
                total_M += np.where(admitted, boost.weight, 0.0)
            return total_M

    def attributes(self, keys: ArrayLike) -> list[dict[str, object] | None]:
        """The filterable attributes of the keys as they were given; None where a key is not there."""
        with self._state.reading(keys) as view:
            return [view.arrays.columns.read(row) if row >= 0 else None for row in view.row_M.tolist()]

    def warm_up(self) -> None:
        """Compile or load the kernels now rather than in the first searches, and measure what they cost.

        Costs that a snapshot brought from this very machine are kept.
        """
        self.maintain()
        self._searcher.warm_up()

    # Snapshots

    def snapshot(self, folder: str | Path, metadata: Mapping[str, object]) -> SnapshotInfo:
        """Write everything, with the offsets and the caller's metadata (JSON values), into a new snapshot.

        Writers wait only while signals and offsets are copied; searches do not wait. Until the files are
        written, rows freed meanwhile are not used again. One process at a time writes to a folder.

        Raises SnapshotError where it cannot be written: nothing new is left behind, older snapshots stay.
        """
        with ExitStack() as reading:
            with self._state.write_lock:
                view = reading.enter_context(self._state.reading(None))
                rows = list_bits(view.live_W)
                signal_MS = np.ascontiguousarray(view.arrays.signal_SN[:, rows].T)
                offsets = dict(self.offsets)
            costs = None if self.costs_from == "default" else keep_costs(self.costs, self._searcher.describe_machine())
            with self._snapshot_lock:
                return write_snapshot(Path(folder), view.arrays, rows, signal_MS, offsets, metadata, costs)

    @classmethod
    def open_newest(
        cls, folder: str | Path, *, backend: Backend = "auto", num_threads: int | None = None
    ) -> tuple[LiveIndex, SnapshotInfo]:
        """The index of the newest valid snapshot; `SnapshotInfo.skipped` names each newer one and what is wrong.

        Raises SnapshotError, with every reason, where no snapshot in the folder is valid.
        """
        stored, info = load_newest(Path(folder), backend, num_threads)
        index = cls._restore(stored)
        give_back_freed()  # loading a million items leaves tens of megabytes behind
        return index, info

    @classmethod
    def _restore(cls, stored: StoredIndex) -> LiveIndex:
        index = cls(stored.arrays.config, State(stored.arrays.config, stored.arrays, stored.num_items))
        index.offsets.update(stored.offsets)
        costs = find_costs(stored.costs, index._searcher.describe_machine())
        if costs is not None:
            index._searcher.costs, index._searcher.costs_from = costs, "snapshot"
        return index
