"""Several query vectors for one request: one search of all heads, merged into one list without doubles.

A head is one interest, task or tower of the same member. The merge is exact: an item among the k best by its best
head's score is among the k best of that head, so the union of the heads' answers holds every item of the merged one.
"""

# H = heads, K = results, D = dimensions

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from index.checks import check_k, check_queries
from index.hits import Hits
from index.searchable import Searchable
from index.tree import Filter


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadHits:
    """The merged answer of all heads, best first."""

    keys: NDArray[np.int64]  # [K]; shorter than k where fewer items match
    scores: NDArray[np.float32]  # [K]; the best head's score
    best_head: NDArray[np.int64]  # [K]; the head that gave that score, the lower one where two did
    found_by: NDArray[np.bool_]  # [K,H]; whether the item is among the k best of the head
    hits: Hits  # what each head found on its own


def search_heads(
    index: Searchable,
    query_HD: ArrayLike,
    k: int,
    *,
    quotas: Sequence[int] | None = None,
    filter: Filter | None = None,
    exclude: ArrayLike | None = None,
) -> HeadHits:
    """The k best items by the maximum of the heads' scores, after each head was given its quota of places.

    quotas: places kept for each head, H numbers whose sum is at most k (default: none). Heads take turns, each
    with its best item that is not taken yet, until its quota is full or it has no more; the rest goes by maximum.
    The list is ordered by score, then by the place in the best head's own list, then by key.

    Raises ValueError as `search` does, and for quotas that are negative, too many, or not one per head.
    """
    queries = check_queries(query_HD, index.dim)
    check_k(k)
    num_heads = queries.shape[0]
    quota_H = [0] * num_heads if quotas is None else [int(each) for each in quotas]
    if len(quota_H) != num_heads or min(quota_H, default=0) < 0 or sum(quota_H) > k:
        raise ValueError(f"quotas {quota_H}: expected {num_heads} numbers from 0 with a sum of at most k = {k}")
    hits = index.search(queries, k, filter, exclude)
    head_E, rank_E = np.nonzero(hits.keys != -1)
    key_E, score_E = hits.keys[head_E, rank_E], hits.scores[head_E, rank_E]
    by_value = np.lexsort((head_E, key_E, rank_E, -score_E))
    unique_U, first_U = np.unique(key_E[by_value], return_index=True)  # the first of a key is its best head's entry
    found_UH = np.zeros((unique_U.size, num_heads), np.bool_)
    found_UH[np.searchsorted(unique_U, key_E), head_E] = True
    order_U = np.argsort(first_U)
    merged_U = unique_U[order_U]
    chosen = _fill_quotas(hits, quota_H)
    chosen.update(merged_U[~np.isin(merged_U, list(chosen))][: k - len(chosen)].tolist())
    kept = order_U[np.isin(merged_U, list(chosen))]
    entry_K = by_value[first_U[kept]]
    keys, scores, best_head = unique_U[kept], score_E[entry_K], head_E[entry_K].astype(np.int64)
    if any(quota_H):
        # A quota can bring in an item whose best head ranks it below its own k best, and so did not list it.
        scores, best_head = _best_heads(index, queries, keys)
        order_K = np.argsort(-scores, kind="stable")
        keys, scores, best_head, kept = keys[order_K], scores[order_K], best_head[order_K], kept[order_K]
    return HeadHits(keys=keys, scores=scores, best_head=best_head, found_by=found_UH[kept], hits=hits)


def _best_heads(
    index: Searchable, queries: NDArray[np.float32], keys: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The best head's score of each key, exact as the index's own, and that head; -inf for a key that is gone."""
    vector_KD, held = index.vectors(keys)
    terms_KHD = vector_KD.astype(np.float64)[:, None, :] * queries.astype(np.float64)
    score_KH = np.array([[math.fsum(terms) for terms in heads] for heads in terms_KHD.tolist()])
    score_KH[~held] = -np.inf
    best_head = np.argmax(score_KH, axis=1)
    with np.errstate(over="ignore"):
        return score_KH[np.arange(len(keys)), best_head].astype(np.float32), best_head.astype(np.int64)


def _fill_quotas(hits: Hits, quotas: Sequence[int]) -> set[int]:
    """The keys that the heads take in turns; k places a head are enough, for fewer than k keys are ever taken."""
    left = list(quotas)
    lists = [iter(row[row != -1].tolist()) for row in hits.keys]
    taken: set[int] = set()
    while any(left):
        for head, candidates in enumerate(lists):
            if left[head] == 0:
                continue
            key = next((each for each in candidates if each not in taken), None)
            if key is None:
                left[head] = 0
                continue
            taken.add(key)
            left[head] -= 1
    return taken
