"""The same contract served by Faiss's flat index, for comparison and for those who have it in place.

Filters, keys and liveness are ours; Faiss scans float32 vectors behind a bitmap of the rows that may be answered.
Neither signals nor snapshots exist here. Searches and writes take turns.
"""

# B = queries, N = rows, M = items in one call, D = dimensions, K = results, C = candidates of one query

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from threading import RLock
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from index.attributes import Stored, check_attributes
from index.bits import Words, clear_bits, count_bits, list_bits, set_bits
from index.checks import check_k, check_keys, check_queries, check_vectors
from index.columns import Columns
from index.config import IndexConfig
from index.hits import Hits
from index.tree import Filter

SPARE = 64  # candidates beyond k, so that near ties at the end of the list can be told apart in full precision
MAX_GPU_CANDIDATES = 2048  # what Faiss's selection on a GPU can hold


class FaissIndex:
    """Items by key in a Faiss IndexFlatIP; `search` answers as `LiveIndex.search` does.

    Faiss adds in float32, in an order of its own. Its best k + SPARE rows are scored again exactly, and
    `Hits.exact` is True where the rounding bound says that no other row could belong to the k best.
    """

    def __init__(self, config: IndexConfig, *, device: Literal["cpu", "gpu"] = "cpu") -> None:
        """Raises ImportError where no Faiss package is installed, ValueError where it sees no GPU to use."""
        if config.signals:
            raise ValueError(f"signals {list(config.signals)}: FaissIndex keeps none")
        self._faiss = _import_faiss()
        if device == "gpu" and self._faiss.get_num_gpus() == 0:
            raise ValueError("device 'gpu': Faiss sees no GPU (faiss-cpu is installed, or there is no card)")
        self.config = config
        self.device = device
        self._flat: Any = self._faiss.IndexFlatIP(config.dim)
        self._on_gpu: Any = None  # copy of the live rows, made by the first search after a write
        self._gpu_row_N: NDArray[np.int64] = np.empty(0, np.int64)
        self._row_of: dict[int, int] = {}
        self._free: list[int] = []
        self._capacity = max(64, (config.capacity + 63) // 64 * 64)
        self._columns = Columns(config.schema, self._capacity)
        self._key_N = np.full(self._capacity, -1, np.int64)
        self._live_W: Words = np.zeros(self._capacity // 64, np.uint64)
        self._max_norm = 0.0  # of every vector ever stored: part of the rounding bound
        self._lock = RLock()

    @property
    def dim(self) -> int:
        return self.config.dim

    @property
    def num_items(self) -> int:
        return len(self._row_of)

    def __len__(self) -> int:
        return len(self._row_of)

    def __contains__(self, key: int) -> bool:
        return key in self._row_of

    # Writing

    def upsert(self, keys: ArrayLike, vectors: ArrayLike, attributes: Sequence[Mapping[str, object]]) -> None:
        """As `LiveIndex.upsert`: all of it or, with a ValueError, nothing."""
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
        last = {key: place for place, key in enumerate(key_M.tolist())}  # of a key given twice the last counts
        chosen = np.fromiter(last.values(), np.int64, len(last))
        if chosen.size:
            with self._lock:
                self._write(key_M[chosen], vector_MD[chosen], [items[place] for place in chosen.tolist()])

    def _write(self, key_M: NDArray[np.int64], vector_MD: NDArray[np.float32], items: list[list[Stored]]) -> None:
        old_rows = self._rows_of(key_M)
        row_M = old_rows.copy()
        for place in np.flatnonzero(old_rows < 0).tolist():
            row_M[place] = self._free.pop() if self._free else self._append()
        flat_ND = self._vectors()
        flat_ND[row_M] = vector_MD
        self._max_norm = max(self._max_norm, float(np.linalg.norm(vector_MD.astype(np.float64), axis=1).max()))
        self._columns.write(row_M, items)
        self._key_N[row_M] = key_M
        set_bits(self._live_W, row_M)
        self._row_of.update(zip(key_M.tolist(), row_M.tolist(), strict=True))
        self._on_gpu = None

    def _append(self) -> int:
        """A row past the last; all arrays grow by half where it does not fit."""
        row = int(self._flat.ntotal)
        if row == self._capacity:
            self._capacity = (self._capacity * 3 // 2 + 63) // 64 * 64
            self._columns = self._columns.grow(self._capacity)
            self._key_N = np.concatenate([self._key_N, np.full(self._capacity - row, -1, np.int64)])
            self._live_W = np.concatenate([self._live_W, np.zeros(self._capacity // 64 - row // 64, np.uint64)])
        self._flat.add(np.zeros((1, self.dim), np.float32))
        return row

    def delete(self, keys: ArrayLike) -> int:
        """Remove items; the number that were there."""
        with self._lock:
            rows = self._rows_of(np.unique(check_keys(keys)))
            rows = rows[rows >= 0]
            if rows.size:
                clear_bits(self._live_W, rows)
                for key in self._key_N[rows].tolist():
                    del self._row_of[key]
                self._free.extend(rows.tolist())
                self._on_gpu = None
            return int(rows.size)

    # Reading

    def search(self, query: ArrayLike, k: int, filter: Filter | None = None, exclude: ArrayLike | None = None) -> Hits:
        """As `LiveIndex.search`, but certified only where `Hits.exact` says so.

        Raises ValueError on a GPU for a filter or exclusions that leave out live items, which Faiss's flat index
        ignores there, and for more than MAX_GPU_CANDIDATES - SPARE results.
        """
        query_BD = check_queries(query, self.dim)
        check_k(k)
        with self._lock:
            mask_W = self._admit(filter, exclude)
            num_matched = count_bits(mask_W)
            shape = (query_BD.shape[0], k)
            keys, scores = np.full(shape, -1, np.int64), np.full(shape, -np.inf, np.float32)
            exact = True
            if num_matched:
                count = min(num_matched, k + SPARE)
                found_BC, row_BC = self._scan(query_BD, count, mask_W, num_matched)
                for place, query_D in enumerate(query_BD):
                    sure = self._rescore(query_D, row_BC[place], found_BC[place], keys[place], scores[place])
                    exact = exact and (sure or count == num_matched)
            return Hits(
                keys=keys,
                scores=scores,
                exact=exact,
                num_matched=num_matched,
                num_scanned=0,
                num_rescored=shape[0] * min(num_matched, k + SPARE),
                strategy="faiss flat" if num_matched else "empty",
            )

    def _scan(
        self, query_BD: NDArray[np.float32], count: int, mask_W: Words, num_matched: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Faiss's scores float32[B,C], descending, and rows int64[B,C]."""
        if self.device == "cpu":
            selector = self._faiss.IDSelectorBitmap(mask_W.astype("<u8", copy=False).view(np.uint8))
            parameters = self._faiss.SearchParameters(sel=selector)
            found_BC, row_BC = self._flat.search(query_BD, count, params=parameters)
            return found_BC, row_BC
        if num_matched < len(self._row_of):
            raise ValueError("a filter or exclusions on a GPU: Faiss's flat index ignores selectors there")
        if count > MAX_GPU_CANDIDATES:
            raise ValueError(f"{count} candidates on a GPU, expected at most {MAX_GPU_CANDIDATES}")
        if self._on_gpu is None:
            self._gpu_row_N = list_bits(self._live_W)
            self._on_gpu = self._faiss.GpuIndexFlatIP(self._faiss.StandardGpuResources(), self.dim)
            self._on_gpu.add(np.ascontiguousarray(self._vectors()[self._gpu_row_N]))
        found_BC, place_BC = self._on_gpu.search(query_BD, count)
        return found_BC, self._gpu_row_N[place_BC]

    def _rescore(
        self,
        query_D: NDArray[np.float32],
        row_C: NDArray[np.int64],
        found_C: NDArray[np.float32],
        key_K: NDArray[np.int64],
        score_K: NDArray[np.float32],
    ) -> bool:
        """Order candidates by their exact scores into key_K and score_K; whether no other row can belong there.

        Faiss's sum of D products is off by at most gamma_D * ||q|| * ||x||, whatever its order (Higham, Accuracy
        and Stability of Numerical Algorithms, section 3.1). Products of float32 values are exact in float64.
        """
        taken = row_C >= 0  # -1 where overflow left Faiss without a score
        row_C, found_C = row_C[taken], found_C[taken]
        query = query_D.astype(np.float64)
        product_CD = self._vectors()[row_C].astype(np.float64) * query
        exact_C = np.fromiter((math.fsum(product_D) for product_D in product_CD.tolist()), np.float64, row_C.size)
        order = np.lexsort((self._key_N[row_C], -exact_C))[: key_K.size]
        key_K[: order.size] = self._key_N[row_C[order]]
        with np.errstate(over="ignore"):
            score_K[: order.size] = exact_C[order]
        if order.size < key_K.size or not np.isfinite(found_C).all():
            return False
        unit = self.dim * 2.0**-24
        size = float(np.linalg.norm(query)) * self._max_norm
        error = 1.001 * size * unit / (1 - unit) + self.dim * 2.0**-149
        return float(exact_C[order[-1]]) > float(found_C[-1]) + error

    def count(self, filter: Filter | None = None) -> int:
        """The number of items that the filter admits."""
        with self._lock:
            return count_bits(self._admit(filter, None))

    def keys(self) -> NDArray[np.int64]:
        """The keys of all items, ascending."""
        with self._lock:
            return np.sort(self._key_N[list_bits(self._live_W)])

    def vectors(self, keys: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """float32[M,D] and bool[M]: the vectors of the keys, zeros where a key is not there."""
        with self._lock:
            row_M = self._rows_of(check_keys(keys))
            vector_MD = np.zeros((row_M.size, self.dim), np.float32)
            vector_MD[row_M >= 0] = self._vectors()[row_M[row_M >= 0]]
            return vector_MD, row_M >= 0

    def attributes(self, keys: ArrayLike) -> list[dict[str, object] | None]:
        """The filterable attributes of the keys as they were given; None where a key is not there."""
        with self._lock:
            rows = self._rows_of(check_keys(keys)).tolist()
            return [self._columns.read(row) if row >= 0 else None for row in rows]

    # Inside

    def _admit(self, filter: Filter | None, exclude: ArrayLike | None) -> Words:
        num_words = (int(self._flat.ntotal) + 63) // 64
        mask_W = self._live_W[:num_words].copy()
        if filter is not None:
            mask_W &= self._columns.evaluate(filter, num_words)
        if exclude is not None:
            rows = self._rows_of(check_keys(exclude))
            clear_bits(mask_W, rows[rows >= 0])
        return mask_W

    def _rows_of(self, key_M: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.fromiter((self._row_of.get(key, -1) for key in key_M.tolist()), np.int64, key_M.size)

    def _vectors(self) -> NDArray[np.float32]:
        """Faiss's own storage float32[N,D], to read and to write until the next row is added."""
        if self._flat.ntotal == 0:
            return np.empty((0, self.dim), np.float32)
        flat: NDArray[np.float32] = self._faiss.rev_swig_ptr(self._flat.get_xb(), self._flat.ntotal * self.dim)
        return flat.reshape(-1, self.dim)


def _import_faiss() -> ModuleType:
    """Faiss, or an ImportError that says what to install. An empty `faiss` folder imports but has nothing in it."""
    try:
        faiss = importlib.import_module("faiss")
    except ImportError as error:
        raise ImportError(f"{_ADVICE} ({error})") from error
    if not hasattr(faiss, "IndexFlatIP"):
        raise ImportError(
            f"{_ADVICE} (the installed package is empty: one of the two was removed from the other's files)"
        )
    return faiss


_ADVICE = "FaissIndex needs Faiss: install 'shortlist[cpu]' or 'shortlist[gpu]', never both in one environment"
