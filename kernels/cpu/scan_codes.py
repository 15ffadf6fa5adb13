"""The fused pass over mask and codes, compiled: score, threshold and partial top-k; no array of N scores exists.

# N = rows, D = dimensions, P = bytes of a plane's row, W = mask words, M = rows in a list, K = results, C = candidates

Each admitted row's upper nibbles are read once; where the bound that they give reaches the threshold, the row is kept.
The threshold is the least of k lower bounds. To raise it fast without reading lower nibbles in vain, they are read at
once only for rows that are among the k best so far by the middle of their upper nibbles' bounds. `tighten` reads those
of the candidates that are left. Until a threshold has risen, bounds of upper nibbles let most rows through; so where
rows are few for the results wanted, and where they are listed, whole codes are read from the start.

Two ways through the rows: `scan_words` streams over the mask, sixty-four rows at once where some of a word are
set, because a few dot products in vain cost less than mispredicting which are wanted. `scan_rows` follows a
list of rows and asks for each some steps ahead of its use.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.codes import UNIT, UPPER_MIDDLE, UPPER_UNIT, Codes, QueryCode
from kernels.cpu.compile import compiled, count_word, lowest_bit, prefetch
from kernels.cpu.nibbles import dot_row

DENSE_BITS = 16  # of a word's 64: from here on the unset ones are scored too
AHEAD = 24  # rows between asking for a code and using it; their lines fit the first-level cache
LINE_BYTES = 64


class Bounds(NamedTuple):
    """How integer products become bounds of a score.

    upper nibbles: base + scale_i * (upper_scale * dot + upper_shift +- (error + upper_norm * upper_share_i)) +- slack
    whole code:    base + scale_i * (scale * dot +- (error + norm * share_i)) +- slack
    """

    upper_scale: float
    upper_shift: float
    upper_norm: float
    scale: float
    norm: float
    error: float
    base: float
    slack: float


def bounds_of(query: QueryCode, dim: int) -> Bounds:
    """The bounds of one query's scores."""
    norm = query.norm * float(np.sqrt(dim))
    return Bounds(
        *(16.0 * query.scale, -UPPER_MIDDLE * query.scale * query.sum_steps, UPPER_UNIT * norm),
        *(query.scale, UNIT * norm, query.scale_error, query.mean_score, query.slack),
    )


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
    dot_R: NDArray[np.int64],
    scale_N: NDArray[np.float32],
    share_N: NDArray[np.uint8],
    start: int,
    terms: tuple[float, float, float, float],
    threshold: float,
) -> int:
    """How many rows from `start` reach the threshold; a function of its own, so that the loop becomes vector code."""
    upper_scale, shift, upper_norm, base = terms
    reaching = 0
    for place in range(dot_R.shape[0]):
        row = np.uint64(start) + np.uint64(place)  # unsigned: numba does not look whether it counts from the end
        steps = upper_scale * np.float64(dot_R[place]) + shift + upper_norm * np.float64(share_N[row])
        reaching += 1 if np.float64(scale_N[row]) * steps + base >= threshold else 0
    return reaching


@compiled
def _middle(bounds: Bounds, scale: np.float32, product: np.int64) -> float:
    """The middle of the bounds that a row's upper nibbles give."""
    return bounds.base + np.float64(scale) * (bounds.upper_scale * np.float64(product) + bounds.upper_shift)


@compiled
def _half_width(bounds: Bounds, scale: np.float32, upper_share: np.uint8) -> float:
    """How far a score can be from that middle."""
    return np.float64(scale) * (bounds.error + bounds.upper_norm * np.float64(upper_share)) + bounds.slack


@compiled
def _whole_interval(bounds: Bounds, scale: np.float32, share: np.uint8, product: np.int64) -> tuple[float, float]:
    """The bounds of a score that a whole code gives.  product: 16 * that of upper nibbles + lower - 128 * sum_steps."""
    middle, off = bounds.scale * np.float64(product), bounds.error + bounds.norm * np.float64(share)
    wide = np.float64(scale)
    return bounds.base + wide * (middle - off) - bounds.slack, bounds.base + wide * (middle + off) + bounds.slack


