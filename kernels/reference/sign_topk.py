"""Rows of the best 1-bit codes in plain numpy: the definition of correct."""

# N = rows, L = bits, W = mask words, M = admitted rows, C = rows kept

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.reference.filtered_topk import list_rows
from kernels.sign_codes import SignCodes, SignQuery


def sign_topk(query: SignQuery, codes: SignCodes, mask_W: NDArray[np.uint64], num_kept: int) -> NDArray[np.int64]:
    """See `kernels.sign_topk`; arguments are checked there."""
    rows = list_rows(mask_W)
    differing_M = np.zeros(rows.size, np.int64)
    for place, plane_W in enumerate(query.plane_PW):
        differing_M += np.bitwise_count(codes.bit_NW[rows] ^ plane_W).sum(axis=1, dtype=np.int64) << place
    estimate_M = (query.largest - 2 * differing_M).astype(np.float32)
    if codes.scale_N.size:
        estimate_M = codes.scale_N[rows] * estimate_M
    best: NDArray[np.int64] = np.sort(rows[np.lexsort((rows, -estimate_M))[:num_kept]])
    return best
