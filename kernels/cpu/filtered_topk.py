"""Exact filtered top-k, compiled: one fused pass over mask words and int8 codes, then a full-precision rescore.

# N = rows, D = dimensions, W = mask words, K = results, C = candidates kept

Pass 1 reads each admitted row's code once and has its score within lower..upper. A heap of the k best lower
bounds gives the threshold; a row whose upper bound reaches it is kept. No array of N scores exists.
Pass 2 takes the kept rows by upper bound, descending, and stops when the next cannot reach the k-th exact score.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from kernels.codes import Codes, QueryCode, encode_query
from kernels.cpu.compile import compiled, lowest_bit
from kernels.cpu.exact_dot import exact_dot
from kernels.filtered_topk import TopK

PARALLEL_BYTES = 4 << 20  # codes to read before a second thread pays for its start (about 50 us)
_FIRST_CANDIDATES = 4096


@compiled
def list_rows(mask_W: NDArray[np.uint64], row_M: NDArray[np.int64]) -> None:
    """Write the rows whose bit is set, ascending; row_M has exactly their number."""
    count = 0
    for word in range(mask_W.shape[0]):
        bits = mask_W[word]
        while bits != np.uint64(0):
            row_M[count] = word * 64 + lowest_bit(bits)
            count += 1
            bits &= bits - np.uint64(1)


@compiled
def _dot(code_ND: NDArray[np.int8], row: int, step_D: NDArray[np.int16]) -> np.int32:
    total = np.int32(0)
    for dimension in range(step_D.shape[0]):
        total = np.int32(total + np.int32(np.int32(code_ND[row, dimension]) * np.int32(step_D[dimension])))
    return total


@compiled
def _replace_least(heap_K: NDArray[np.float64], value: float) -> None:
    """Put `value` in the place of a min-heap's least element and let it sink."""
    size = heap_K.shape[0]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and heap_K[child + 1] < heap_K[child]:
            child += 1
        if heap_K[child] >= value:
            break
        heap_K[at] = heap_K[child]
        at = child
    heap_K[at] = value


@compiled
def _scan(
    code_ND: NDArray[np.int8],
    scale_N: NDArray[np.float32],
    residual_N: NDArray[np.float32],
    mask_W: NDArray[np.uint64],
    first_word: int,
    last_word: int,
    step_D: NDArray[np.int16],
    query_scale: float,
    mean_score: float,
    scale_error: float,
    query_norm: float,
    slack: float,
    heap_K: NDArray[np.float64],
    row_C: NDArray[np.int64],
    upper_C: NDArray[np.float64],
    count: int,
) -> tuple[int, int]:
    """Scan words from `first_word`; returns (next word, candidates kept), next < last_word when room ran out.

    heap_K: the k best lower bounds so far, -inf where fewer rows were seen.
    """
    for word in range(first_word, last_word):
        bits = mask_W[word]
        if bits == np.uint64(0):
            continue
        if count + 64 > row_C.shape[0]:
            kept = 0
            for index in range(count):
                if upper_C[index] >= heap_K[0]:
                    row_C[kept] = row_C[index]
                    upper_C[kept] = upper_C[index]
                    kept += 1
            count = kept
            if 2 * count > row_C.shape[0] or count + 64 > row_C.shape[0]:
                return word, count
        while bits != np.uint64(0):
            row = word * 64 + lowest_bit(bits)
            bits &= bits - np.uint64(1)
            scale = np.float64(scale_N[row])
            middle = mean_score + scale * query_scale * np.float64(_dot(code_ND, row, step_D))
            width = scale * scale_error + np.float64(residual_N[row]) * query_norm + slack
            upper = middle + width
            if upper >= heap_K[0]:
                row_C[count] = row
                upper_C[count] = upper
                count += 1
                if middle - width > heap_K[0]:
                    _replace_least(heap_K, middle - width)
    return last_word, count


@compiled
def _is_worse(score: float, key: int, other_score: float, other_key: int) -> bool:
    return score < other_score or (score == other_score and key > other_key)


