"""Weights of links: logistic regression with an L1 penalty over which links hold of which pairs.

    minimise  mean over pairs of log(1 + exp(-y (x.w + b)))  +  l1 * sum_j penalty_j |w_j|        (b is free)

by accelerated proximal gradient steps (FISTA, Beck and Teboulle 2009, with the restart of O'Donoghue and Candes 2015)
on columns scaled to length 1, over a growing set of the columns that can be other than 0.
"""

# N = pairs, F = links

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.retrieval.links.candidates import Entries

_MAX_STEPS = 4000


class Design:
    """A matrix of zeros and ones, N by F, by the places of its ones."""

    def __init__(self, entries: Entries, num_rows: int, num_links: int) -> None:
        self.rows, self.links = entries.rows, entries.links
        self.num_rows, self.num_links = num_rows, num_links

    def times(self, weights_F: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return float64[N]."""
        return np.bincount(self.rows, weights_F[self.links], self.num_rows).astype(np.float64)

    def transposed_times(self, values_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return float64[F]."""
        return np.bincount(self.links, values_N[self.rows], self.num_links).astype(np.float64)

    def counts(self) -> NDArray[np.int64]:
        """Return int64[F]: the ones of each column."""
        return np.bincount(self.links, minlength=self.num_links)

    def take(self, links: NDArray[np.int64]) -> Design:
        """Return the columns `links` alone, renumbered in that order."""
        places = np.full(self.num_links, -1, np.int64)
        places[links] = np.arange(len(links))
        kept = places[self.links] >= 0
        return Design(Entries(self.rows[kept], places[self.links[kept]]), self.num_rows, len(links))

    def take_rows(self, chosen_N: NDArray[np.bool_]) -> Design:
        """Return some of the rows, renumbered."""
        places = np.cumsum(chosen_N) - 1
        kept = chosen_N[self.rows]
        return Design(Entries(places[self.rows[kept]], self.links[kept]), int(chosen_N.sum()), self.num_links)


@dataclass(frozen=True, slots=True)
class Fit:
    weights: NDArray[np.float64]
    """float64[F]."""
    intercept: float
    violation: float
    """How far the solution is from the conditions of the optimum: the largest surplus of a gradient over `l1`."""
    num_steps: int


def largest_l1(design: Design, labels: NDArray[np.bool_], penalties: NDArray[np.float64]) -> float:
    """Return the smallest l1 with which every weight is 0."""
    residual = labels.mean() - labels
    return float((np.abs(design.transposed_times(residual)) / penalties).max(initial=0.0) / max(1, len(labels)))


def fit_l1(
    design: Design,
    labels: NDArray[np.bool_],
    penalties: NDArray[np.float64],
    l1: float,
    *,
    non_negative: bool,
    start: Fit | None = None,
    tolerance: float = 1e-3,
) -> Fit:
    """Return the weights. The same input gives the same ones.

    non_negative: weights below 0 are not allowed.  start: a solution nearby.
    tolerance: largest allowed violation, relative to l1.

    Raises ValueError where all labels are alike, or the steps do not reach the tolerance.
    """
    num_rows, num_links = design.num_rows, design.num_links
    if not 0 < labels.sum() < num_rows:
        raise ValueError(
            f"{int(labels.sum())} of {num_rows} pairs are hires; expected some that are and some that are not"
        )
    weights = np.zeros(num_links) if start is None else start.weights.copy()
    intercept = float(np.log(labels.mean() / (1 - labels.mean()))) if start is None else start.intercept
    active = np.flatnonzero(weights)
    steps, surplus, worst = 0, np.zeros(num_links), np.inf
    for _ in range(50):
        residual = _residual(design.times(weights) + intercept, labels)
        surplus = _surplus(design.transposed_times(residual) / num_rows, weights, l1 * penalties, non_negative)
        worst = max(
            float((surplus / penalties).max(initial=0.0)), float(abs(residual.mean()) / penalties.min(initial=1.0))
        )
        new = np.setdiff1d(np.flatnonzero(surplus > 0.5 * tolerance * l1 * penalties), active)
        if worst <= tolerance * l1:
            return Fit(weights, intercept, worst, steps)
        active = np.union1d(active, new)
        part = design.take(active)
        inner, intercept, taken = _descend(
            part, labels, l1 * penalties[active], weights[active], intercept, non_negative, 0.3 * tolerance
        )
        steps += taken
        weights = np.zeros(num_links)
        weights[active] = inner
        active = np.flatnonzero(weights)
    raise ValueError(
        f"the weights of {num_links} links are {worst:.3g} from the optimum after {steps} steps; "
        f"expected at most {tolerance * l1:.3g}"
    )


def _descend(
    design: Design,
    labels: NDArray[np.bool_],
    penalty: NDArray[np.float64],
    weights: NDArray[np.float64],
    intercept: float,
    non_negative: bool,
    tolerance: float,
) -> tuple[NDArray[np.float64], float, int]:
    """Minimise over all columns of a small design; return weights, intercept and steps taken.

    tolerance: relative to each column's penalty; to the smallest one for the intercept.
    """
    num_rows = design.num_rows
    allowed = tolerance * np.append(penalty, penalty.min(initial=np.inf) if len(penalty) else 1e-6)
    scale = np.append(1.0 / np.sqrt(np.maximum(1, design.counts())), 1.0 / np.sqrt(num_rows))
    penalty = np.append(penalty, 0.0) * scale * num_rows
    step = 4.0 / _largest_eigenvalue(design, scale)
    point = np.append(weights, intercept) / scale
    ahead, momentum = point.copy(), 1.0
    taken = 0
    while taken < _MAX_STEPS:
        taken += 1
        scaled = ahead * scale
        residual = _residual(design.times(scaled[:-1]) + scaled[-1], labels)
        gradient = np.append(design.transposed_times(residual), residual.sum()) * scale
        moved = ahead - step * gradient
        following = np.sign(moved) * np.maximum(np.abs(moved) - step * penalty, 0.0)
        if non_negative:
            following[:-1] = np.maximum(following[:-1], 0.0)
        change = following - point
        if (np.abs((following - ahead) / (scale * step)) <= num_rows * allowed).all():
            point = following
            break
        if np.dot(ahead - following, change) > 0:
            momentum, ahead = 1.0, following.copy()
        else:
            after = (1.0 + np.sqrt(1.0 + 4.0 * momentum**2)) / 2.0
            ahead = following + (momentum - 1.0) / after * change
            momentum = after
        point = following
    result = point * scale
    return result[:-1], float(result[-1]), taken


def _largest_eigenvalue(design: Design, scale: NDArray[np.float64]) -> float:
    """Return an upper guess of the largest eigenvalue of the scaled design's Gram matrix, intercept included."""
    vector = np.append(np.sqrt(design.counts().astype(np.float64)), np.sqrt(design.num_rows))
    value = 1.0
    for _ in range(30):
        vector = vector / np.linalg.norm(vector)
        image = design.times(vector[:-1] * scale[:-1]) + vector[-1] * scale[-1]
        vector = np.append(design.transposed_times(image), image.sum()) * scale
        value = float(np.linalg.norm(vector))
    return 1.05 * value


def _residual(logits: NDArray[np.float64], labels: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(logits, -500, 500))) - labels)


def _surplus(
    gradient: NDArray[np.float64], weights: NDArray[np.float64], penalty: NDArray[np.float64], non_negative: bool
) -> NDArray[np.float64]:
    """Return how far each coordinate is from being optimal, in units of the gradient."""
    at_zero = np.maximum(-gradient - penalty, 0.0) if non_negative else np.maximum(np.abs(gradient) - penalty, 0.0)
    return np.asarray(np.where(weights == 0, at_zero, np.abs(gradient + np.sign(weights) * penalty)))
