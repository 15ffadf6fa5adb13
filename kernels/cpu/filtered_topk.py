"""Exact filtered top-k of one query, compiled: candidates from a fused scan of codes, then a full-precision rescore.

# N = rows, D = dimensions, W = mask words, M = matched rows, K = results, C = candidates kept

The scan keeps every row whose upper bound reaches the k-th best lower bound. The rescore takes them by upper bound,
descending, and stops when the next cannot reach the k-th final score.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.codes import NO_ROTATION, Codes, QueryCode, encode_query, rotate_query
from kernels.cpu.rescore import rescore
from kernels.cpu.scan_codes import Bounds, bounds_of, list_rows, scan_rows, scan_words, tighten
from kernels.cpu.threads import count_cores, scan_pool
from kernels.filtered_topk import TopK

PARALLEL_BYTES = 2 << 20  # codes to read before a second thread pays for its start (about 50 us)
_FIRST_CANDIDATES = 4096
WHOLE_ROWS = 3000  # per result: a stream over fewer rows reads whole codes from the start (see `scan_codes`)


def filtered_topk(
    query_D: NDArray[np.float32],
    vector_ND: NDArray[np.float32],
    codes: Codes,
    key_N: NDArray[np.int64],
    mask_W: NDArray[np.uint64],
    k: int,
    strategy: str,
    num_threads: int | None,
    bonus_M: NDArray[np.float64],
) -> TopK:
    """See `kernels.filtered_topk`; arguments are checked there."""
    num_matched = int(np.bitwise_count(mask_W).sum())
    k = min(k, num_matched)
    if k == 0:
        return TopK(np.empty(0, np.int64), np.empty(0, np.float64), 0, 0)
    row_M: NDArray[np.int64] | None = None
    if strategy != "stream":
        row_M = np.empty(num_matched, np.int64)
        list_rows(mask_W, row_M)
    code = encode_query(query_D, codes.mean_D, codes.rotation_DD)
    scorer = Scorer(query_D, vector_ND, codes, key_N, code.mean_score)
    if strategy == "gather":
        assert row_M is not None
        return scorer.best(row_M, np.full(num_matched, np.inf), bonus_M, k, 0)
    threads = num_threads or count_cores()
    parts = min(threads, max(1, num_matched * codes.upper_NP.shape[1] // PARALLEL_BYTES))
    size = mask_W.size if row_M is None else row_M.size
    edges = [size * part // parts for part in range(parts + 1)]
    bounds = bounds_of(code, query_D.size)
    whole = codes.is_fine and (row_M is not None or num_matched < WHOLE_ROWS * k)
    scan = _Scan(codes, code, bounds, whole, mask_W, row_M, bonus_M, k, np.full(1, -np.inf))
    futures = [scan_pool().submit(scan.part, edges[part], edges[part + 1]) for part in range(1, parts)]
    found = [scan.part(edges[0], edges[1]), *(future.result() for future in futures)]
    row_C, upper_C, threshold = merge_candidates(found, k)
    bonus_C = bonus_M[np.searchsorted(row_M, row_C)] if bonus_M.size and row_M is not None else bonus_M
    if codes.is_fine and not whole:
        tighten(codes, code, bounds, row_C, upper_C)
    kept = np.flatnonzero(upper_C >= threshold)
    kept = kept[np.argsort(-upper_C[kept])]
    return scorer.best(row_C[kept], upper_C[kept], bonus_C[kept] if bonus_C.size else bonus_C, k, num_matched)


Candidates = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]  # rows, upper bounds, heap


def merge_candidates(found: list[Candidates], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64], float]:
    """The candidates of all parts that the k-th best lower bound of all leaves, and that bound."""
    row_C = np.concatenate([rows for rows, _, _ in found])
    upper_C = np.concatenate([uppers for _, uppers, _ in found])
    lower = np.concatenate([heap for _, _, heap in found])
    threshold = float(np.partition(lower, lower.size - k)[lower.size - k])
    kept = upper_C >= threshold
    return row_C[kept], upper_C[kept], threshold


class Scorer(NamedTuple):
    """What the final scores of one query are made from."""

    query_D: NDArray[np.float32]
    vector_ND: NDArray[np.float32]
    codes: Codes
    key_N: NDArray[np.int64]
    mean_score: float  # q . mean, for codes that stand alone

    def best(
        self,
        row_C: NDArray[np.int64],
        upper_C: NDArray[np.float64],
        bonus_C: NDArray[np.float64],
        k: int,
        num_scanned: int,
    ) -> TopK:
        """The k best of the candidates by final score; upper_C descends."""
        row_K = np.empty(k, np.int64)
        score_K = np.empty(k, np.float64)
        query = rotate_query(self.query_D, NO_ROTATION if len(self.vector_ND) else self.codes.rotation_DD)
        arrays = self.vector_ND, self.codes, self.key_N
        found, num_rescored = rescore(*arrays, query, self.mean_score, row_C, upper_C, bonus_C, row_K, score_K)
        assert found == k, (found, k)
        order = np.lexsort((self.key_N[row_K], -score_K))
        return TopK(row_K[order], score_K[order], num_scanned, num_rescored)


class _Scan(NamedTuple):
    codes: Codes
    query: QueryCode
    bounds: Bounds
    whole: bool
    mask_W: NDArray[np.uint64]
    row_M: NDArray[np.int64] | None
    bonus_M: NDArray[np.float64]
    k: int
    floor_1: NDArray[np.float64]

    def part(self, first: int, last: int) -> Candidates:
        """Candidates of some words of the mask or, where rows are listed, of some of them."""
        heap_K, middle_K = np.full((2, self.k), -np.inf)
        room = max(_FIRST_CANDIDATES, 2 * self.k + 128)
        row_C, upper_C = np.empty(room, np.int64), np.empty(room, np.float64)
        count = 0
        while True:
            how = (first, last, self.query, self.bounds)
            kept = (self.floor_1, row_C, upper_C, count)
            if self.row_M is None:
                first, count = scan_words(self.codes, self.mask_W, *how, self.whole, heap_K, middle_K, *kept)
            else:
                first, count = scan_rows(self.codes, self.row_M, self.bonus_M, *how, heap_K, *kept)
            if first >= last:
                return row_C[:count], upper_C[:count], heap_K
            row_C = np.concatenate([row_C, np.empty_like(row_C)])
            upper_C = np.concatenate([upper_C, np.empty_like(upper_C)])
