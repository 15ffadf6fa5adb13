"""Exact filtered top-k by inner product: the front of the op.

# N = rows, D = dimensions, W = mask words = ceil(N / 64), K = results

    best K of { (q . vector_i + bonus_i, key_i) : bit i of the mask is set }, score descending, then key ascending

The inner product is that of the float32 values, rounded once to float64. It does not depend on the order of summation,
on the backend, on the strategy, or on which other rows exist. Where no vectors are given the codes are what is scored,
as `kernels.cpu.rescore` says; then, too, the k best are exactly those of the scores.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.codes import MAX_DIM, Codes

Backend = Literal["auto", "cpu", "serial", "reference"]
Strategy = Literal["stream", "compact", "gather"]


class TopK(NamedTuple):
    """The best rows of one query, best first; shorter than k where fewer rows match."""

    row_K: NDArray[np.int64]
    score_K: NDArray[np.float64]
    num_scanned: int  # rows whose code was read
    num_rescored: int  # rows whose final score was computed


def filtered_topk(
    query_D: NDArray[np.float32],
    vector_ND: NDArray[np.float32],
    codes: Codes,
    key_N: NDArray[np.int64],
    mask_W: NDArray[np.uint64],
    k: int,
    *,
    strategy: Strategy = "stream",
    backend: Backend = "auto",
    num_threads: int | None = None,
    bonus_M: NDArray[np.float64] | None = None,
) -> TopK:
    """The k best rows that the mask admits. Bit r % 64 of word r // 64 admits row r.

    vector_ND: float32[N,D], or [0,D] to score the codes themselves.
    strategy: "stream" scans the codes in row order, drops what the error bounds exclude and rescores the rest;
    "compact" lists the admitted rows first and reads only their codes; "gather" rescores every admitted row. All give
    the same hits.
    backend: "cpu" is compiled (numba) and uses up to `num_threads` threads of its own where the work is large;
    "serial" is the same on the calling thread; "reference" is plain numpy; "auto" takes "cpu" where numba is
    installed. Keys of admitted rows must differ from one another.
    bonus_M: finite float64, one for each admitted row, ascending; added to their scores. Not for "stream".

    Raises ValueError for shapes or dtypes that do not fit, k < 1, or a query that is not finite.
    """
    check_arguments(query_D, vector_ND, codes, key_N, mask_W, k, backend, strategy)
    if bonus_M is None:
        bonus_M = np.empty(0)
    elif bonus_M.shape != (count := int(np.bitwise_count(mask_W).sum()),) or strategy == "stream":
        raise ValueError(f"bonus: {list(bonus_M.shape)} with {strategy}, expected [{count}], compact or gather")
    elif not np.isfinite(bonus_M).all():
        raise ValueError("bonus: holds nan or inf, expected finite values")
    if backend == "auto":
        backend = "cpu" if has_numba() else "reference"
    if backend == "reference":
        from kernels.reference.filtered_topk import filtered_topk as run_reference

        return run_reference(query_D, vector_ND, codes, key_N, mask_W, k, bonus_M)
    from kernels.cpu.filtered_topk import filtered_topk as run_compiled

    threads = 1 if backend == "serial" else num_threads
    return run_compiled(query_D, vector_ND, codes, key_N, mask_W, k, strategy, threads, bonus_M)


def has_numba() -> bool:
    """Whether the compiled backends can run here."""
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True


def check_arguments(
    query_D: NDArray[np.float32],
    vector_ND: NDArray[np.float32],
    codes: Codes,
    key_N: NDArray[np.int64],
    mask_W: NDArray[np.uint64],
    k: int,
    backend: str,
    strategy: str,
) -> None:
    """ValueError for what `filtered_topk` does not take, with the value and what was expected."""
    if vector_ND.ndim != 2 or vector_ND.dtype != np.float32 or not vector_ND.flags.c_contiguous:
        raise ValueError(f"vectors: {vector_ND.dtype}{list(vector_ND.shape)}, expected contiguous float32[N,D]")
    dim, num_rows = vector_ND.shape[1], len(codes.upper_NP)
    if len(vector_ND) not in (0, num_rows):
        raise ValueError(f"vectors: {len(vector_ND)} rows, expected the codes' {num_rows} or none")
    if not 1 <= dim <= MAX_DIM:
        raise ValueError(f"{dim} dimensions, expected 1 to {MAX_DIM}")
    if query_D.shape != (dim,) or query_D.dtype != np.float32:
        raise ValueError(f"query: {query_D.dtype}{list(query_D.shape)}, expected float32[{dim}]")
    if not np.isfinite(query_D).all():
        raise ValueError("query: holds nan or inf, expected finite values")
    width = (dim + 1) // 2
    for name, plane, rows in (
        ("upper", codes.upper_NP, num_rows),
        ("lower", codes.lower_NP, num_rows if codes.is_fine else 0),
    ):
        if plane.shape != (rows, width) or plane.dtype != np.uint8 or not plane.flags.c_contiguous:
            raise ValueError(f"{name} nibbles: {plane.dtype}{list(plane.shape)}, expected uint8[{rows},{width}]")
    per_row = codes.scale_N, codes.upper_share_N, codes.share_N
    if any(each.shape != (num_rows,) for each in per_row):
        raise ValueError(f"scales and shares: {[each.shape for each in per_row]}, expected [{num_rows}] each")
    if codes.mean_D.shape != (dim,):
        raise ValueError(f"mean: {list(codes.mean_D.shape)}, expected float32[{dim}]")
    if codes.rotation_DD.shape not in ((0, 0), (dim, dim)):
        raise ValueError(f"rotation: {list(codes.rotation_DD.shape)}, expected float64[{dim},{dim}] or [0,0]")
    if key_N.shape != (num_rows,) or key_N.dtype != np.int64:
        raise ValueError(f"keys: {key_N.dtype}{list(key_N.shape)}, expected int64[{num_rows}]")
    words = (num_rows + 63) // 64
    if mask_W.shape != (words,) or mask_W.dtype != np.uint64:
        raise ValueError(f"mask: {mask_W.dtype}{list(mask_W.shape)}, expected uint64[{words}]")
    if num_rows % 64 and mask_W[-1] >> np.uint64(num_rows % 64):
        raise ValueError(f"mask: admits rows past the last of {num_rows}")
    if k < 1:
        raise ValueError(f"k = {k}, expected at least 1")
    if backend not in ("auto", "cpu", "serial", "reference"):
        raise ValueError(f"backend {backend!r}: expected auto, cpu, serial or reference")
    if strategy not in ("stream", "compact", "gather"):
        raise ValueError(f"strategy {strategy!r}: expected stream, compact or gather")
