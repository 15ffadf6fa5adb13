"""Metrics, as pure functions of arrays.

A ranking metric takes the relevance of one member's ranked list and answers for that member; `bootstrap_mean` puts
an interval around the mean over members.
"""

# n = examples, k = cut-off, U = members, R = resamples, b = bins

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Interval(NamedTuple):
    """A mean and its percentile interval."""

    mean: float
    low: float
    high: float


class Reliability(NamedTuple):
    """Predicted against observed, by bins of equal size in order of probability."""

    predicted: NDArray[np.float64]
    """f64[b]: mean probability."""
    observed: NDArray[np.float64]
    """f64[b]: share of positives."""
    sizes: NDArray[np.int64]


Statistic = Callable[[NDArray[np.float64]], float]
"""A metric of fixed examples as a function of their weights f64[n]: what `bootstrap` resamples."""


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


def normalised_entropy(probabilities: NDArray[np.floating], labels: NDArray[np.bool_]) -> float:
    """Return the log loss over that of always answering the labels' own rate; nan with one kind of label only.

    He et al. 2014, "Practical Lessons from Predicting Clicks on Ads at Facebook", section 3. Below 1 is of use.
    """
    rate = float(labels.mean()) if len(labels) else float("nan")
    entropy = log_loss(np.full(len(labels), rate), labels) if 0.0 < rate < 1.0 else float("nan")
    return log_loss(probabilities, labels) / entropy


def observed_over_expected(probabilities: NDArray[np.floating], labels: NDArray[np.bool_]) -> float:
    """Return positives over the sum of the probabilities; nan where that sum is 0."""
    expected = float(probabilities.astype(np.float64).sum())
    return float(labels.sum()) / expected if expected else float("nan")


def reliability(probabilities: NDArray[np.floating], labels: NDArray[np.bool_], num_bins: int = 15) -> Reliability:
    """Return mean probability, rate and size of up to `num_bins` bins of equal size by probability."""
    bins = np.array_split(np.argsort(probabilities, kind="stable"), max(1, min(num_bins, len(labels))))
    bins = [rows for rows in bins if len(rows)]
    return Reliability(
        np.array([float(probabilities[rows].mean()) for rows in bins]),
        np.array([float(labels[rows].mean()) for rows in bins]),
        np.array([len(rows) for rows in bins], dtype=np.int64),
    )


def expected_calibration_error(
    probabilities: NDArray[np.floating], labels: NDArray[np.bool_], num_bins: int = 15
) -> float:
    """Return the mean over examples of |mean probability - rate of their bin|, bins as of `reliability`."""
    if not len(labels):
        return float("nan")
    predicted, observed, sizes = reliability(probabilities, labels, num_bins)
    return float((sizes * np.abs(predicted - observed)).sum() / len(labels))


def auc_statistic(scores: NDArray[np.floating], labels: NDArray[np.bool_]) -> Statistic:
    """Return `auc` as a function of weights; all of 1 give `auc` itself."""
    order = np.argsort(scores, kind="stable")
    ordered, positive = scores[order], labels[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])) if len(ordered) else np.zeros(0, np.int64)

    def statistic(weights: NDArray[np.float64]) -> float:
        if not len(starts):
            return float("nan")
        drawn = weights[order]
        positives = np.add.reduceat(drawn * positive, starts)
        negatives = np.add.reduceat(drawn * ~positive, starts)
        pairs = positives.sum() * negatives.sum()
        won = (positives * (np.cumsum(negatives) - 0.5 * negatives)).sum()
        return float(won / pairs) if pairs else float("nan")

    return statistic


def grouped_auc_statistic(
    scores: NDArray[np.floating], labels: NDArray[np.bool_], user_keys: NDArray[np.int64]
) -> Statistic:
    """Return the mean of the members' AUCs, weighted by their examples, as a function of weights.

    Members with one kind of label only are left out. A member's examples must have one weight, as in `bootstrap`.
    """
    values = auc_per_user(scores, labels, user_keys)
    _, first, sizes = np.unique(user_keys, return_index=True, return_counts=True)
    kept = ~np.isnan(values)
    values, first, sizes = values[kept], first[kept], sizes[kept]

    def statistic(weights: NDArray[np.float64]) -> float:
        shares = weights[first] * sizes
        return float((shares * values).sum() / shares.sum()) if shares.sum() else float("nan")

    return statistic


def log_loss_statistic(probabilities: NDArray[np.floating], labels: NDArray[np.bool_]) -> Statistic:
    """Return `log_loss` as a function of weights."""
    clipped = np.clip(probabilities.astype(np.float64), 1e-12, 1.0 - 1e-12)
    losses = -np.where(labels, np.log(clipped), np.log1p(-clipped))
    return lambda weights: float((weights * losses).sum() / weights.sum())


def bootstrap(
    statistic: Statistic,
    user_keys: NDArray[np.int64],
    *,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return a metric with its percentile interval over resamples of members, each with all of its examples.

    user_keys: int64[n].  The same seed draws the same members, so that a statistic that subtracts one system's metric
    from another's on the same examples has a paired interval.

    Raises ValueError for fewer than 1000 resamples: the ends of the interval would be noise.
    """
    if num_resamples < 1000:
        raise ValueError(f"num_resamples is {num_resamples}; expected at least 1000")
    users, groups = np.unique(user_keys, return_inverse=True)
    random = np.random.default_rng(seed)
    drawn = np.empty(num_resamples)
    for resample in range(num_resamples):
        times = np.bincount(random.integers(0, len(users), size=len(users)), minlength=len(users)).astype(np.float64)
        drawn[resample] = statistic(times[groups])
    drawn = drawn[~np.isnan(drawn)]  # a resample may lack one kind of label
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(drawn, [tail, 100.0 - tail]) if len(drawn) else (float("nan"), float("nan"))
    return Interval(statistic(np.ones(len(user_keys))), float(low), float(high))


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
