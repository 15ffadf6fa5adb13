"""Filtered top-k by a stored column: the front of the op.

# N = rows, W = mask words, K = results

    best K of { (value_i, key_i) : bit i of the mask is set }, value descending, then key ascending
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.filtered_topk import Backend, TopK, has_numba


def column_topk(
    value_N: NDArray[np.float64],
    key_N: NDArray[np.int64],
    mask_W: NDArray[np.uint64],
    k: int,
    *,
    backend: Backend = "auto",
) -> TopK:
    """The k best rows that the mask admits; each value is read once, so a writer may change values meanwhile.

    Raises ValueError for shapes that do not fit or k < 1.
    """
    if value_N.ndim != 1 or value_N.dtype != np.float64 or key_N.shape != value_N.shape:
        raise ValueError(
            f"values {value_N.dtype}{list(value_N.shape)} and keys {list(key_N.shape)}, expected float64[N], int64[N]"
        )
    if mask_W.shape != ((value_N.size + 63) // 64,):
        raise ValueError(f"mask: {list(mask_W.shape)} words for {value_N.size} rows")
    if k < 1:
        raise ValueError(f"k = {k}, expected at least 1")
    if backend == "reference" or (backend == "auto" and not has_numba()):
        from kernels.reference.column_topk import column_topk as run_reference

        return run_reference(value_N, key_N, mask_W, k)
    from kernels.cpu.column_topk import column_topk as run_compiled

    return run_compiled(value_N, key_N, mask_W, k)
