"""What another policy would have earned, from a log of what was shown with which probability.

A row is one shown place: its reward, the probability with which the logging policy put that item there, and that with
which the policy in question would have. Estimates are per row; for slates, rows of one place are an item-position
model's (Li et al., KDD 2018), so the mean over rows times the places of a page is the value of a page.

None of them can say anything of what the logging policy could not show: a log of a deterministic policy (propensity 1
everywhere, or none logged) identifies no other policy, and `Weights` tells how far the log reaches.
"""

# N = logged rows

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.evaluate import Interval


class Weights(NamedTuple):
    """Importance weights target / propensity, and whether they can be trusted."""

    values_N: NDArray[np.float64]
    mean: float
    """1 in expectation where the log supports the target; far from it, the log does not, or propensities are wrong."""
    effective_size: float
    """(sum w)^2 / sum w^2 (Kish): so many rows of the target's own log would be worth as much."""
    clipped: float
    """Share of rows whose weight was cut."""


def weigh(targets_N: NDArray[np.floating], propensities_N: NDArray[np.floating], max_weight: float = np.inf) -> Weights:
    """Return the weights of N rows, at most `max_weight` each.

    Raises ValueError for a probability outside [0, 1], and a propensity of 0 or without a value: such a row was not
    randomised, or its propensity was not logged.
    """
    targets_N, propensities_N = targets_N.astype(np.float64), propensities_N.astype(np.float64)
    if targets_N.shape != propensities_N.shape or targets_N.ndim != 1:
        raise ValueError(f"{targets_N.shape} targets for {propensities_N.shape} propensities")
    if not len(targets_N):
        raise ValueError("no rows to weigh")
    wrong = ~((propensities_N > 0.0) & (propensities_N <= 1.0))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(f"propensity of row {row} is {propensities_N[row]}; expected above 0, up to 1")
    wrong = ~((targets_N >= 0.0) & (targets_N <= 1.0))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(f"target of row {row} is {targets_N[row]}; expected 0 to 1")
    raw_N = targets_N / propensities_N
    values_N = np.minimum(raw_N, max_weight)
    squares = float((values_N**2).sum())
    effective = float(values_N.sum()) ** 2 / squares if squares else 0.0
    return Weights(values_N, float(values_N.mean()), effective, float((raw_N > max_weight).mean()))


def ips(
    rewards_N: NDArray[np.floating],
    weights_N: NDArray[np.float64],
    *,
    clusters: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> Interval:
    """Inverse propensity scores: mean of w r. Unbiased where propensities are right and no weight was clipped."""
    return _ratio(weights_N * rewards_N, np.ones(len(weights_N)), clusters, seed)


def snips(
    rewards_N: NDArray[np.floating],
    weights_N: NDArray[np.float64],
    *,
    clusters: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> Interval:
    """Self-normalised: sum w r / sum w (Swaminathan and Joachims 2015). Biased by order 1/N, and steadier: a constant
    reward comes out exactly, and it stays within the rewards' range."""
    return _ratio(weights_N * rewards_N, weights_N, clusters, seed)


def doubly_robust(
    rewards_N: NDArray[np.floating],
    weights_N: NDArray[np.float64],
    predicted_N: NDArray[np.floating],
    expected_N: NDArray[np.floating],
    *,
    clusters: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> Interval:
    """Mean of expected + w (r - predicted) (Dudik et al. 2011): right if the propensities or the model are.

    predicted_N: a reward model's value of what was shown.  expected_N: its mean over what the target would show.
    The model must not have been fitted on these rows.
    """
    return _ratio(expected_N + weights_N * (rewards_N - predicted_N), np.ones(len(weights_N)), clusters, seed)


class Matched(NamedTuple):
    """What the rows earned on which two rankings agree about the first item."""

    rate: Interval
    """Mean reward of those rows; resampled from all rows, so that how many agree varies too. With few rewards among
    them it says little, and with none its interval is 0 to 0 whatever the truth."""
    num_matched: int
    num_rewards: float


def matched_first(
    rewards_N: NDArray[np.floating],
    shown_N: NDArray[np.int64],
    first_N: NDArray[np.int64],
    propensities_N: NDArray[np.floating],
    *,
    clusters: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> Matched:
    """Matched first impressions: the mean reward of the rows that showed what another ranking puts first.

    LiRank (arXiv 2402.06859), "matched imp@1", over a log whose first items are shuffled evenly; Li et al. 2011 show
    that it is right for such a log. It is the self-normalised estimate of a policy that is certain: for one that draws,
    `snips` with its probabilities is the mean of this over its draws.

    shown_N: the item of each row.  first_N: what the other ranking would have put there.

    Raises ValueError where the log is not even: there the rows that match would not be drawn alike.
    """
    if not len(rewards_N) == len(shown_N) == len(first_N) == len(propensities_N):
        raise ValueError(
            f"{len(rewards_N)} rewards, {len(shown_N)} shown, {len(first_N)} first items, {len(propensities_N)} "
            "propensities; expected one of each per row"
        )
    low, high = (float(propensities_N.min()), float(propensities_N.max())) if len(propensities_N) else (1.0, 1.0)
    if not low * (1.0 + 1e-6) >= high:
        raise ValueError(f"propensities are {low:g} to {high:g}; expected a log that shows every item alike")
    same_N = (shown_N == first_N).astype(np.float64)
    rate = _ratio(same_N * rewards_N, same_N, clusters, seed)
    return Matched(rate, int(same_N.sum()), float((same_N * rewards_N).sum()))


def _ratio(
    above_N: NDArray[np.floating],
    below_N: NDArray[np.floating],
    clusters: NDArray[np.int64] | None,
    seed: int,
    num_resamples: int = 2000,
) -> Interval:
    """sum(above) / sum(below) with its 95 % percentile bootstrap interval over clusters (or rows)."""
    if above_N.shape != below_N.shape or not len(above_N):
        raise ValueError(f"{above_N.shape} rewards for {below_N.shape} weights; expected one of each per row")
    _, groups = (None, np.arange(len(above_N))) if clusters is None else np.unique(clusters, return_inverse=True)
    above, below = np.bincount(groups, weights=above_N), np.bincount(groups, weights=below_N)
    random = np.random.default_rng(seed)
    means = np.empty(num_resamples)
    for resample in range(num_resamples):
        drawn = random.integers(0, len(above), len(above))
        with np.errstate(invalid="ignore", divide="ignore"):
            means[resample] = above[drawn].sum() / below[drawn].sum()
    low, high = np.nanpercentile(means, [2.5, 97.5]) if np.isfinite(means).any() else (np.nan, np.nan)
    total = float(below.sum())
    return Interval(float(above.sum()) / total if total else float("nan"), float(low), float(high))
