"""Weights that some items get on top of their inner product: learned links, or any rule that a filter can say.

    score_i = q . vector_i + sum of the weights of the boosts whose filter admits i

The boosted items are scanned apart, with their weights inside the scan's bounds, and merged with the best of the
others, so that both parts stay certified: a weight of any size cannot push an item past a cut that ignored it.
"""

# M = boosted rows, K = results, W = mask words

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.bits import Words, list_bits
from index.tree import Filter
from kernels.filtered_topk import TopK


@dataclass(frozen=True, slots=True)
class Boost:
    """A weight for the items that a filter admits; may be negative."""

    filter: Filter
    weight: float

    def __post_init__(self) -> None:
        if not np.isfinite(self.weight):
            raise ValueError(f"boost weight {self.weight!r}, expected a finite number")


def add_weights(mask_W: Words, boosted: Sequence[tuple[Words, float]]) -> NDArray[np.float64]:
    """float64[M]: the sums of weights of the rows of a mask, ascending; weights are added in the boosts' order."""
    rows = list_bits(mask_W)
    total_M = np.zeros(rows.size)
    for words, weight in boosted:
        admitted = (words[rows >> 6] >> (rows & 63).astype(np.uint64)) & np.uint64(1)
        total_M += np.where(admitted != 0, weight, 0.0)
    return total_M


def merge(one: TopK | None, other: TopK, key_N: NDArray[np.int64], k: int) -> TopK:
    """The k best of both, best first, ties to the lower key."""
    if one is None:
        return other
    row_M = np.concatenate([one.row_K, other.row_K])
    score_M = np.concatenate([one.score_K, other.score_K])
    order = np.lexsort((key_N[row_M], -score_M))[:k]
    scanned, rescored = one.num_scanned + other.num_scanned, one.num_rescored + other.num_rescored
    return TopK(row_M[order], score_M[order], scanned, rescored)
