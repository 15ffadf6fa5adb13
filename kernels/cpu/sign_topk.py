"""Rows of the best 1-bit codes, compiled: one pass of xor, popcount and threshold; no array of N estimates.

# N = rows, W = words of a row's bits, P = planes of the query, T = words of 64 rows' bits, M = mask words with a bit
# set, C = rows kept

A sample of the words gives a threshold that a few more rows than wanted should pass. Where too few passed, the pass is
made again without it. Each thread keeps room for some times C rows and, when that is full, the best C of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.cpu.compile import compiled, count_word, lowest_bit
from kernels.cpu.threads import count_cores, scan_pool
from kernels.sign_codes import SignCodes, SignQuery

PARALLEL_BYTES = 1 << 20  # codes to read before a second thread pays for its start
SAMPLE_WORDS = 128  # of 64 rows each
ROOM = 4  # times the rows kept

_Kept = tuple[NDArray[np.int64], NDArray[np.float32]]


def sign_topk(
    query: SignQuery, codes: SignCodes, mask_W: NDArray[np.uint64], num_kept: int, num_threads: int | None
) -> NDArray[np.int64]:
    """See `kernels.sign_topk`; arguments are checked there."""
    word_M = np.flatnonzero(mask_W)
    num_matched = int(np.bitwise_count(mask_W).sum())
    num_words = codes.bit_NW.shape[1]
    pattern_PT = np.ascontiguousarray(np.tile(query.plane_PW, (1, 64)))

    def scan(word_M: NDArray[np.int64], kept: int, threshold: float) -> _Kept:
        room = min(ROOM * kept, 64 * word_M.size) + 64
        row_C, estimate_C = np.empty(room, np.int64), np.empty(room, np.float32)
        count = _scan(
            *(codes.bit_NW, codes.scale_N, pattern_PT, query.largest, mask_W, word_M, kept),
            *(np.float32(threshold), row_C, estimate_C),
        )
        return row_C[:count], estimate_C[:count]

    def scan_all(threshold: float) -> _Kept:
        wanted = (num_threads or count_cores(), max(1, word_M.size * 512 * num_words // PARALLEL_BYTES))
        parts = np.array_split(word_M, min(wanted))
        futures = [scan_pool().submit(scan, part, num_kept, threshold) for part in parts[1:]]
        found = [scan(parts[0], num_kept, threshold), *(future.result() for future in futures)]
        return np.concatenate([rows for rows, _ in found]), np.concatenate([each for _, each in found])

    threshold = -np.inf
    if num_matched > 2 * num_kept and word_M.size > 8 * SAMPLE_WORDS:
        _, sampled = scan(word_M[:: word_M.size // SAMPLE_WORDS], 64 * word_M.size, -np.inf)
        share = sampled.size * num_kept / num_matched
        rank = round(share + 4.0 * np.sqrt(share)) + 2
        if rank < sampled.size:
            threshold = float(np.nextafter(np.partition(sampled, -rank)[-rank], np.float32(-np.inf)))
    row_C, estimate_C = scan_all(threshold)
    if row_C.size < min(num_kept, num_matched):
        row_C, estimate_C = scan_all(-np.inf)
    return row_C[: _keep_best(row_C, estimate_C, row_C.size, num_kept)]


@compiled
def _weigh(
    word_F: NDArray[np.uint64], first: int, count: int, pattern_PT: NDArray[np.uint64], weight_T: NDArray[np.int64]
) -> None:
    """Differing bits of `count` words from `first`, weighted by their planes.

    Whole arrays and places in them: a slice would have its references counted, by all threads at once. Unsigned: numba
    does not look whether they count from the end, and the loop becomes vector code.
    """
    start = np.uint64(first)
    for at in range(np.uint64(count)):
        weight_T[at] = count_word(word_F[start + at] ^ pattern_PT[np.uint64(0), at])
    for plane in range(np.uint64(1), np.uint64(pattern_PT.shape[0])):
        weight = np.int64(1) << np.int64(plane)
        for at in range(np.uint64(count)):
            weight_T[at] += weight * count_word(word_F[start + at] ^ pattern_PT[plane, at])


@compiled
def _weigh_four(
    word_F: NDArray[np.uint64], first: int, count: int, pattern_PT: NDArray[np.uint64], weight_T: NDArray[np.int64]
) -> None:
    """The same for four planes, in one pass."""
    start, one, two, three = np.uint64(first), np.uint64(1), np.uint64(2), np.uint64(3)
    for at in range(np.uint64(count)):
        word = word_F[start + at]
        low = count_word(word ^ pattern_PT[np.uint64(0), at]) + 2 * count_word(word ^ pattern_PT[one, at])
        weight_T[at] = low + 4 * count_word(word ^ pattern_PT[two, at]) + 8 * count_word(word ^ pattern_PT[three, at])


@compiled
def _estimate(
    weight_T: NDArray[np.int64],
    words: int,
    largest: int,
    scale_N: NDArray[np.float32],
    first: int,
    size: int,
    threshold: np.float32,
    estimate_R: NDArray[np.float32],
) -> int:
    """Estimates of `size` rows from `first`; how many are above the threshold."""
    start = np.uint64(first)
    if words == 2:
        for place in range(np.uint64(size)):
            total = weight_T[np.uint64(2) * place] + weight_T[np.uint64(2) * place + np.uint64(1)]
            estimate_R[place] = np.float32(largest - 2 * total)
    else:
        for place in range(np.uint64(size)):
            total = np.int64(0)
            for word in range(np.uint64(words)):
                total += weight_T[place * np.uint64(words) + word]
            estimate_R[place] = np.float32(largest - 2 * total)
    if scale_N.shape[0] > 0:
        for place in range(np.uint64(size)):
            estimate_R[place] = scale_N[start + place] * estimate_R[place]
    above = 0
    for place in range(np.uint64(size)):
        above += 1 if estimate_R[place] > threshold else 0
    return above


@compiled
def _keep_best(row_C: NDArray[np.int64], estimate_C: NDArray[np.float32], count: int, num_kept: int) -> int:
    """Keep the best num_kept of the first `count`, in place, in order; of equal ones the first. How many stay."""
    if count <= num_kept:
        return count
    least = np.partition(estimate_C[:count], count - num_kept)[count - num_kept]
    ties = num_kept
    for index in range(count):
        ties -= 1 if estimate_C[index] > least else 0
    kept = 0
    for index in range(count):
        estimate = estimate_C[index]
        if estimate > least or (estimate == least and ties > 0):
            ties -= 0 if estimate > least else 1
            row_C[kept] = row_C[index]
            estimate_C[kept] = estimate
            kept += 1
    return kept


@compiled
def _scan(
    bit_NW: NDArray[np.uint64],
    scale_N: NDArray[np.float32],
    pattern_PT: NDArray[np.uint64],
    largest: int,
    mask_W: NDArray[np.uint64],
    word_M: NDArray[np.int64],
    num_kept: int,
    threshold: np.float32,
    row_C: NDArray[np.int64],
    estimate_C: NDArray[np.float32],
) -> int:
    """Rows above the threshold, in row order, at least the best num_kept of them; how many.

    row_C, estimate_C: room for num_kept + 64 or for all.
    """
    num_rows, words = bit_NW.shape
    word_F = bit_NW.reshape(num_rows * words)
    weight_T, estimate_R = np.empty(64 * words, np.int64), np.empty(64, np.float32)
    count = 0
    for index in range(word_M.shape[0]):
        word = word_M[index]
        start = word * 64
        size = min(64, num_rows - start)
        if pattern_PT.shape[0] == 4:
            _weigh_four(word_F, start * words, size * words, pattern_PT, weight_T)
        else:
            _weigh(word_F, start * words, size * words, pattern_PT, weight_T)
        if _estimate(weight_T, words, largest, scale_N, start, size, threshold, estimate_R) == 0:
            continue
        if count + 64 > row_C.shape[0]:
            count = _keep_best(row_C, estimate_C, count, num_kept)
            least = estimate_C[0]
            for kept in range(count):
                least = min(least, estimate_C[kept])
            threshold = max(threshold, least)
        bits = mask_W[word]
        while bits != np.uint64(0):
            place = lowest_bit(bits)
            bits &= bits - np.uint64(1)
            if estimate_R[place] > threshold:
                row_C[count] = start + place
                estimate_C[count] = estimate_R[place]
                count += 1
    return count
