"""Items that single queries of one search must not be answered with.

A few are dropped from an answer that is asked for by so many places longer: its first k that are left are exact, and
queries of one filter go on sharing its mask. Many are cleared from a copy of the mask, which is cheaper from there on.
"""

# B = queries, K = results, M = excluded rows of a query, W = mask words

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from index.bits import Words, clear_bits
from index.checks import check_keys
from kernels.filtered_topk import TopK

MAX_DROPPED = 256

NO_ROWS: NDArray[np.int64] = np.empty(0, np.int64)


class Excluded(NamedTuple):
    """Rows that the mask of one query must not admit, or that its answer must be rid of."""

    cleared: NDArray[np.int64] = NO_ROWS
    dropped: NDArray[np.int64] = NO_ROWS


def check_excludes(excludes: Sequence[ArrayLike | None], num_queries: int) -> list[NDArray[np.int64]]:
    """Keys by query; ValueError unless there is one list each."""
    if len(excludes) != num_queries:
        raise ValueError(f"{len(excludes)} excludes for {num_queries} queries: expected one each")
    return [NO_ROWS if each is None else check_keys(each) for each in excludes]


def split_rows(row_M: NDArray[np.int64], sizes: Sequence[int]) -> list[Excluded]:
    """The rows of all queries' keys, one query after the other (-1: not there), as each query's own."""
    if not row_M.size:
        return [Excluded()] * len(sizes)
    split = []
    for rows in np.split(row_M, np.cumsum(sizes)[:-1]):
        rows = np.unique(rows[rows >= 0])
        split.append(Excluded(dropped=rows) if rows.size <= MAX_DROPPED else Excluded(cleared=rows))
    return split


def clear_rows(mask_W: Words, row_M: NDArray[np.int64]) -> Words:
    """The mask without the rows (-1: no row); the mask itself where there are none."""
    rows = row_M[row_M >= 0]
    if rows.size:
        mask_W = mask_W.copy()
        clear_bits(mask_W, rows)
    return mask_W


def count_admitted(mask_W: Words, rows: NDArray[np.int64]) -> int:
    """How many of the rows the mask admits."""
    if not rows.size:
        return 0
    return int(((mask_W[rows >> 6] >> (rows & 63).astype(np.uint64)) & np.uint64(1)).sum())


def drop_rows(best: TopK, rows: NDArray[np.int64], k: int) -> TopK:
    """The first k results that are none of the rows."""
    if rows.size:
        kept = ~np.isin(best.row_K, rows)
        best = best._replace(row_K=best.row_K[kept], score_K=best.score_K[kept])
    return best._replace(row_K=best.row_K[:k], score_K=best.score_K[:k])
