"""Randomised orders, and how likely an item was to stand where it stood.

What is logged is the probability of an item *at its place*, not that of its being on the page at all. A click depends
on the place, so weighting by the place's probability is right wherever a click depends on item and place only (the
item-position model: Li et al., KDD 2018), while the page's probability is right only if the place does not matter.
The price is variance: places far down are less certain, so their probabilities are smaller.
"""

# n = candidates, M = draws, K = places

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def best_rows(values_Mn: NDArray[np.floating], num_places: int) -> NDArray[np.int64]:
    """Return int64[M, K]: the rows of the best values, best first; of equal values the lower row."""
    rows_MK: NDArray[np.int64] = np.argsort(-values_Mn, axis=1, kind="stable")[:, :num_places]
    return rows_MK


def epsilon_greedy_rows(
    order_n: NDArray[np.int64], epsilon: float, num_pages: int, num_places: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """Return int64[M, K]: each place by chance `epsilon` an even draw of what is left, otherwise the best of it.

    order_n: the rows, best first.
    """
    if not 0.0 <= epsilon <= 1.0:
        raise ValueError(f"epsilon is {epsilon}; expected 0 to 1")
    num_places = min(num_places, len(order_n))
    lifted_MK = random.random((num_pages, num_places)) < epsilon
    picks_MK = random.random((num_pages, num_places))
    rows_MK = np.empty((num_pages, num_places), np.int64)
    for page in range(num_pages):
        left = order_n.tolist()
        for place in range(num_places):
            at = int(picks_MK[page, place] * len(left)) if lifted_MK[page, place] else 0
            rows_MK[page, place] = left.pop(at)
    return rows_MK


def propensities(shown_K: NDArray[np.int64], pages_MK: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return f64[K]: the Monte Carlo estimate of P(this row at this place), from M pages drawn beside the shown one.

    (1 + hits) / (1 + M): the shown page is one of the draws, so no estimate is 0 and no weight above 1 + M. With
    hits ~ Bin(M, p) its inverse has the expectation (1 - (1 - p)^(M + 1)) / p, so a weight is right on average but
    for places far less likely than 1 / M, where it is too small.
    """
    if pages_MK.shape[1] < len(shown_K):
        raise ValueError(f"pages of {pages_MK.shape[1]} places for {len(shown_K)} that were shown")
    hits_K = (pages_MK[:, : len(shown_K)] == shown_K).sum(axis=0)
    estimates: NDArray[np.float64] = (1.0 + hits_K) / (1.0 + len(pages_MK))
    return estimates
