"""Exact filtered top-k of several queries in one pass: the front of the op.

# B = queries, N = rows, D = dimensions, W = mask words, G = masks, K = results

    for each query b: what `kernels.filtered_topk` answers with the mask group_B[b]
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from kernels.codes import Codes
from kernels.filtered_topk import Backend, TopK, check_arguments, filtered_topk, has_numba


def batched_topk(
    query_BD: NDArray[np.float32],
    vector_ND: NDArray[np.float32],
    codes: Codes,
    key_N: NDArray[np.int64],
    mask_GW: NDArray[np.uint64],
    group_B: NDArray[np.int64],
    k: int,
    *,
    backend: Backend = "auto",
    num_threads: int | None = None,
) -> list[TopK]:
    """The k best rows of each query among those that its mask, number group_B[b] of mask_GW, admits.

    Hits are those of B single searches. backend: as for `filtered_topk`; "reference" runs them one by one, and so do
    the others where `has_batches` is false. The product runs on torch's own threads beside those of the scan.

    Raises ValueError as `filtered_topk` does, and for a group that is no row of mask_GW.
    """
    if query_BD.ndim != 2 or mask_GW.ndim != 2 or group_B.shape != (len(query_BD),) or group_B.dtype != np.int64:
        raise ValueError(
            f"queries {list(query_BD.shape)}, masks {list(mask_GW.shape)}, groups {group_B.dtype}"
            f"{list(group_B.shape)}: expected float32[B,D], uint64[G,W], int64[B]"
        )
    if group_B.size and not 0 <= group_B.min() <= group_B.max() < len(mask_GW):
        raise ValueError(f"groups {group_B.min()} to {group_B.max()} of {len(mask_GW)} masks")
    if not len(query_BD):
        return []
    for mask_W in mask_GW:
        check_arguments(query_BD[0], vector_ND, codes, key_N, mask_W, k, backend, "stream")
    if not np.isfinite(query_BD).all():
        raise ValueError("query: holds nan or inf, expected finite values")
    if backend == "reference" or not has_batches(vector_ND.shape[1]):
        return [
            filtered_topk(query_D, vector_ND, codes, key_N, mask_GW[group], k, backend=backend, num_threads=num_threads)
            for query_D, group in zip(query_BD, group_B.tolist(), strict=True)
        ]
    from kernels.cpu.batched_topk import batched_topk as run_compiled

    threads = 1 if backend == "serial" else num_threads
    return run_compiled(query_BD, vector_ND, codes, key_N, mask_GW, group_B, k, threads)


@cache
def has_batches(dim: int) -> bool:
    """Whether several queries can share a pass here: numba is installed and torch's int8 product is exact.

    With one dimension torch 2.13 answers wrong products on a CPU (found by a property test; the cause is not known).
    """
    if dim == 1 or not has_numba():
        return False
    from kernels.cpu.batched_topk import has_exact_product

    return has_exact_product()
