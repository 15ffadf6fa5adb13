"""Exact filtered top-k of one query, compiled: candidates from a fused scan of codes, then a full-precision rescore.

# N = rows, D = dimensions, W = mask words, M = matched rows, K = results, C = candidates kept

The scan keeps every row whose upper bound reaches the k-th best lower bound. The rescore takes them by upper bound,
descending, and stops when the next cannot reach the k-th exact score.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.codes import Codes, QueryCode, encode_query
from kernels.cpu.rescore import rescore
from kernels.cpu.scan_codes import list_rows, scan_rows, scan_words
from kernels.cpu.threads import count_cores, scan_pool
from kernels.filtered_topk import TopK

PARALLEL_BYTES = 2 << 20  # codes to read before a second thread pays for its start (about 50 us)
_FIRST_CANDIDATES = 4096


def filtered_topk(
    query_D: NDArray[np.float32],
    vector_ND: NDArray[np.float32],
    codes: Codes,
    key_N: NDArray[np.int64],
    mask_W: NDArray[np.uint64],
    k: int,
    strategy: str,
    num_threads: int | None,
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
    if strategy == "gather":
        assert row_M is not None
        return rescore_candidates(query_D, vector_ND, key_N, row_M, np.full(num_matched, np.inf), k, 0)
    threads = num_threads or count_cores()
    parts = min(threads, max(1, num_matched * codes.code_ND.shape[1] // PARALLEL_BYTES))
    query = encode_query(query_D, codes.mean_D)
    size = mask_W.size if row_M is None else row_M.size
    edges = [size * part // parts for part in range(parts + 1)]
    futures = [
        scan_pool().submit(_scan_part, query, codes, mask_W, row_M, k, edges[part], edges[part + 1])
        for part in range(1, parts)
    ]
    found = [
        _scan_part(query, codes, mask_W, row_M, k, edges[0], edges[1]),
        *(future.result() for future in futures),
    ]
    row_C, upper_C = merge_candidates(found, k)
    return rescore_candidates(query_D, vector_ND, key_N, row_C, upper_C, k, num_matched)


Candidates = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]  # rows, upper bounds, heap


def merge_candidates(found: list[Candidates], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The candidates of all parts that the k-th best lower bound of all leaves, upper bounds descending."""
    row_C = np.concatenate([rows for rows, _, _ in found])
    upper_C = np.concatenate([uppers for _, uppers, _ in found])
    lower = np.concatenate([heap for _, _, heap in found])
    threshold = np.partition(lower, lower.size - k)[lower.size - k]
    kept = np.flatnonzero(upper_C >= threshold)
    kept = kept[np.argsort(-upper_C[kept])]
    return row_C[kept], upper_C[kept]


def rescore_candidates(
    query_D: NDArray[np.float32],
    vector_ND: NDArray[np.float32],
    key_N: NDArray[np.int64],
    row_C: NDArray[np.int64],
    upper_C: NDArray[np.float64],
    k: int,
    num_scanned: int,
) -> TopK:
    """The k best of the candidates in full precision; upper_C descends."""
    row_K = np.empty(k, np.int64)
    score_K = np.empty(k, np.float64)
    found, num_rescored = rescore(vector_ND, key_N, query_D.astype(np.float64), row_C, upper_C, row_K, score_K)
    assert found == k, (found, k)
    order = np.lexsort((key_N[row_K], -score_K))
    return TopK(row_K[order], score_K[order], num_scanned, num_rescored)


def _scan_part(
    query: QueryCode,
    codes: Codes,
    mask_W: NDArray[np.uint64],
    row_M: NDArray[np.int64] | None,
    k: int,
    first: int,
    last: int,
) -> Candidates:
    """Candidates of some words of the mask or, where rows are listed, of some of them."""
    heap_K = np.full(k, -np.inf)
    room = max(_FIRST_CANDIDATES, 2 * k + 128)
    row_C, upper_C = np.empty(room, np.int64), np.empty(room, np.float64)
    step_D, terms = query.step_D, (query.scale, query.mean_score, query.scale_error, query.norm, query.slack)
    count = 0
    while True:
        where = (codes.code_ND, codes.scale_N, codes.residual_N)
        if row_M is None:
            first, count = scan_words(*where, mask_W, first, last, step_D, *terms, heap_K, row_C, upper_C, count)
        else:
            first, count = scan_rows(*where, row_M, first, last, step_D, *terms, heap_K, row_C, upper_C, count)
        if first >= last:
            return row_C[:count], upper_C[:count], heap_K
        row_C = np.concatenate([row_C, np.empty_like(row_C)])
        upper_C = np.concatenate([upper_C, np.empty_like(upper_C)])
