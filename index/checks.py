"""What callers hand to an index, checked and brought into arrays; every ValueError names the value."""

# B = queries, M = items in one call, D = dimensions

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_RESULTS = 1 << 20


def check_keys(keys: ArrayLike) -> NDArray[np.int64]:
    key_M = np.asarray(keys)
    if key_M.size == 0:
        return np.empty(0, np.int64)
    if key_M.ndim != 1 or key_M.dtype != np.int64:
        raise ValueError(f"keys: {key_M.dtype}{list(key_M.shape)}, expected int64[M]")
    return key_M


def check_k(k: int) -> None:
    if not 1 <= k <= MAX_RESULTS:
        raise ValueError(f"k = {k}, expected 1 to {MAX_RESULTS}")


def check_vectors(key_M: NDArray[np.int64], vectors: ArrayLike, dim: int) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        vector_MD = np.ascontiguousarray(np.asarray(vectors), np.float32)
    if vector_MD.shape != (key_M.size, dim):
        raise ValueError(f"vectors: shape {list(vector_MD.shape)}, expected [{key_M.size}, {dim}]")
    bad = ~np.isfinite(vector_MD).all(axis=1)
    if bad.any():
        raise ValueError(f"vector of key {key_M[bad][0]}: holds nan or inf, expected finite float32 values")
    return vector_MD


def check_queries(query: ArrayLike, dim: int) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        query_BD = np.ascontiguousarray(np.atleast_2d(np.asarray(query)), np.float32)
    if query_BD.ndim != 2 or query_BD.shape[1] != dim:
        raise ValueError(f"query: shape {list(np.shape(query))}, expected [{dim}] or [B, {dim}]")
    if not np.isfinite(query_BD).all():
        raise ValueError("query: holds nan or inf, expected finite float32 values")
    return query_BD


def check_array(
    name: str, arrays: Mapping[str, NDArray[np.generic]], dtype: np.dtype[np.generic], size: int | None
) -> None:
    array = arrays.get(name)
    if array is None or array.ndim != 1 or array.dtype != dtype or size not in (None, array.size):
        found = "nothing" if array is None else f"{array.dtype}{list(array.shape)}"
        raise ValueError(f"array {name!r}: found {found}, expected {dtype}[{'' if size is None else size}]")
