"""Exact filtered top-k in plain Python and numpy: the definition of correct. Reads no codes where there are vectors."""

# N = rows, D = dimensions, W = mask words, K = results

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from kernels.codes import Codes, decode_steps, encode_query, rotate_query
from kernels.filtered_topk import TopK


def filtered_topk(
    query_D: NDArray[np.float32],
    vector_ND: NDArray[np.float32],
    codes: Codes,
    key_N: NDArray[np.int64],
    mask_W: NDArray[np.uint64],
    k: int,
    bonus_M: NDArray[np.float64],
) -> TopK:
    """Score every admitted row, sort by (score descending, key ascending), take k."""
    rows = list_rows(mask_W)
    query = query_D.astype(np.float64)
    if len(vector_ND):
        # A product of two float32 is exact in float64; fsum rounds their exact sum once.
        scores = np.array([math.fsum(query * vector_ND[row].astype(np.float64)) for row in rows], np.float64)
    else:
        scores = _score_codes(query_D, codes, rows)
    if bonus_M.size:
        scores = scores + bonus_M
    best = np.lexsort((key_N[rows], -scores))[:k]
    return TopK(rows[best], scores[best], 0, rows.size)


def list_rows(mask_W: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The rows whose bit is set, ascending."""
    bits = np.unpackbits(mask_W.astype("<u8").view(np.uint8), bitorder="little")
    return np.flatnonzero(bits).astype(np.int64)


def _score_codes(query_D: NDArray[np.float32], codes: Codes, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    dim = query_D.size
    code_MD, rotated_D = decode_steps(codes, rows), rotate_query(query_D, codes.rotation_DD)
    total_M = np.zeros(rows.size)
    for dimension in range(dim):
        total_M += float(rotated_D[dimension]) * code_MD[:, dimension]
    scores: NDArray[np.float64] = (
        encode_query(query_D, codes.mean_D).mean_score + codes.scale_N[rows].astype(np.float64) * total_M
    )
    return scores
