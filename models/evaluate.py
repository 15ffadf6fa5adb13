"""Metrics, as pure functions of arrays.

A ranking metric takes the relevance of one member's ranked list and answers for that member; `bootstrap_mean` puts
an interval around the mean over members.
"""

# n = examples, k = cut-off, U = members, R = resamples

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Interval(NamedTuple):
    """A mean and its percentile interval."""

    mean: float
    low: float
    high: float


def recall_at(relevant: NDArray[np.bool_], num_relevant: int, k: int) -> float:
    """Return the share of a member's relevant items among the first k; nan when nothing is relevant.

    relevant: bool[n], best ranked first.  num_relevant: all of the member's relevant items, ranked or not.
    """
    _check_cut(k)
    return float(relevant[:k].sum() / num_relevant) if num_relevant else float("nan")


def dcg_at(relevant: NDArray[np.bool_], k: int) -> float:
    """Return sum over the first k of relevance / log2(1 + position), positions from 1."""
    _check_cut(k)
    gains = relevant[:k].astype(np.float64)
    return float((gains / np.log2(np.arange(2, len(gains) + 2))).sum())


def ndcg_at(relevant: NDArray[np.bool_], num_relevant: int, k: int) -> float:
    """Return DCG over that of a list with every relevant item in front; nan when nothing is relevant."""
    ideal = dcg_at(np.ones(min(num_relevant, k), dtype=np.bool_), k)
    return dcg_at(relevant, k) / ideal if num_relevant else float("nan")


def auc(scores: NDArray[np.floating], labels: NDArray[np.bool_]) -> float:
    """Return the chance that a positive scores above a negative, ties half; nan with one kind of label only."""
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2.0
    rank_sum = mean_rank[inverse][labels].sum()
    return float((rank_sum - positives * (positives + 1) / 2.0) / (positives * negatives))


def auc_per_user(
    scores: NDArray[np.floating], labels: NDArray[np.bool_], user_keys: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return f64[U]: each member's AUC, members in order of key; nan for one with one kind of label only."""
    order = np.argsort(user_keys, kind="stable")
    starts = np.flatnonzero(np.diff(user_keys[order])) + 1
    return np.array([auc(scores[rows], labels[rows]) for rows in np.split(order, starts) if len(rows)])


def log_loss(probabilities: NDArray[np.floating], labels: NDArray[np.bool_]) -> float:
    """Return the mean negative log likelihood, in nats; probabilities are held 1e-12 from 0 and 1."""
    clipped = np.clip(probabilities.astype(np.float64), 1e-12, 1.0 - 1e-12)
    return float(-np.where(labels, np.log(clipped), np.log1p(-clipped)).mean())


def expected_calibration_error(
    probabilities: NDArray[np.floating], labels: NDArray[np.bool_], num_bins: int = 15
) -> float:
    """Return the mean over examples of |mean probability - rate of their bin|, bins of equal size by probability."""
    if not len(labels):
        return float("nan")
    bins = np.array_split(np.argsort(probabilities, kind="stable"), min(num_bins, len(labels)))
    gaps = [len(rows) * abs(float(probabilities[rows].mean()) - float(labels[rows].mean())) for rows in bins]
    return float(sum(gaps) / len(labels))


def bootstrap_mean(
    values: NDArray[np.float64],
    *,
    clusters: NDArray[np.int64] | None = None,
    num_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return the mean of `values` with its percentile bootstrap interval; nan values are left out.

    clusters: who a value belongs to, when one member has several; members are drawn, with all their values.
    Pass differences of two systems on the same members for a paired interval.

    Raises ValueError for fewer than 1000 resamples: the ends of the interval would be noise.
    """
    if num_resamples < 1000:
        raise ValueError(f"num_resamples is {num_resamples}; expected at least 1000")
    kept = ~np.isnan(values)
    values = values[kept]
    if not len(values):
        return Interval(float("nan"), float("nan"), float("nan"))
    if clusters is None:
        groups = np.arange(len(values))
    else:
        _, groups = np.unique(clusters[kept], return_inverse=True)
    sums, sizes = np.bincount(groups, weights=values), np.bincount(groups)
    drawn_RU = np.random.default_rng(seed).integers(0, len(sums), size=(num_resamples, len(sums)))
    means = sums[drawn_RU].sum(axis=1) / sizes[drawn_RU].sum(axis=1)
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(means, [tail, 100.0 - tail])
    return Interval(float(values.mean()), float(low), float(high))


def _check_cut(k: int) -> None:
    if k < 1:
        raise ValueError(f"k is {k}; expected at least 1")
