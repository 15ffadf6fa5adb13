"""Ratio scoring, the paper's baseline: a link's quality is how many more of its pairs were hires than in general.

    q = log( (hires + 1) / (refusals + 1) )  -  log( hires of all pairs / others of all pairs )

Every candidate that passes the filters is kept, so there are many links that say the same; scores are means, not sums.
"""

# N = pairs, F = candidate links

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.retrieval.links.mining import Counted
from models.retrieval.links.weights import Design


def ratio_weights(counted: Counted) -> NDArray[np.float64]:
    """Return float64[F]: the log of the smoothed ratio of hires to others, over that of all pairs."""
    num_hires = int(counted.hired.sum())
    odds = num_hires / max(1, len(counted.hired) - num_hires)
    return np.asarray(np.log((counted.hires + 1.0) / (counted.refusals + 1.0)) - np.log(odds))


def score_pairs(design: Design, weights: NDArray[np.float64], kept: NDArray[np.bool_], how: str) -> NDArray[np.float64]:
    """Return float64[N]: the score of each pair over the kept links that hold of it; 0 where none does.

    how: "sum", "mean" or "max" of their weights.
    """
    part = design.take(np.flatnonzero(kept))
    weights = weights[kept]
    if how == "max":
        best = np.zeros(part.num_rows)
        np.maximum.at(best, part.rows, weights[part.links])
        return best
    total = part.times(weights)
    if how == "sum":
        return total
    if how == "mean":
        return np.asarray(total / np.maximum(1, np.bincount(part.rows, minlength=part.num_rows)))
    raise ValueError(f"how is {how!r}; expected sum, mean or max")
