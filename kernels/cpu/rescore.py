"""Final scores of candidates and the best k of them, compiled.

# N = rows, D = dimensions, C = candidates, K = results

A final score is the exact inner product with the stored vector; where no vectors are stored, that of the code:

    mean_score + scale_i * (sum_d q_d * code_id, in float64, in order of d)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.codes import UPPER_MIDDLE, Codes
from kernels.cpu.compile import compiled
from kernels.cpu.exact_dot import exact_dot


@compiled
def score_code(codes: Codes, row: int, query_D: NDArray[np.float64], mean_score: float) -> float:
    """The inner product of a query with what a row's code stands for."""
    width = codes.upper_NP.shape[1]
    fine = codes.lower_NP.shape[0] > 0
    total: float = 0.0
    for dimension in range(query_D.shape[0]):
        place = dimension if dimension < width else dimension - width
        shift = 0 if dimension < width else 4
        upper = np.float64((np.int64(codes.upper_NP[row, place]) >> shift) & 15)
        if fine:
            lower = np.float64((np.int64(codes.lower_NP[row, place]) >> shift) & 15)
            total += query_D[dimension] * (16.0 * upper + lower - 128.0)
        else:
            total += query_D[dimension] * (16.0 * upper - UPPER_MIDDLE)
    return mean_score + np.float64(codes.scale_N[row]) * total


@compiled
def _is_worse(score: float, key: int, other_score: float, other_key: int) -> bool:
    return score < other_score or (score == other_score and key > other_key)


@compiled
def rescore(
    vector_ND: NDArray[np.float32],
    codes: Codes,
    key_N: NDArray[np.int64],
    query_D: NDArray[np.float64],
    mean_score: float,
    row_C: NDArray[np.int64],
    upper_C: NDArray[np.float64],
    bonus_C: NDArray[np.float64],
    best_row_K: NDArray[np.int64],
    best_score_K: NDArray[np.float64],
) -> tuple[int, int]:
    """The k best of the candidates, as a heap with the worst on top; returns (number found, number rescored).

    upper_C: descending. A row below the k-th score is out, and so is every later one; an equal one still counts,
    its key may be lower.  bonus_C: added to the scores; of no candidates where nothing is.
    """
    size = best_row_K.shape[0]
    found = 0
    for index in range(row_C.shape[0]):
        if found == size and upper_C[index] < best_score_K[0]:
            return found, index
        row = row_C[index]
        key = key_N[row]
        if vector_ND.shape[0] > 0:
            score = exact_dot(vector_ND, row, query_D)
        else:
            score = score_code(codes, row, query_D, mean_score)
        if bonus_C.shape[0] > 0:
            score += bonus_C[index]
        if found < size:
            at = found
            found += 1
            while at > 0:  # rise while the parent is better
                parent = (at - 1) // 2
                if not _is_worse(score, key, best_score_K[parent], key_N[best_row_K[parent]]):
                    break
                best_row_K[at] = best_row_K[parent]
                best_score_K[at] = best_score_K[parent]
                at = parent
        else:
            if not _is_worse(best_score_K[0], key_N[best_row_K[0]], score, key):
                continue
            at = 0
            while True:  # sink while a child is worse
                child = 2 * at + 1
                if child >= size:
                    break
                if child + 1 < size and _is_worse(
                    best_score_K[child + 1],
                    key_N[best_row_K[child + 1]],
                    best_score_K[child],
                    key_N[best_row_K[child]],
                ):
                    child += 1
                if not _is_worse(best_score_K[child], key_N[best_row_K[child]], score, key):
                    break
                best_row_K[at] = best_row_K[child]
                best_score_K[at] = best_score_K[child]
                at = child
        best_row_K[at] = row
        best_score_K[at] = score
    return found, row_C.shape[0]
