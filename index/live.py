"""The live index: exact filtered search beside one writer, with nothing torn, stale or doubled.

It does not know where vectors come from, what a key stands for, or how signals decay.
"""

# B = queries, N = rows, M = items in one call, D = dimensions, S = signals, K = results, W = mask words

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, RLock
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from index.attributes import Stored, check_attributes
from index.bits import Words, clear_bits, count_bits, list_bits, set_bits
from index.calibrate import calibrate
from index.checks import check_k, check_keys, check_queries, check_vectors
from index.config import IndexConfig
from index.hits import Hits
from index.key_map import KeyMap
from index.memory import give_back_freed
from index.planner import Costs, Step, plan
from index.readers import Quarantine
from index.rows import MEAN_ROWS, RowArrays
from index.snapshot import SnapshotError, SnapshotInfo, load_newest, write_snapshot
from index.snapshot import Stored as StoredIndex
from index.tree import Filter
from kernels.batched_topk import batched_topk, has_batches
from kernels.codes import Codes
from kernels.column_topk import column_topk
from kernels.filtered_topk import Backend, Strategy, TopK, filtered_topk, has_numba

__all__ = ["Hits", "IndexConfig", "LiveIndex", "SnapshotError", "SnapshotInfo"]

COMPACT_BELOW = 0.8  # of the rows in use
MIN_COMPACT_ROWS = 4096
COMPACT_ROWS = 1024  # moved beside one write


@dataclass(frozen=True, slots=True)
class View:
    """What one reader sees from its first moment to its last."""

    arrays: RowArrays
    live_W: Words  # a copy: one publication is seen whole or not at all
    row_M: NDArray[np.int64]  # rows of the keys the reader asked about, -1 = not there

    @property
    def num_words(self) -> int:
        return self.live_W.size