@compiled
def _lower_bound(
    bounds: Bounds,
    scale: np.float32,
    shares: tuple[np.uint8, np.uint8],
    product: np.int64,
    lower_at: int,
    steps: tuple[int, int, int, int, int],
) -> float:
    """The lower bound of a row's score that its whole code gives, or its upper nibbles where they are all there is."""
    high_at, low_at, length, width, sum_steps = steps
    if width == 0:
        return _middle(bounds, scale, product) - _half_width(bounds, scale, shares[1])
    rest = dot_row(lower_at, high_at, low_at, length, width)
    return _whole_interval(bounds, scale, shares[0], 16 * product + rest - 128 * sum_steps)[0]


@compiled
def scan_words(
    codes: Codes,
    mask_W: NDArray[np.uint64],
    first_word: int,
    last_word: int,
    query: QueryCode,
    bounds: Bounds,
    whole: bool,
    heap_K: NDArray[np.float64],
    middle_K: NDArray[np.float64],
    floor_1: NDArray[np.float64],
    row_C: NDArray[np.int64],
    upper_C: NDArray[np.float64],
    count: int,
) -> tuple[int, int]:
    """Scan words from `first_word`; returns (next word, candidates kept), next < last_word when room ran out.

    whole: read both planes of every row; for codes that have both.  heap_K: k lower bounds so far, -inf where fewer
    rows were seen.  middle_K: the k best middles; not used with `whole`.  floor_1: a threshold that another thread may
    raise; one that is too low only costs time.
    """
    upper_NP, lower_NP, scale_N = codes.upper_NP, codes.lower_NP, codes.scale_N
    upper_share_N, share_N = codes.upper_share_N, codes.share_N
    upper_at, lower_at, width = upper_NP.ctypes.data, lower_NP.ctypes.data, upper_NP.shape[1]
    high_at, low_at, length = query.high_2L.ctypes.data, query.low_2L.ctypes.data, query.high_2L.shape[1]
    num_rows = upper_NP.shape[0]
    steps = (high_at, low_at, length, width if lower_NP.shape[0] > 0 else 0, query.sum_steps)
    dot_R = np.empty(64, np.int64)
    offset, read_N = 128 * query.sum_steps, share_N if whole else upper_share_N
    terms = (bounds.upper_scale, bounds.upper_shift + bounds.error, bounds.upper_norm, bounds.base + bounds.slack)
    if whole:
        terms = (bounds.scale, bounds.error, bounds.norm, bounds.base + bounds.slack)
    for word in range(first_word, last_word):
        bits = mask_W[word]
        if bits == np.uint64(0):
            continue
        start = word * 64
        threshold = max(heap_K[0], floor_1[0])
        dense = count_word(bits) >= DENSE_BITS and start + 64 <= num_rows
        if dense:
            for place in range(64):
                dot_R[place] = dot_row(upper_at + (start + place) * width, high_at, low_at, length, width)
            if whole:
                for place in range(64):
                    rest = dot_row(lower_at + (start + place) * width, high_at, low_at, length, width)
                    dot_R[place] = 16 * dot_R[place] + rest - offset
            if _count_reaching(dot_R, scale_N, read_N, start, terms, threshold) == 0:
                continue
        if count + 64 > row_C.shape[0]:
            count = compact_candidates(row_C, upper_C, count, threshold)
            if 2 * count > row_C.shape[0] or count + 64 > row_C.shape[0]:
                return word, count
        while bits != np.uint64(0):
            place = lowest_bit(bits)
            row = start + place
            bits &= bits - np.uint64(1)
            if dense:
                product = dot_R[place]
            else:
                product = np.int64(dot_row(upper_at + row * width, high_at, low_at, length, width))
                if whole:
                    product = 16 * product + dot_row(lower_at + row * width, high_at, low_at, length, width) - offset
            if whole:
                lower, upper = _whole_interval(bounds, scale_N[row], share_N[row], product)
                if upper < threshold:
                    continue
            else:
                middle = _middle(bounds, scale_N[row], product)
                upper, lower = middle + _half_width(bounds, scale_N[row], upper_share_N[row]), -np.inf
                if upper < threshold:
                    continue
                if middle > middle_K[0]:
                    replace_least(middle_K, middle)
                    shares = (share_N[row], upper_share_N[row])
                    lower = _lower_bound(bounds, scale_N[row], shares, product, lower_at + row * width, steps)
            row_C[count] = row
            upper_C[count] = upper
            count += 1
            if lower > heap_K[0]:
                replace_least(heap_K, lower)
                threshold = max(threshold, heap_K[0])
        if threshold > floor_1[0]:
            floor_1[0] = threshold
    return last_word, count


