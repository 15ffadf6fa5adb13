"""The ranker's logit and the decoder's score in one: how much each is worth, by how much is known of the member."""

# N = candidates, P = parameters of a fit: of the logit, of the score, the constant

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.evaluate import auc, log_loss

FORMAT = 1
HISTORY_EDGES = (5, 20, 100)
"""Buckets of history length: below 5 actions, below 20, below 100, more."""
_RANKER_ALONE = np.array([1.0, 0.0, 0.0])


class Weights(NamedTuple):
    """z = logit * ranker logit + score * decoder score + constant."""

    logit: float
    score: float
    constant: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BlendConfig:
    shrinkage: float = 200.0
    """Examples of a bucket that move its weights half way from the pooled ones."""
    prior: float = 20.0
    """Examples that move the pooled weights half way from the ranker alone."""

    def __post_init__(self) -> None:
        if min(self.shrinkage, self.prior) <= 0.0:
            raise ValueError(f"shrinkage is {self.shrinkage}, prior {self.prior}; expected more than 0")


class BlendReport(NamedTuple):
    """What the decoder's score adds, on members that the weights were not fitted on."""

    num_examples: int
    num_positives: int
    bucket_sizes: tuple[int, ...]
    log_loss_ranker: float
    """Of the ranker's logit with a scale and a constant of each bucket's own, so that this is not what is gained."""
    log_loss_blend: float
    auc_ranker: float
    auc_blend: float

    @property
    def gain(self) -> float:
        """Log loss that the score takes away; 0 or less: it did not earn its place."""
        return self.log_loss_ranker - self.log_loss_blend


