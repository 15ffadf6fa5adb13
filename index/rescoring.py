"""Two passes: the index finds the best M by inner product, a learned similarity orders them again."""

# B = queries, M = items of each query, K = results, Q = query features, X = item features

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from index.checks import check_k, check_queries
from index.hits import Hits
from index.searchable import Searchable
from index.tree import Filter


class Rescorer(Protocol):
    """Scores float32[B,M] of query features float32[B,Q] with the item features float32[B,M,X] of each query."""

    def __call__(self, query_BQ: Tensor, item_BMX: Tensor, /) -> Tensor: ...


ItemFeatures = Callable[[NDArray[np.int64]], NDArray[np.float32]]  # keys int64[M] -> float32[M,X]


def search_rescored(
    index: Searchable,
    rescorer: Rescorer,
    query: ArrayLike,
    k: int,
    *,
    num_candidates: int,
    query_features: ArrayLike | None = None,
    item_features: ItemFeatures | None = None,
    filter: Filter | None = None,
    exclude: ArrayLike | None = None,
) -> Hits:
    """The k best by the rescorer's score among the num_candidates best by inner product.

    query: float32[D] or [B,D], for the first pass.  query_features: float32[B,Q] for the second (default: the
    query).  item_features: features of keys (default: their vectors in the index; an item that was deleted between
    the passes is left out).  Ties go to the lower key. `exact` says that the first pass kept every match, so that the
    answer is the same as scoring all of them.

    Raises ValueError as `search` does, where num_candidates < k, and where features or scores have another shape.
    """
    query_BD = check_queries(query, index.dim)
    check_k(k)
    if num_candidates < k:
        raise ValueError(f"num_candidates = {num_candidates}, expected at least k = {k}")
    features_BQ = query_BD if query_features is None else np.asarray(query_features, np.float32)
    if features_BQ.ndim != 2 or features_BQ.shape[0] != query_BD.shape[0]:
        raise ValueError(f"query features: shape {list(features_BQ.shape)}, expected [{query_BD.shape[0]}, Q]")
    first = index.search(query_BD, num_candidates, filter, exclude)
    width = max(1, int((first.keys != -1).sum(axis=1).max(initial=0)))
    key_BM = first.keys[:, :width]
    item_BMX, found_BM = _gather(index, item_features, key_BM)
    score_BM = _score(rescorer, features_BQ, item_BMX)
    score_BM[~found_BM] = -np.inf
    return _order(first, key_BM, score_BM, k, num_candidates)


def _gather(
    index: Searchable, item_features: ItemFeatures | None, key_BM: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """float32[B,M,X] and bool[B,M]: the features of the keys, and which places hold an item."""
    place_BM = key_BM != -1
    if item_features is None:
        item_EX, found_E = index.vectors(key_BM.ravel())
        return item_EX.reshape(*key_BM.shape, -1), found_E.reshape(key_BM.shape) & place_BM
    item_SX = np.asarray(item_features(key_BM[place_BM]), np.float32)
    if item_SX.ndim != 2 or item_SX.shape[0] != int(place_BM.sum()):
        raise ValueError(f"item features: shape {list(item_SX.shape)}, expected [{int(place_BM.sum())}, X]")
    item_BMX = np.zeros((*key_BM.shape, item_SX.shape[1]), np.float32)
    item_BMX[place_BM] = item_SX
    return item_BMX, place_BM


def _score(rescorer: Rescorer, features_BQ: NDArray[np.float32], item_BMX: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.inference_mode():
        score_BM = rescorer(torch.from_numpy(features_BQ), torch.from_numpy(item_BMX))
    if score_BM.shape != item_BMX.shape[:2]:
        raise ValueError(f"rescorer: scores {list(score_BM.shape)}, expected {list(item_BMX.shape[:2])}")
    scores: NDArray[np.float32] = score_BM.float().numpy().copy()
    return scores


def _order(first: Hits, key_BM: NDArray[np.int64], score_BM: NDArray[np.float32], k: int, num_candidates: int) -> Hits:
    num_queries = key_BM.shape[0]
    keys = np.full((num_queries, k), -1, np.int64)
    scores = np.full((num_queries, k), -np.inf, np.float32)
    for query in range(num_queries):
        order = np.lexsort((key_BM[query], -score_BM[query]))[:k]
        order = order[score_BM[query, order] > -np.inf]
        keys[query, : order.size] = key_BM[query, order]
        scores[query, : order.size] = score_BM[query, order]
    return Hits(
        keys=keys,
        scores=scores,
        exact=first.exact and first.num_matched <= num_candidates,
        num_matched=first.num_matched,
        num_scanned=first.num_scanned,
        num_rescored=int((key_BM != -1).sum()),
        strategy=f"{first.strategy} + rescoring",
    )
