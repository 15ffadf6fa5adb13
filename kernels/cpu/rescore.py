"""Full-precision scores of candidates and the best k of them, compiled.

# N = rows, D = dimensions, C = candidates, K = results
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.cpu.compile import compiled
from kernels.cpu.exact_dot import exact_dot


@compiled
def _is_worse(score: float, key: int, other_score: float, other_key: int) -> bool:
    return score < other_score or (score == other_score and key > other_key)


@compiled
def rescore(
    vector_ND: NDArray[np.float32],
    key_N: NDArray[np.int64],
    query_D: NDArray[np.float64],
    row_C: NDArray[np.int64],
    upper_C: NDArray[np.float64],
    best_row_K: NDArray[np.int64],
    best_score_K: NDArray[np.float64],
) -> tuple[int, int]:
    """The k best of the candidates, as a heap with the worst on top; returns (number found, number rescored).

    upper_C: descending. A row below the k-th score is out, and so is every later one; an equal one still counts,
    its key may be lower.
    """
    size = best_row_K.shape[0]
    found = 0
    for index in range(row_C.shape[0]):
        if found == size and upper_C[index] < best_score_K[0]:
            return found, index
        row = row_C[index]
        key = key_N[row]
        score = exact_dot(vector_ND, row, query_D)
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
