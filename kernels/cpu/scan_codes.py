"""The fused pass over mask and int8 codes, compiled: score, threshold and partial top-k; no array of N scores exists.

# N = rows, D = dimensions, W = mask words, M = rows in a list, K = results, C = candidates kept

Each admitted row's code is read once and has its score within lower..upper. A heap of the k best lower bounds gives
the threshold; a row whose upper bound reaches it is kept.

Two ways through the rows: `scan_words` streams over the mask, sixty-four rows at once where some of a word are
set, because a few dot products in vain cost less than mispredicting which are wanted. `scan_rows` follows a
list of rows and asks for each some steps ahead of its use.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.cpu.compile import compiled, count_word, lowest_bit, prefetch

DENSE_BITS = 16  # of a word's 64: from here on the unset ones are scored too
AHEAD = 24  # rows between asking for a code and using it; their lines fit the first-level cache
LINE_BYTES = 64


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
def dot(code_ND: NDArray[np.int8], row: int, step_D: NDArray[np.int16]) -> np.int32:
    """The integer inner product of a code and a query's steps."""
    total = np.int32(0)
    for dimension in range(step_D.shape[0]):
        total = np.int32(total + np.int32(np.int32(code_ND[row, dimension]) * np.int32(step_D[dimension])))
    return total


@compiled
def replace_least(heap_K: NDArray[np.float64], value: float) -> None:
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
def compact_candidates(row_C: NDArray[np.int64], upper_C: NDArray[np.float64], count: int, threshold: float) -> int:
    """Drop the candidates below the threshold, in place; the number that stay."""
    kept = 0
    for index in range(count):
        if upper_C[index] >= threshold:
            row_C[kept] = row_C[index]
            upper_C[kept] = upper_C[index]
            kept += 1
    return kept


@compiled
def _count_reaching(
    dot_R: NDArray[np.int32],
    scale_R: NDArray[np.float32],
    residual_R: NDArray[np.float32],
    terms: tuple[float, float, float, float, float],
    threshold: float,
) -> int:
    """How many rows of a word reach the threshold; a function of its own, so that the loop becomes vector code."""
    query_scale, mean_score, scale_error, query_norm, slack = terms
    reaching = 0
    for place in range(dot_R.shape[0]):
        scale = np.float64(scale_R[place])
        middle = mean_score + scale * query_scale * np.float64(dot_R[place])
        width = scale * scale_error + np.float64(residual_R[place]) * query_norm + slack
        reaching += 1 if middle + width >= threshold else 0
    return reaching


@compiled
def scan_words(
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
    num_rows = code_ND.shape[0]
    dot_R = np.empty(64, np.int32)
    for word in range(first_word, last_word):
        bits = mask_W[word]
        if bits == np.uint64(0):
            continue
        start = word * 64
        dense = DENSE_BITS <= count_word(bits) < 64 and start + 64 <= num_rows
        if dense:
            for place in range(64):
                dot_R[place] = dot(code_ND, start + place, step_D)
            scale_R, residual_R = scale_N[start : start + 64], residual_N[start : start + 64]
            terms = (query_scale, mean_score, scale_error, query_norm, slack)
            if _count_reaching(dot_R, scale_R, residual_R, terms, heap_K[0]) == 0:
                continue
        if count + 64 > row_C.shape[0]:
            count = compact_candidates(row_C, upper_C, count, heap_K[0])
            if 2 * count > row_C.shape[0] or count + 64 > row_C.shape[0]:
                return word, count
        while bits != np.uint64(0):
            place = lowest_bit(bits)
            row = start + place
            bits &= bits - np.uint64(1)
            product = dot_R[place] if dense else dot(code_ND, row, step_D)
            scale = np.float64(scale_N[row])
            middle = mean_score + scale * query_scale * np.float64(product)
            width = scale * scale_error + np.float64(residual_N[row]) * query_norm + slack
            if middle + width >= heap_K[0]:
                row_C[count] = row
                upper_C[count] = middle + width
                count += 1
                if middle - width > heap_K[0]:
                    replace_least(heap_K, middle - width)
    return last_word, count


@compiled
def scan_rows(
    code_ND: NDArray[np.int8],
    scale_N: NDArray[np.float32],
    residual_N: NDArray[np.float32],
    row_M: NDArray[np.int64],
    first: int,
    last: int,
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
    """As `scan_words`, over places first..last of a list of rows; returns (next place, candidates kept)."""
    dim = step_D.shape[0]
    code_at = code_ND.ctypes.data
    scale_at = scale_N.ctypes.data
    residual_at = residual_N.ctypes.data
    for index in range(first, last):
        if index + AHEAD < last:
            row = row_M[index + AHEAD]
            prefetch(scale_at + 4 * row)
            prefetch(residual_at + 4 * row)
            for byte in range(0, dim, LINE_BYTES):
                prefetch(code_at + row * dim + byte)
        if count == row_C.shape[0]:
            count = compact_candidates(row_C, upper_C, count, heap_K[0])
            if 2 * count > row_C.shape[0]:
                return index, count
        row = row_M[index]
        scale = np.float64(scale_N[row])
        middle = mean_score + scale * query_scale * np.float64(dot(code_ND, row, step_D))
        width = scale * scale_error + np.float64(residual_N[row]) * query_norm + slack
        if middle + width >= heap_K[0]:
            row_C[count] = row
            upper_C[count] = middle + width
            count += 1
            if middle - width > heap_K[0]:
                replace_least(heap_K, middle - width)
    return last, count
