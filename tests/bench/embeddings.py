"""Vectors to search: clustered ones like learned embeddings, and those that break careless scoring; the answers."""

# N = rows, B = queries, D = dimensions

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NUM_CLUSTERS = 2000


def clustered(rng: np.random.Generator, num_rows: int, dim: int) -> NDArray[np.float32]:
    """Unit vectors around cluster centres that share a direction, as two-tower embeddings do."""
    centres = rng.standard_normal((NUM_CLUSTERS, dim), np.float32) + 0.3
    vector_ND = np.empty((num_rows, dim), np.float32)
    for first in range(0, num_rows, 100_000):
        block = vector_ND[first : first + 100_000]
        rng.standard_normal(out=block, dtype=np.float32)
        block += centres[rng.integers(NUM_CLUSTERS, size=len(block))]
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return vector_ND


def near(rng: np.random.Generator, vector_ND: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Queries beside rows of the catalogue."""
    chosen = vector_ND[rng.integers(len(vector_ND), size=count)]
    query_BD = chosen + 0.05 * rng.standard_normal(chosen.shape, np.float32)
    return (query_BD / np.linalg.norm(query_BD, axis=1, keepdims=True)).astype(np.float32)


def adversarial(rng: np.random.Generator, num_rows: int, dim: int) -> dict[str, NDArray[np.float32]]:
    """Catalogues by what is hard about them."""
    plain = rng.standard_normal((num_rows, dim), np.float32)
    hot = plain.copy()
    hot[:, 3] *= 1e4
    zeros = plain.copy()
    zeros[rng.random(num_rows) < 0.9] = 0.0
    return {
        "duplicates": plain[rng.integers(num_rows // 50, size=num_rows)],
        "ties": rng.integers(-1, 2, (num_rows, dim)).astype(np.float32),
        "zero vectors": zeros,
        "one hot dimension": hot,
        "shared mean": plain * 1e-3 + 100.0,
        "denormals": (plain * 1e-42).astype(np.float32),
    }


def score_all(vector_ND: NDArray[np.float32], query_BD: NDArray[np.float32]) -> NDArray[np.float64]:
    """float64[B,N]: products of float32 values are exact in it, only their sum rounds."""
    score_BN = np.empty((len(query_BD), len(vector_ND)))
    query_DB = query_BD.astype(np.float64).T
    for first in range(0, len(vector_ND), 50_000):
        score_BN[:, first : first + 50_000] = (vector_ND[first : first + 50_000].astype(np.float64) @ query_DB).T
    return score_BN


def recall(rows: NDArray[np.int64], score_N: NDArray[np.float64], k: int, slack: float = 0.0) -> float:
    """The share of the k best that was found; a row that ties with the k-th is as good as it.

    rows: what was answered, -1 where nothing was.  score_N: -inf for rows that must not be answered.  slack: what
    the sums in score_N may be off by.
    """
    wanted = min(k, int((score_N > -np.inf).sum()))
    if wanted == 0:
        return 1.0
    least = np.partition(score_N, -wanted)[-wanted]
    found = np.unique(rows[rows >= 0])
    return float((score_N[found] >= least - slack).sum()) / wanted