class LiveIndex:
    """Items by key: a vector, filterable attributes, and signals; searched exactly while they change.

    Any number of threads may read beside one another and beside writers; writers wait for one another. A call
    that writes is visible as a whole to every read that begins after it returned, and to none partly.
    """

    def __init__(self, config: IndexConfig) -> None:
        self.config = config
        self.offsets: dict[str, str] = {}  # stream -> id of the last entry applied; written into snapshots
        self._backend: Backend = config.backend
        if config.backend == "auto":
            self._backend = "cpu" if has_numba() else "reference"
        self.costs = Costs()  # what the planner weighs; `warm_up` measures them
        self._arrays = RowArrays(config, config.capacity)
        self._row_of = KeyMap()
        self._num_rows = 0  # rows ever used: all live bits lie below
        self._free: list[NDArray[np.int64]] = []
        self._quarantine = Quarantine()
        self._publish_lock = Lock()  # held for moments: what is visible, and to whom
        self._write_lock = RLock()  # held by a writer for its whole call
        self._snapshot_lock = Lock()

    @property
    def dim(self) -> int:
        return self.config.dim

    @property
    def num_items(self) -> int:
        return self._row_of.num_keys

    def __len__(self) -> int:
        return self._row_of.num_keys

    def __contains__(self, key: int) -> bool:
        with self._publish_lock:
            return bool(self._rows_of(np.array([key], np.int64))[0] >= 0)

    # Writing

    def upsert(self, keys: ArrayLike, vectors: ArrayLike, attributes: Sequence[Mapping[str, object]]) -> None:
        """Add items or replace them, vector and attributes as a whole; their signals stay.

        keys: int64[M]; of a key given twice the last counts.  vectors: float32[M,D], finite.  attributes: M
        mappings; names outside the schema are ignored, absent ones are missing.

        Raises ValueError, and changes nothing, for a shape that does not fit, the key -1, a vector with nan or
        inf (its key is named), or an attribute value of the wrong type.
        """
        key_M = check_keys(keys)
        if (key_M == -1).any():
            raise ValueError("key -1: it stands for no item")
        vector_MD = check_vectors(key_M, vectors, self.dim)
        if len(attributes) != key_M.size:
            raise ValueError(f"{len(attributes)} attribute mappings for {key_M.size} keys")
        items: list[list[Stored]] = []
        for key, each in zip(key_M.tolist(), attributes, strict=True):
            try:
                items.append(check_attributes(self.config.schema, each))
            except ValueError as error:
                raise ValueError(f"key {key}: {error}") from error
        last = {key: place for place, key in enumerate(key_M.tolist())}
        if len(last) < key_M.size:
            chosen = np.fromiter(last.values(), np.int64, len(last))
            key_M, vector_MD, items = key_M[chosen], vector_MD[chosen], [items[place] for place in last.values()]
        if key_M.size:
            with self._write_lock:
                self._write_items(key_M, vector_MD, items)

    def _write_items(self, key_M: NDArray[np.int64], vector_MD: NDArray[np.float32], items: list[list[Stored]]) -> None:
        rows = self._allocate(key_M.size)
        arrays = self._arrays
        arrays.write_vectors(rows, vector_MD)
        arrays.key_N[rows] = key_M
        arrays.columns.write(rows, items)
        old_rows = self._rows_of(key_M)
        known = old_rows >= 0
        arrays.signal_SN[:, rows] = 0.0
        arrays.signal_SN[:, rows[known]] = arrays.signal_SN[:, old_rows[known]]
        freed = old_rows[known]
        self._row_of.make_room(key_M.size, arrays.key_N)
        with self._publish_lock:
            if freed.size:
                clear_bits(arrays.live_W, freed)
            set_bits(arrays.live_W, rows)
            self._row_of.put(key_M, rows, arrays.key_N)
            self._quarantine.publish(freed)
        if self._num_rows > MIN_COMPACT_ROWS and self.num_items < COMPACT_BELOW * self._num_rows:
            self._compact()
        if not arrays.has_mean and self.num_items >= MEAN_ROWS:
            centred = arrays.centre(self._num_rows)
            with self._publish_lock:
                self._arrays = centred

    def delete(self, keys: ArrayLike) -> int:
        """Remove items with their signals; the number that were there."""
        key_M = np.unique(check_keys(keys))
        with self._write_lock:
            rows = self._rows_of(key_M)
            gone = key_M[rows >= 0]
            freed = rows[rows >= 0]
            with self._publish_lock:
                if freed.size:
                    clear_bits(self._arrays.live_W, freed)
                self._row_of.remove(gone, self._arrays.key_N)
                self._quarantine.publish(freed)
            if self._num_rows > MIN_COMPACT_ROWS and self.num_items < COMPACT_BELOW * self._num_rows:
                self._compact()
        return int(gone.size)

    def set_signals(self, keys: ArrayLike, values: ArrayLike) -> int:
        """Set all signals of the keys: values float64[M,S], finite. Returns how many keys were unknown, and ignored."""
        return self._change_signals(keys, values, add=False)

    def add_signals(self, keys: ArrayLike, increments: ArrayLike) -> int:
        """Add to the signals of the keys: increments float64[M,S], finite; a key given twice gets both.

        Returns how many of the keys were unknown, and ignored.
        """
        return self._change_signals(keys, increments, add=True)

    def _change_signals(self, keys: ArrayLike, values: ArrayLike, *, add: bool) -> int:
        key_M = check_keys(keys)
        value_MS = np.asarray(values, np.float64)
        expected = (key_M.size, len(self.config.signals))
        if value_MS.shape != expected:
            raise ValueError(f"signals: shape {list(value_MS.shape)}, expected {list(expected)}")
        bad = ~np.isfinite(value_MS).all(axis=1)
        if bad.any():
            raise ValueError(f"signals of key {key_M[bad][0]}: {value_MS[bad][0].tolist()}, expected finite values")
        with self._write_lock:
            rows = self._rows_of(key_M)
            known = rows >= 0
            signal_SN = self._arrays.signal_SN
            if add:
                np.add.at(signal_SN.T, rows[known], value_MS[known])
            else:
                signal_SN.T[rows[known]] = value_MS[known]
        return int(key_M.size - known.sum())

    def rescale_signals(self, factors: ArrayLike) -> None:
        """Multiply every item's signals by factors float64[S]; a search sees all of them changed or none."""
        factor_S = np.asarray(factors, np.float64)
        if factor_S.shape != (len(self.config.signals),) or not np.isfinite(factor_S).all():
            raise ValueError(f"factors: {factor_S.tolist()}, expected {len(self.config.signals)} finite numbers")
        with self._write_lock:
            changed = self._arrays.with_signals(factor_S, self._num_rows)
            with self._publish_lock:
                self._arrays = changed

    @contextmanager
    def applying(self, stream: str, offset: str) -> Iterator[None]:
        """Hold other writers and snapshots off while one batch of a stream is applied, then note its offset.

        A snapshot therefore never holds a batch without its offset, nor an offset without its batch. The offset
        stays as it was when the block raises.
        """
        with self._write_lock:
            yield
            self.offsets[stream] = offset

    def _compact(self) -> None:
        """Where many rows stand empty, move some of the last live ones into them, and give up the rows at the end.

        A step of at most COMPACT_ROWS beside each write: an item moves as an upsert does, so readers keep what
        they see.
        """
        with self._publish_lock:
            self._free.extend(self._quarantine.release())
        free = np.sort(np.concatenate([np.empty(0, np.int64), *self._free]))
        # Rows at the end that nobody can see are not rows any more.
        kept = free.size
        while kept and free[kept - 1] == self._num_rows - 1 - (free.size - kept):
            kept -= 1
        with self._publish_lock:
            self._num_rows -= free.size - kept
        free = free[:kept]
        arrays = self._arrays
        live_W = arrays.live_W[: (self._num_rows + 63) // 64]
        last_words = np.flatnonzero(live_W)[-(COMPACT_ROWS // 64) :]
        last = np.zeros_like(live_W)
        last[last_words] = live_W[last_words]
        rows = list_bits(last)[::-1][: free.size]
        to = free[: rows.size]
        better = to < rows
        rows, to = rows[better], to[better]
        self._free = [free[to.size :]]
        if not rows.size:
            return
        arrays.move(rows, to)
        with self._publish_lock:
            clear_bits(arrays.live_W, rows)
            set_bits(arrays.live_W, to)
            self._row_of.put(arrays.key_N[to], to, arrays.key_N)
            self._quarantine.publish(rows)

    # Reading

    def search(
        self,
        query: ArrayLike,
        k: int,
        filter: Filter | None = None,
        exclude: ArrayLike | None = None,
        *,
        filters: Sequence[Filter | None] | None = None,
    ) -> Hits:
        """The k items of largest inner product with each query, among those the filter admits.

        query: float32[D] or [B,D], finite (other float types are rounded to float32).  exclude: int64 keys that
        must not be answered.  filters: one per query, in place of `filter`.  Scores are the exact inner products
        rounded to float64; order: score descending, key ascending.  All queries of a call see one moment of the
        index, and each has the hits of a search of its own.

        Raises ValueError for a shape that does not fit, nan or inf, k < 1, k > MAX_RESULTS, or filters that are
        not one per query or come beside `filter`.
        """
        query_BD = check_queries(query, self.dim)
        check_k(k)
        num_queries = query_BD.shape[0]
        if filters is not None and (filter is not None or len(filters) != num_queries):
            raise ValueError(f"{len(filters)} filters for {num_queries} queries: expected one each, and no `filter`")
        each_B = [filter] * num_queries if filters is None else list(filters)
        group_of = {each: group for group, each in enumerate(dict.fromkeys(each_B))}
        group_B = np.array([group_of[each] for each in each_B], np.int64)
        with self._reading(exclude) as view:
            masks = [self._admit(view, each) for each in group_of]
            matched_G = [count_bits(mask_W) for mask_W in masks]
            if self._backend == "reference":
                steps = [Step("gather", tuple(b for b in range(num_queries) if matched_G[group_B[b]]))]
            else:
                num_rows = view.num_words * 64
                steps = plan(
                    matched_G,
                    group_B.tolist(),
                    num_rows,
                    k,
                    self.costs,
                    batches=num_queries > 1 and has_batches(self.dim),
                )
            found: dict[int, TopK] = {}
            for step in steps:
                found.update(self._run(step, query_BD, view, masks, group_B, k))
            ran = "+".join(sorted({step.strategy for step in steps if step.queries})) or "empty"
            matched_B = tuple(matched_G[group] for group in group_B)
            return _collect(found, view, num_queries, k, matched_B, ran, shared=filters is None)

    def _run(
        self,
        step: Step,
        query_BD: NDArray[np.float32],
        view: View,
        masks: list[Words],
        group_B: NDArray[np.int64],
        k: int,
    ) -> dict[int, TopK]:
        """The best rows of a step's queries, by query."""
        num_rows, arrays = view.num_words * 64, view.arrays
        codes = Codes(
            arrays.codes.code_ND[:num_rows],
            arrays.codes.scale_N[:num_rows],
            arrays.codes.residual_N[:num_rows],
            arrays.codes.mean_D,
        )
        vector_ND, key_N, threads = arrays.vector_ND[:num_rows], arrays.key_N[:num_rows], self.config.num_threads
        queries = list(step.queries)
        if step.strategy == "batch":
            used_G, place_B = np.unique(group_B[queries], return_inverse=True)
            mask_GW = np.stack([masks[group] for group in used_G])
            best = batched_topk(
                query_BD[queries],
                vector_ND,
                codes,
                key_N,
                mask_GW,
                place_B.astype(np.int64),
                k,
                backend=self._backend,
                num_threads=threads,
            )
            return dict(zip(queries, best, strict=True))
        return {
            query: filtered_topk(
                query_BD[query],
                vector_ND,
                codes,
                key_N,
                masks[group_B[query]],
                k,
                strategy=step.strategy,
                backend=self._backend,
                num_threads=threads,
            )
            for query in queries
        }

    def search_signal(self, name: str, k: int, filter: Filter | None = None, exclude: ArrayLike | None = None) -> Hits:
        """The k items with the largest value of a signal, ties to the lower key; items at 0 take part.

        Raises ValueError for an unknown signal, k < 1, or k > MAX_RESULTS.
        """
        if name not in self.config.signals:
            raise ValueError(f"signal {name!r}: the index has {list(self.config.signals)}")
        check_k(k)
        with self._reading(exclude) as view:
            mask_W = self._admit(view, filter)
            num_rows = view.num_words * 64
            column = view.arrays.signal_SN[self.config.signals.index(name), :num_rows]
            best = column_topk(column, view.arrays.key_N[:num_rows], mask_W, k, backend=self._backend)
            num_matched = count_bits(mask_W)
            return _collect({0: best}, view, 1, k, (num_matched,), "column" if num_matched else "empty", shared=True)

    def count(self, filter: Filter | None = None) -> int:
        """The number of items that the filter admits."""
        with self._reading(None) as view:
            return count_bits(self._admit(view, filter))

    def keys(self) -> NDArray[np.int64]:
        """The keys of all items, ascending."""
        with self._reading(None) as view:
            return np.sort(view.arrays.key_N[list_bits(view.live_W)])

    def vectors(self, keys: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """float32[M,D] and bool[M]: the vectors of the keys, zeros where a key is not there."""
        with self._reading(keys) as view:
            found = view.row_M >= 0
            vector_MD = view.arrays.vector_ND[np.maximum(view.row_M, 0)]
            vector_MD[~found] = 0.0
            return vector_MD, found

    def signals(self, keys: ArrayLike) -> NDArray[np.float64]:
        """float64[M,S]: the signals of the keys, zeros where a key is not there."""
        with self._reading(keys) as view:
            value_MS = view.arrays.signal_SN.T[np.maximum(view.row_M, 0)]
            value_MS[view.row_M < 0] = 0.0
            return value_MS

    def attributes(self, keys: ArrayLike) -> list[dict[str, object] | None]:
        """The filterable attributes of the keys as they were given; None where a key is not there."""
        with self._reading(keys) as view:
            return [view.arrays.columns.read(row) if row >= 0 else None for row in view.row_M.tolist()]

    def warm_up(self) -> None:
        """Compile or load the kernels and measure what they cost now rather than in the first searches."""
        arrays = self._arrays
        vector_ND, key_N = np.zeros((64, self.dim), np.float32), np.arange(64)
        codes = Codes(arrays.codes.code_ND[:64], np.zeros(64, np.float32), np.zeros(64, np.float32), vector_ND[0])
        mask_W = np.ones(1, np.uint64)
        for strategy in get_args(Strategy):
            filtered_topk(vector_ND[0], vector_ND, codes, key_N, mask_W, 1, strategy=strategy, backend=self._backend)
        batched_topk(
            vector_ND[:2], vector_ND, codes, key_N, mask_W[None], np.zeros(2, np.int64), 1, backend=self._backend
        )
        column_topk(np.zeros(64), key_N, mask_W, 1, backend=self._backend)
        with self._reading(None) as view:
            arrays = view.arrays
            self.costs = calibrate(
                arrays.vector_ND, arrays.codes, arrays.key_N, view.live_W, self._backend, self.config.num_threads
            )

    # Snapshots

    def snapshot(self, folder: str | Path, metadata: Mapping[str, object]) -> SnapshotInfo:
        """Write everything, with the offsets and the caller's metadata (JSON values), into a new snapshot.

        Writers wait only while signals and offsets are copied; searches do not wait. Until the files are
        written, rows freed meanwhile are not used again. One process at a time writes to a folder.

        Raises SnapshotError where it cannot be written: nothing new is left behind, older snapshots stay.
        """
        with ExitStack() as reading:
            with self._write_lock:
                view = reading.enter_context(self._reading(None))
                rows = list_bits(view.live_W)
                signal_MS = np.ascontiguousarray(view.arrays.signal_SN[:, rows].T)
                offsets = dict(self.offsets)
            with self._snapshot_lock:
                return write_snapshot(Path(folder), view.arrays, rows, signal_MS, offsets, metadata)

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
        index = cls(stored.arrays.config)
        index._arrays = stored.arrays
        index.offsets = dict(stored.offsets)
        index._num_rows = stored.num_items
        rows = np.arange(stored.num_items, dtype=np.int64)
        set_bits(index._arrays.live_W, rows)
        index._row_of = KeyMap(index._arrays.key_N[rows])
        return index

    # Inside

    @contextmanager
    def _reading(self, keys: ArrayLike | None) -> Iterator[View]:
        """Everything of one moment, with the rows of `keys`; freed rows keep their content until the reader left."""
        key_M = None if keys is None else check_keys(keys)
        with self._publish_lock:
            arrays = self._arrays
            live_W = arrays.live_W[: (self._num_rows + 63) // 64].copy()
            row_M = np.empty(0, np.int64) if key_M is None else self._rows_of(key_M)
            reader = self._quarantine.enter()
        try:
            yield View(arrays, live_W, row_M)
        finally:
            with self._publish_lock:
                self._quarantine.leave(reader)

    def _admit(self, view: View, filter: Filter | None) -> Words:
        """Live, admitted by the filter, and not one of the rows the reader named."""
        mask_W = view.live_W
        if filter is not None:
            mask_W = mask_W & view.arrays.columns.evaluate(filter, view.num_words)
        excluded = view.row_M[view.row_M >= 0]
        if excluded.size:
            mask_W = mask_W.copy()
            clear_bits(mask_W, excluded)
        return mask_W

    def _rows_of(self, key_M: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._row_of.find(key_M, self._arrays.key_N)

    def _allocate(self, count: int) -> NDArray[np.int64]:
        """Rows that no reader can see: freed ones first, then new ones, growing where there are too few."""
        with self._publish_lock:
            self._free.extend(self._quarantine.release())
        taken: list[NDArray[np.int64]] = []
        missing = count
        while missing and self._free:
            block = self._free.pop()
            taken.append(block[:missing])
            if block.size > missing:
                self._free.append(block[missing:])
            missing -= taken[-1].size
        first, last = self._num_rows, self._num_rows + missing
        if last > self._arrays.capacity:
            grown = self._arrays.grow(max(last, self._arrays.capacity * 3 // 2), first)
            with self._publish_lock:
                self._arrays = grown
        with self._publish_lock:
            self._num_rows = last
        return np.concatenate([*taken, np.arange(first, last, dtype=np.int64)])


def _collect(
    found: Mapping[int, TopK],
    view: View,
    num_queries: int,
    k: int,
    matched_B: tuple[int, ...],
    strategy: str,
    *,
    shared: bool,
) -> Hits:
    """shared: whether the queries had one filter, so that they matched the same items."""
    keys = np.full((num_queries, k), -1, np.int64)
    scores = np.full((num_queries, k), -np.inf, np.float32)
    with np.errstate(over="ignore"):
        for query, best in found.items():
            keys[query, : best.row_K.size] = view.arrays.key_N[best.row_K]
            scores[query, : best.row_K.size] = best.score_K
    return Hits(
        keys=keys,
        scores=scores,
        exact=True,
        num_matched=max(matched_B, default=0) if shared else sum(matched_B),
        num_scanned=sum(best.num_scanned for best in found.values()),
        num_rescored=sum(best.num_rescored for best in found.values()),
        strategy=strategy,
        matched_per_query=() if shared else matched_B,
    )