@dataclass(frozen=True, slots=True)
class Blend:
    """z = a logit + b score + c, with weights of the member's bucket of history length.

    Weights are maximum a posteriori of a logistic regression: a bucket's around the pooled ones, and those around the
    ranker alone (1, 0, 0), with Gaussian priors worth a number of examples. a and b are at least 0: neither opinion is
    ever turned round. Where the score does not lower the log loss of members it was not fitted on, the blend is the
    ranker alone: a = 1, b = c = 0.
    """

    weights: tuple[Weights, ...]
    """One per bucket."""
    pooled: Weights
    report: BlendReport | None = None

    @classmethod
    def ranker_alone(cls) -> Blend:
        """Return the blend that leaves the ranker's logits as they are."""
        alone = Weights(*_RANKER_ALONE.tolist())
        return cls((alone,) * (len(HISTORY_EDGES) + 1), alone)

    @classmethod
    def fit(
        cls,
        logit_N: NDArray[np.floating],
        score_N: NDArray[np.floating],
        history_length_N: NDArray[np.integer],
        label_N: NDArray[np.bool_],
        groups_N: NDArray[np.int64] | None = None,
        config: BlendConfig | None = None,
    ) -> Blend:
        """Fit on N held-out candidates, which trained neither model.

        groups_N: whose candidate it is, for the report, which is of members outside the fit; None: each its own.

        With one kind of label only there is nothing to fit, and the ranker stands alone.

        Raises ValueError for columns of other lengths and for a logit or score that is not finite.
        """
        config = config or BlendConfig()
        groups_N = np.arange(len(label_N)) if groups_N is None else groups_N
        lengths = {len(column) for column in (logit_N, score_N, history_length_N, label_N, groups_N)}
        if len(lengths) != 1:
            raise ValueError(f"columns have lengths {sorted(lengths)}; expected one length")
        for name, column in (("logit", logit_N), ("score", score_N)):
            wrong = ~np.isfinite(column)
            if wrong.any():
                raise ValueError(f"{name} {int(np.flatnonzero(wrong)[0])} is {column[wrong][0]}; expected finite")
        if label_N.all() or not label_N.any():
            return cls.ranker_alone()
        columns = _Columns(
            np.stack([logit_N, score_N, np.ones(len(label_N))], axis=1).astype(np.float64),
            bucket_of(history_length_N),
            label_N.astype(np.float64),
        )
        report = _cross_fitted(columns, label_N, groups_N, config)
        if report.gain <= 0.0:
            return replace(cls.ranker_alone(), report=report)
        pooled, weights = _fit(columns, config, with_score=True)
        return cls(tuple(Weights(*row.tolist()) for row in weights), Weights(*pooled.tolist()), report)

    def __call__(
        self, logit_N: NDArray[np.floating], score_N: NDArray[np.floating], history_length: int | NDArray[np.integer]
    ) -> NDArray[np.float32]:
        """Return f32[N]: blended logits.  history_length: of all candidates' member, or one each."""
        weights_NP = np.array(self.weights)[bucket_of(np.asarray(history_length))]
        blended: NDArray[np.float64] = (
            weights_NP[..., 0] * logit_N.astype(np.float64)
            + weights_NP[..., 1] * score_N.astype(np.float64)
            + weights_NP[..., 2]
        )
        return blended.astype(np.float32)

    @property
    def earned(self) -> bool:
        """Whether the decoder's score has any weight."""
        return any(weights.score > 0.0 for weights in self.weights)

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` reads; fit for JSON."""
        return {
            "format": FORMAT,
            "history_edges": list(HISTORY_EDGES),
            "weights": [weights._asdict() for weights in self.weights],
            "pooled": self.pooled._asdict(),
            "report": None if self.report is None else self.report._asdict(),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Blend:
        """Raises ValueError for a document of another format or of other buckets."""
        for name, expected in (("format", FORMAT), ("history_edges", list(HISTORY_EDGES))):
            if document.get(name) != expected:
                raise ValueError(f"blend: {name} is {document.get(name)!r}, expected {expected!r}")
        if len(document["weights"]) != len(HISTORY_EDGES) + 1:
            raise ValueError(f"blend: {len(document['weights'])} weights, expected {len(HISTORY_EDGES) + 1}")
        report = document["report"]
        if report is not None:
            report = BlendReport(**{**report, "bucket_sizes": tuple(report["bucket_sizes"])})
        return cls(tuple(Weights(**weights) for weights in document["weights"]), Weights(**document["pooled"]), report)


def bucket_of(history_length: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return each history length's bucket."""
    buckets: NDArray[np.int64] = np.searchsorted(np.array(HISTORY_EDGES), history_length, side="right")
    return buckets


@dataclass(frozen=True, slots=True)
class _Columns:
    inputs_NP: NDArray[np.float64]
    bucket_N: NDArray[np.int64]
    label_N: NDArray[np.float64]

    def take(self, rows: NDArray[np.bool_]) -> _Columns:
        return _Columns(self.inputs_NP[rows], self.bucket_N[rows], self.label_N[rows])


def _fit(
    columns: _Columns, config: BlendConfig, *, with_score: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the pooled weights and float64[buckets, P] of every bucket."""
    free = np.array([True, with_score, True])
    # In units of the columns' spread a prior means the same whatever the two models' scales are.
    scale_P = np.append(np.maximum(columns.inputs_NP[:, :2].std(axis=0), 1e-6), 1.0)
    inputs_NP = columns.inputs_NP / scale_P
    pooled = _regress(inputs_NP, columns.label_N, _RANKER_ALONE * scale_P, config.prior, free)
    weights = []
    for bucket in range(len(HISTORY_EDGES) + 1):
        rows = columns.bucket_N == bucket
        weights.append(_regress(inputs_NP[rows], columns.label_N[rows], pooled, config.shrinkage, free))
    return pooled / scale_P, np.array(weights) / scale_P


def _regress(
    inputs_NP: NDArray[np.float64],
    label_N: NDArray[np.float64],
    center_P: NDArray[np.float64],
    prior_examples: float,
    free_P: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Return the weights of a logistic regression around `center`; those of logit and score at least 0.

    A weight that comes out below 0 is set to 0 and the others are fitted again.
    """
    weights = np.where(free_P, center_P, 0.0)
    if not len(label_N):
        return weights
    weights[free_P] = _newton(inputs_NP[:, free_P], label_N, weights[free_P], prior_examples)
    negative = free_P & (weights < 0.0) & np.array([True, True, False])
    if not negative.any():
        return weights
    kept = free_P & ~(negative & (weights == weights[negative].min()))
    return _regress(inputs_NP, label_N, center_P, prior_examples, kept)


def _newton(
    inputs_NP: NDArray[np.float64], label_N: NDArray[np.float64], center_P: NDArray[np.float64], prior_examples: float
) -> NDArray[np.float64]:
    rate = float(np.clip(label_N.mean(), 1.0 / (len(label_N) + 2), 1.0 - 1.0 / (len(label_N) + 2)))
    precision = prior_examples * rate * (1.0 - rate)

    def objective(weights: NDArray[np.float64]) -> float:
        logits = inputs_NP @ weights
        losses = np.logaddexp(0.0, logits) - label_N * logits
        return float(losses.sum() + 0.5 * precision * np.square(weights - center_P).sum())

    weights, value = center_P.copy(), objective(center_P)
    for _ in range(100):
        chances = 1.0 / (1.0 + np.exp(-np.clip(inputs_NP @ weights, -30.0, 30.0)))
        gradient = inputs_NP.T @ (chances - label_N) + precision * (weights - center_P)
        hessian = (inputs_NP.T * (chances * (1.0 - chances))) @ inputs_NP + precision * np.eye(len(weights))
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        # The objective is convex; a full step can overshoot far from the optimum, and half of one often enough cannot.
        while objective(weights - size * step) > value and size > 1e-6:
            size *= 0.5
        moved = weights - size * step
        if objective(moved) >= value - 1e-10 * max(1.0, abs(value)):
            return weights
        weights, value = moved, objective(moved)
    return weights


def _cross_fitted(
    columns: _Columns, label_N: NDArray[np.bool_], groups_N: NDArray[np.int64], config: BlendConfig
) -> BlendReport:
    """Judge each half of the members by the weights of the other."""
    _, place_N = np.unique(groups_N, return_inverse=True)
    half_N = place_N % 2 == 0
    halves = [(half_N, ~half_N), (~half_N, half_N)]
    if half_N.all():
        halves = [(half_N, half_N)]
    logits = {with_score: np.zeros(len(label_N)) for with_score in (False, True)}
    for inside, outside in halves:
        for with_score, fitted in logits.items():
            _, weights = _fit(columns.take(inside), config, with_score=with_score)
            fitted[outside] = (columns.inputs_NP[outside] * weights[columns.bucket_N[outside]]).sum(axis=1)
    losses = {
        with_score: log_loss(1.0 / (1.0 + np.exp(-np.clip(fitted, -30.0, 30.0))), label_N)
        for with_score, fitted in logits.items()
    }
    sizes = np.bincount(columns.bucket_N, minlength=len(HISTORY_EDGES) + 1)
    return BlendReport(
        len(label_N), int(label_N.sum()), tuple(sizes.tolist()),
        losses[False], losses[True], auc(logits[False], label_N), auc(logits[True], label_N),
    )  # fmt: skip