@compiled
def scan_rows(
    codes: Codes,
    row_M: NDArray[np.int64],
    bonus_M: NDArray[np.float64],
    first: int,
    last: int,
    query: QueryCode,
    bounds: Bounds,
    heap_K: NDArray[np.float64],
    floor_1: NDArray[np.float64],
    row_C: NDArray[np.int64],
    upper_C: NDArray[np.float64],
    count: int,
) -> tuple[int, int]:
    """As `scan_words`, over places first..last of a list of rows; returns (next place, candidates kept).

    Reads whole codes at once: rows far apart cost the wait for their memory, for which both planes are asked together.
    bonus_M: added to the rows' scores; of no rows where nothing is.
    """
    scale_N, upper_share_N, share_N = codes.scale_N, codes.upper_share_N, codes.share_N
    upper_at, lower_at, width = codes.upper_NP.ctypes.data, codes.lower_NP.ctypes.data, codes.upper_NP.shape[1]
    high_at, low_at, length = query.high_2L.ctypes.data, query.low_2L.ctypes.data, query.high_2L.shape[1]
    fine, offset = codes.lower_NP.shape[0] > 0, 128 * query.sum_steps
    scale_at, share_at = scale_N.ctypes.data, share_N.ctypes.data if fine else upper_share_N.ctypes.data
    for index in range(first, last):
        if index + AHEAD < last:
            row = row_M[index + AHEAD]
            prefetch(scale_at + 4 * row)
            prefetch(share_at + row)
            for byte in range(0, width, LINE_BYTES):
                prefetch(upper_at + row * width + byte)
                if fine:
                    prefetch(lower_at + row * width + byte)
        if count == row_C.shape[0]:
            count = compact_candidates(row_C, upper_C, count, max(heap_K[0], floor_1[0]))
            if 2 * count > row_C.shape[0]:
                return index, count
        row = row_M[index]
        bonus = bonus_M[index] if bonus_M.shape[0] > 0 else 0.0
        product = np.int64(dot_row(upper_at + row * width, high_at, low_at, length, width))
        if fine:
            product = 16 * product + dot_row(lower_at + row * width, high_at, low_at, length, width) - offset
            lower, upper = _whole_interval(bounds, scale_N[row], share_N[row], product)
        else:
            middle = _middle(bounds, scale_N[row], product)
            off = _half_width(bounds, scale_N[row], upper_share_N[row])
            lower, upper = middle - off, middle + off
        slack = abs(bonus) * 2.0**-51
        lower, upper = lower + bonus - slack, upper + bonus + slack
        if upper >= max(heap_K[0], floor_1[0]):
            row_C[count] = row
            upper_C[count] = upper
            count += 1
            if lower > heap_K[0]:
                replace_least(heap_K, lower)
    if heap_K[0] > floor_1[0]:
        floor_1[0] = heap_K[0]
    return last, count


@compiled
def tighten(
    codes: Codes,
    query: QueryCode,
    bounds: Bounds,
    row_C: NDArray[np.int64],
    upper_C: NDArray[np.float64],
) -> None:
    """Replace the candidates' upper bounds by those of their whole codes. There must be lower nibbles."""
    scale_N, share_N = codes.scale_N, codes.share_N
    upper_at, lower_at, width = codes.upper_NP.ctypes.data, codes.lower_NP.ctypes.data, codes.upper_NP.shape[1]
    high_at, low_at, length = query.high_2L.ctypes.data, query.low_2L.ctypes.data, query.high_2L.shape[1]
    for index in range(row_C.shape[0]):
        if index + AHEAD < row_C.shape[0]:
            row = row_C[index + AHEAD]
            for byte in range(0, width, LINE_BYTES):
                prefetch(upper_at + row * width + byte)
                prefetch(lower_at + row * width + byte)
        row = row_C[index]
        product = 16 * np.int64(dot_row(upper_at + row * width, high_at, low_at, length, width))
        product += dot_row(lower_at + row * width, high_at, low_at, length, width) - 128 * query.sum_steps
        upper_C[index] = _whole_interval(bounds, scale_N[row], share_N[row], product)[1]
