"""The value function: what orders a slate. Serving and the offline replay share it."""

# n = candidates, T = tasks

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from services.candidates import Candidates


def values_of(
    probabilities_nT: NDArray[np.float32], tasks: Sequence[str], weights: Mapping[str, float]
) -> NDArray[np.float64]:
    """Return f64[n]: the weighted sum of each candidate's calibrated probabilities."""
    weights_T = np.array([weights.get(task, 0.0) for task in tasks])
    values_n: NDArray[np.float64] = probabilities_nT.astype(np.float64) @ weights_T
    return values_n


def order_of(candidates: Candidates, values_n: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the candidates' places, best first: by value, then retrieval score, then the lower key."""
    order: NDArray[np.int64] = np.lexsort((candidates.keys, -candidates.scores, -values_n))
    return order
