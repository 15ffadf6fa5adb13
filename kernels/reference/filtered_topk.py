"""Exact filtered top-k in plain Python and numpy: the definition of correct. Reads no codes."""

# N = rows, D = dimensions, W = mask words, K = results

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from kernels.filtered_topk import TopK


def filtered_topk(
    query_D: NDArray[np.float32],
    vector_ND: NDArray[np.float32],
    key_N: NDArray[np.int64],
    mask_W: NDArray[np.uint64],
    k: int,
) -> TopK:
    """Score every admitted row exactly, sort by (score descending, key ascending), take k."""
    rows = list_rows(mask_W)
    query = query_D.astype(np.float64)
    # A product of two float32 is exact in float64; fsum rounds their exact sum once.
    scores = np.array([math.fsum(query * vector_ND[row].astype(np.float64)) for row in rows], np.float64)
    best = np.lexsort((key_N[rows], -scores))[:k]
    return TopK(rows[best], scores[best], 0, rows.size)


def list_rows(mask_W: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The rows whose bit is set, ascending."""
    bits = np.unpackbits(mask_W.astype("<u8").view(np.uint8), bitorder="little")
    return np.flatnonzero(bits).astype(np.int64)
