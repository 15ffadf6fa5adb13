"""Filtered top-k by a stored column in plain numpy: the definition of correct."""

# N = rows, W = mask words, K = results

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.filtered_topk import TopK
from kernels.reference.filtered_topk import list_rows


def column_topk(value_N: NDArray[np.float64], key_N: NDArray[np.int64], mask_W: NDArray[np.uint64], k: int) -> TopK:
    rows = list_rows(mask_W)
    values = value_N[rows]
    best = np.lexsort((key_N[rows], -values))[:k]
    return TopK(rows[best], values[best], rows.size, 0)
