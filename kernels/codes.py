"""The int8 codes that `filtered_topk` scans: what they hold and how far a score from them can be off.

# N = rows, D = dimensions

    vector_i = mean + scale_i * code_i + rest_i,      residual_i >= ||rest_i||
    |q . vector_i - approximation_i| <= ||q|| * residual_i + (error of the quantised query) + (float slack)

Per-row scale and a shared mean follow the measured ranking of int8 codes: per row beats one global scale, and
centring beats both where embeddings share a direction.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_DIM = 8192  # keeps int32 dot products and float32 residuals free of overflow
CODE_MAX = 127
_INT32_MAX = 2**31 - 1


class Codes(NamedTuple):
    """int8 codes of N rows. Rows that no mask admits may hold anything."""

    code_ND: NDArray[np.int8]  # contiguous rows
    scale_N: NDArray[np.float32]
    residual_N: NDArray[np.float32]  # upper bound of the norm of what the code leaves out
    mean_D: NDArray[np.float32]


class QueryCode(NamedTuple):
    """A query prepared for the scan of codes."""

    step_D: NDArray[np.int16]  # query ~ step * scale, so wide that the int32 dot product cannot overflow
    scale: float
    mean_score: float  # q . mean
    scale_error: float  # bound per unit of a row's scale: what the query's rounding can change
    norm: float  # upper bound of ||q||
    slack: float  # float64 rounding of everything else, the final score's own rounding included


class CoarseQuery(NamedTuple):
    """A query as an int8 code, for the product of many queries with many rows."""

    step_D: NDArray[np.int8]
    scale: float
    error: float  # upper bound of ||query - scale * step||


def encode_rows(
    vector_ND: NDArray[np.float32], mean_D: NDArray[np.float32]
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32]]:
    """code int8[N,D], scale float32[N], residual float32[N] of finite vectors, by rounding to nearest.

    The residual is measured against the stored float32 scale, in float64, and rounded up.
    """
    num_rows, dim = vector_ND.shape
    code_ND = np.empty((num_rows, dim), np.int8)
    scale_N = np.empty(num_rows, np.float32)
    residual_N = np.empty(num_rows, np.float32)
    mean = mean_D.astype(np.float64)
    for first in range(0, num_rows, 4096):
        block = slice(first, first + 4096)
        vector = vector_ND[block].astype(np.float64)
        centred = vector - mean
        scale = (np.abs(centred).max(axis=1, initial=0.0) / CODE_MAX).astype(np.float32)
        wide = scale.astype(np.float64)[:, None]
        safe = np.where(wide > 0, wide, 1.0)
        code = np.clip(np.rint(centred / safe), -CODE_MAX, CODE_MAX)
        rest = centred - wide * code
        size = np.abs(vector).sum(axis=1) + np.abs(mean).sum()
        bound = np.sqrt(np.einsum("nd,nd->n", rest, rest)) * (1 + 1e-9) + size * 2.0**-50
        code_ND[block] = code
        scale_N[block] = scale
        residual_N[block] = np.nextafter(bound.astype(np.float32), np.float32(np.inf))
    return code_ND, scale_N, residual_N


def encode_query(query_D: NDArray[np.float32], mean_D: NDArray[np.float32]) -> QueryCode:
    """Quantise a finite query to at most 16 bits a dimension, and bound what that loses."""
    query = query_D.astype(np.float64)
    dim = query.size
    steps = min(2**15 - 1, _INT32_MAX // (CODE_MAX * max(dim, 1)))
    scale = float(np.abs(query).max(initial=0.0)) / steps
    step = np.clip(np.rint(query / scale), -steps, steps) if scale > 0 else np.zeros(dim)
    lost = np.abs(query - step * scale).sum()
    mean = mean_D.astype(np.float64)
    spread = float(np.abs(query) @ np.abs(mean))
    norm = float(np.sqrt(query @ query)) * (1 + 1e-9)
    scale_error = CODE_MAX * float(lost * (1 + 1e-9) + np.abs(query).sum() * 2.0**-44)
    # mean_score is one long sum, so its slack grows with the number of terms.
    return QueryCode(
        step.astype(np.int16), scale, float(query @ mean), scale_error, norm, spread * (dim + 16) * 2.0**-52
    )


def encode_query_coarsely(query_D: NDArray[np.float32]) -> CoarseQuery:
    """Quantise a finite query to 8 bits a dimension.

    A row's score changes by at most error * scale_i * ||code_i|| (Cauchy-Schwarz), beside what `encode_query` bounds.
    """
    query = query_D.astype(np.float64)
    scale = float(np.abs(query).max(initial=0.0)) / CODE_MAX
    step = np.clip(np.rint(query / scale), -CODE_MAX, CODE_MAX) if scale > 0 else np.zeros(query.size)
    lost = query - step * scale
    error = float(np.sqrt(lost @ lost)) * (1 + 1e-9) + float(np.abs(query).sum()) * 2.0**-50
    return CoarseQuery(step.astype(np.int8), scale, error)
