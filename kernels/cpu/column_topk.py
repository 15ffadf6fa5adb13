"""Filtered top-k by a stored column, compiled: one pass, a threshold from the best k so far."""

# N = rows, W = mask words, K = results

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.cpu.compile import compiled, lowest_bit
from kernels.filtered_topk import TopK


@compiled
def _is_worse(value: float, key: int, other_value: float, other_key: int) -> bool:
    return value < other_value or (value == other_value and key > other_key)


@compiled
def _sink(value_K: NDArray[np.float64], row_K: NDArray[np.int64], key_N: NDArray[np.int64], at: int) -> None:
    """Restore a heap with its worst entry on top after entry `at` became better."""
    size = row_K.shape[0]
    value = value_K[at]
    row = row_K[at]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and _is_worse(
            value_K[child + 1], key_N[row_K[child + 1]], value_K[child], key_N[row_K[child]]
        ):
            child += 1
        if not _is_worse(value_K[child], key_N[row_K[child]], value, key_N[row]):
            break
        value_K[at] = value_K[child]
        row_K[at] = row_K[child]
        at = child
    value_K[at] = value
    row_K[at] = row


@compiled
def _select(
    value_N: NDArray[np.float64],
    key_N: NDArray[np.int64],
    mask_W: NDArray[np.uint64],
    value_K: NDArray[np.float64],
    row_K: NDArray[np.int64],
) -> None:
    size = row_K.shape[0]
    found = 0
    for word in range(mask_W.shape[0]):
        bits = mask_W[word]
        while bits != np.uint64(0):
            row = word * 64 + lowest_bit(bits)
            bits &= bits - np.uint64(1)
            value = value_N[row]
            if found < size:
                value_K[found] = value
                row_K[found] = row
                found += 1
                if found == size:
                    for start in range(size // 2 - 1, -1, -1):
                        _sink(value_K, row_K, key_N, start)
            elif _is_worse(value_K[0], key_N[row_K[0]], value, key_N[row]):
                value_K[0] = value
                row_K[0] = row
                _sink(value_K, row_K, key_N, 0)


def column_topk(value_N: NDArray[np.float64], key_N: NDArray[np.int64], mask_W: NDArray[np.uint64], k: int) -> TopK:
    """See `kernels.column_topk`; arguments are checked there."""
    num_matched = int(np.bitwise_count(mask_W).sum())
    k = min(k, num_matched)
    value_K, row_K = np.empty(k, np.float64), np.empty(k, np.int64)
    if k:
        _select(value_N, key_N, mask_W, value_K, row_K)
    order = np.lexsort((key_N[row_K], -value_K))
    return TopK(row_K[order], value_K[order], num_matched, 0)