@compiled
def _rescore(
    vector_ND: NDArray[np.float32],
    key_N: NDArray[np.int64],
    query_D: NDArray[np.float64],
    row_C: NDArray[np.int64],
    upper_C: NDArray[np.float64],
    best_row_K: NDArray[np.int64],
    best_score_K: NDArray[np.float64],
) -> tuple[int, int]:
    """The k best of the candidates, as a heap with the worst on top; returns (number found, number rescored).

    upper_C: descending. A row below the k-th score is out, and so is every later one; an equal one still counts,
    its key may be lower.
    """
    size = best_row_K.shape[0]
    found = 0
    for index in range(row_C.shape[0]):
        if found == size and upper_C[index] < best_score_K[0]:
            return found, index
        row = row_C[index]
        key = key_N[row]
        score = exact_dot(vector_ND, row, query_D)
        if found < size:
            at = found
            found += 1
            while at > 0:  # rise while the parent is better
                parent = (at - 1) // 2
                if not _is_worse(score, key, best_score_K[parent], key_N[best_row_K[parent]]):
                    break
                best_row_K[at] = best_row_K[parent]
                best_score_K[at] = best_score_K[parent]
                at = parent
        else:
            if not _is_worse(best_score_K[0], key_N[best_row_K[0]], score, key):
                continue
            at = 0
            while True:  # sink while a child is worse
                child = 2 * at + 1
                if child >= size:
                    break
                if child + 1 < size and _is_worse(
                    best_score_K[child + 1],
                    key_N[best_row_K[child + 1]],
                    best_score_K[child],
                    key_N[best_row_K[child]],
                ):
                    child += 1
                if not _is_worse(best_score_K[child], key_N[best_row_K[child]], score, key):
                    break
                best_row_K[at] = best_row_K[child]
                best_score_K[at] = best_score_K[child]
                at = child
        best_row_K[at] = row
        best_score_K[at] = score
    return found, row_C.shape[0]


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
    if strategy == "gather":
        row_C = np.empty(num_matched, np.int64)
        list_rows(mask_W, row_C)
        upper_C = np.full(num_matched, np.inf)
        num_scanned = 0
    else:
        row_C, upper_C = _scan_parts(encode_query(query_D, codes.mean_D), codes, mask_W, k, num_matched, num_threads)
        num_scanned = num_matched
    row_K = np.empty(k, np.int64)
    score_K = np.empty(k, np.float64)
    found, num_rescored = _rescore(vector_ND, key_N, query_D.astype(np.float64), row_C, upper_C, row_K, score_K)
    assert found == k, (found, k)
    order = np.lexsort((key_N[row_K], -score_K))
    return TopK(row_K[order], score_K[order], num_scanned, num_rescored)


def _scan_parts(
    query: QueryCode,
    codes: Codes,
    mask_W: NDArray[np.uint64],
    k: int,
    num_matched: int,
    num_threads: int | None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Candidates (rows, upper bounds descending) of the whole mask, scanned in one part per thread."""
    threads = num_threads or count_cores()
    parts = min(threads, max(1, num_matched * codes.code_ND.shape[1] // PARALLEL_BYTES))
    edges = [mask_W.size * part // parts for part in range(parts + 1)]
    futures = [
        _pool().submit(_scan_words, query, codes, mask_W, k, edges[part], edges[part + 1]) for part in range(1, parts)
    ]
    found = [_scan_words(query, codes, mask_W, k, edges[0], edges[1]), *(future.result() for future in futures)]
    row_C = np.concatenate([rows for rows, _, _ in found])
    upper_C = np.concatenate([uppers for _, uppers, _ in found])
    lower = np.concatenate([heap for _, _, heap in found])
    threshold = np.partition(lower, lower.size - k)[lower.size - k]
    kept = np.flatnonzero(upper_C >= threshold)
    kept = kept[np.argsort(-upper_C[kept])]
    return row_C[kept], upper_C[kept]


def _scan_words(
    query: QueryCode, codes: Codes, mask_W: NDArray[np.uint64], k: int, first: int, last: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    heap_K = np.full(k, -np.inf)
    room = max(_FIRST_CANDIDATES, 2 * k + 128)
    row_C, upper_C = np.empty(room, np.int64), np.empty(room, np.float64)
    count = 0
    while True:
        first, count = _scan(
            codes.code_ND,
            codes.scale_N,
            codes.residual_N,
            mask_W,
            first,
            last,
            query.step_D,
            query.scale,
            query.mean_score,
            query.scale_error,
            query.norm,
            query.slack,
            heap_K,
            row_C,
            upper_C,
            count,
        )
        if first >= last:
            return row_C[:count], upper_C[:count], heap_K
        row_C = np.concatenate([row_C, np.empty_like(row_C)])
        upper_C = np.concatenate([upper_C, np.empty_like(upper_C)])


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


_pool_lock = Lock()
_pool_of_scans: ThreadPoolExecutor | None = None


def _pool() -> ThreadPoolExecutor:
    """The threads that scan parts; every caller scans its first part itself, so a busy pool only costs time."""
    global _pool_of_scans
    with _pool_lock:
        if _pool_of_scans is None:
            _pool_of_scans = ThreadPoolExecutor(count_cores(), thread_name_prefix="scan")
        return _pool_of_scans


def _forget_pool() -> None:
    global _pool_of_scans, _pool_lock
    _pool_lock, _pool_of_scans = Lock(), None  # threads do not survive a fork


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
