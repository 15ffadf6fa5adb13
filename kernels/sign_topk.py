"""The rows whose 1-bit codes say that they are among the best: the front of the op.

# N = rows, W = mask words, C = rows kept

    best C of { (estimate_i, row i) : bit i of the mask is set }, estimate descending, then row ascending

The estimate is that of `kernels.sign_codes`, rounded as float32(scale_i) * float32(sum of steps). What is answered does
not depend on the backend, and holds most of the rows of largest inner product, not surely all.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.filtered_topk import Backend, has_numba
from kernels.sign_codes import SignCodes, encode_sign_query


def sign_topk(
    query_D: NDArray[np.float32],
    codes: SignCodes,
    mask_W: NDArray[np.uint64],
    num_kept: int,
    *,
    backend: Backend = "auto",
    num_threads: int | None = None,
) -> NDArray[np.int64]:
    """int64[C]: the rows, ascending; all that the mask admits where they are no more than num_kept.

    backend, num_threads: as for `kernels.filtered_topk`. Raises ValueError for shapes that do not fit, num_kept < 1,
    or a query that is not finite.
    """
    num_rows, dim = len(codes.bit_NW), codes.projection_LD.shape[1]
    if query_D.shape != (dim,) or query_D.dtype != np.float32 or not np.isfinite(query_D).all():
        raise ValueError(f"query: {query_D.dtype}{list(query_D.shape)}, expected finite float32[{dim}]")
    if codes.bit_NW.shape[1] * 64 != len(codes.projection_LD) or not codes.bit_NW.flags.c_contiguous:
        raise ValueError(f"bits: {list(codes.bit_NW.shape)} words of {len(codes.projection_LD)} bits a row")
    if codes.scale_N.shape not in ((num_rows,), (0,)):
        raise ValueError(f"scales: {list(codes.scale_N.shape)}, expected [{num_rows}] or none")
    if mask_W.shape != ((num_rows + 63) // 64,) or mask_W.dtype != np.uint64:
        raise ValueError(f"mask: {mask_W.dtype}{list(mask_W.shape)}, expected uint64[{(num_rows + 63) // 64}]")
    if num_rows % 64 and mask_W[-1] >> np.uint64(num_rows % 64):
        raise ValueError(f"mask: admits rows past the last of {num_rows}")
    if num_kept < 1:
        raise ValueError(f"num_kept = {num_kept}, expected at least 1")
    query = encode_sign_query(query_D, codes)
    if backend == "reference" or (backend == "auto" and not has_numba()):
        from kernels.reference.sign_topk import sign_topk as run_reference

        return run_reference(query, codes, mask_W, num_kept)
    from kernels.cpu.sign_topk import sign_topk as run_compiled

    return run_compiled(query, codes, mask_W, num_kept, 1 if backend == "serial" else num_threads)
