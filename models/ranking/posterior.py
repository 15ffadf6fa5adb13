"""Bayesian regression on features that somebody else learned: a Gaussian over weights, kept up as data comes in."""

# N = examples, D = features, M = draws

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MAX_NEWTON_STEPS = 50
_CHUNK = 16_384
"""Rows that are float64 at a time."""


@dataclass(frozen=True, slots=True)
class Gaussian:
    """N(mean, precision^-1) over D weights."""

    mean_D: NDArray[np.float64]
    precision_DD: NDArray[np.float64]

    @classmethod
    def prior(cls, num_features: int, precision: float) -> Gaussian:
        """Return independent weights around 0."""
        if not precision > 0.0:
            raise ValueError(f"prior precision is {precision}; expected above 0")
        return cls(np.zeros(num_features), precision * np.eye(num_features))

    def forget(self, discount: float, prior: Gaussian) -> Gaussian:
        """Return what is still believed when evidence so far counts for `discount` of itself.

        P = g P_t + (1 - g) P_0, and the mean that goes with it. Departure from plain g P_t: that also forgets the
        prior, and after enough runs without data draws grow without bound.
        """
        if not 0.0 < discount <= 1.0:
            raise ValueError(f"discount is {discount}; expected above 0, up to 1")
        if discount == 1.0:
            return self
        precision_DD = discount * self.precision_DD + (1.0 - discount) * prior.precision_DD
        natural_D = discount * self.precision_DD @ self.mean_D + (1.0 - discount) * prior.precision_DD @ prior.mean_D
        return _from_natural(natural_D, precision_DD)

    def given_values(
        self, features_ND: NDArray[np.floating], values_N: NDArray[np.floating], noise_variance: float = 1.0
    ) -> Gaussian:
        """Return the posterior of linear regression, exactly: y = w z + N(0, noise_variance).

        P' = P + Z^T Z / s2;  mean' = P'^-1 (P mean + Z^T y / s2). Updating in parts equals updating at once.
        """
        if not noise_variance > 0.0:
            raise ValueError(f"noise_variance is {noise_variance}; expected above 0")
        _check(features_ND, self.mean_D, values_N)
        precision_DD, natural_D = self.precision_DD.copy(), self.precision_DD @ self.mean_D
        for rows in _chunks(len(features_ND)):
            chunk_ND = features_ND[rows].astype(np.float64)
            precision_DD += chunk_ND.T @ chunk_ND / noise_variance
            natural_D += chunk_ND.T @ values_N[rows].astype(np.float64) / noise_variance
        return _from_natural(natural_D, precision_DD)

    def given_labels(
        self,
        features_ND: NDArray[np.floating],
        labels_N: NDArray[np.bool_],
        offsets_N: NDArray[np.floating] | None = None,
    ) -> Gaussian:
        """Return Laplace's approximation of the posterior of logistic regression: logit P(y) = offset + w z.

        The mode by Newton's method with step halving (the log posterior is concave, so any descent ends there), then
        P' = P + sum p (1 - p) z z^T at the mode (Bishop, PRML, section 4.5). offsets_N None: all zero.

        In parts and at once differ a little, as each part is approximated around a mode of its own.
        Raises RuntimeError where Newton's method does not converge, which takes features that are not finite.
        """
        _check(features_ND, self.mean_D, labels_N)
        if offsets_N is None:
            offsets_N = np.zeros(len(features_ND))
        if len(offsets_N) != len(features_ND):
            raise ValueError(f"{len(offsets_N)} offsets for {len(features_ND)} examples")
        mean_D = self.mean_D
        loss = self._loss(mean_D, features_ND, labels_N, offsets_N)
        for _ in range(_MAX_NEWTON_STEPS):
            gradient_D = self.precision_DD @ (mean_D - self.mean_D)
            hessian_DD = self.precision_DD.copy()
            for rows in _chunks(len(features_ND)):
                chunk_ND = features_ND[rows].astype(np.float64)
                rates_N = _sigmoid(chunk_ND @ mean_D + offsets_N[rows])
                gradient_D += chunk_ND.T @ (rates_N - labels_N[rows])
                hessian_DD += (chunk_ND * (rates_N * (1.0 - rates_N))[:, None]).T @ chunk_ND
            step_D = np.linalg.solve(hessian_DD, gradient_D)
            decrement = float(gradient_D @ step_D)
            if decrement < 1e-8:  # of squared standard deviations
                return Gaussian(mean_D, hessian_DD)
            share = 1.0
            while True:
                next_D = mean_D - share * step_D
                next_loss = self._loss(next_D, features_ND, labels_N, offsets_N)
                # The slack is the rounding of a sum of many terms.
                if next_loss <= loss - 0.25 * share * decrement + 1e-12 * abs(loss) or share < 1e-6:
                    break
                share *= 0.5
            mean_D, loss = next_D, next_loss
        raise RuntimeError(f"no mode after {_MAX_NEWTON_STEPS} Newton steps on {len(features_ND)} examples")

    def _loss(
        self,
        weights_D: NDArray[np.float64],
        features_ND: NDArray[np.floating],
        labels_N: NDArray[np.bool_],
        offsets_N: NDArray[np.floating],
    ) -> float:
        away_D = weights_D - self.mean_D
        loss = 0.5 * float(away_D @ self.precision_DD @ away_D)
        for rows in _chunks(len(features_ND)):
            logits_N = features_ND[rows].astype(np.float64) @ weights_D + offsets_N[rows]
            loss += float((np.logaddexp(0.0, logits_N) - logits_N * labels_N[rows]).sum())
        return loss

    def root(self) -> NDArray[np.float64]:
        """Return f64[D, D], R with R^T R = precision^-1: eps @ R has this Gaussian's covariance for eps ~ N(0, 1)."""
        lower_DD = np.linalg.cholesky(self.precision_DD)
        return np.linalg.solve(lower_DD, np.eye(len(lower_DD)))

    def draws(self, num_draws: int, random: np.random.Generator, scale: float = 1.0) -> NDArray[np.float64]:
        """Return f64[M, D]: weights from N(mean, scale^2 precision^-1)."""
        return self.mean_D + scale * random.standard_normal((num_draws, len(self.mean_D))) @ self.root()


def _from_natural(natural_D: NDArray[np.floating], precision_DD: NDArray[np.floating]) -> Gaussian:
    mean_D = np.linalg.solve(precision_DD, natural_D)
    return Gaussian(mean_D.astype(np.float64), precision_DD.astype(np.float64))


def _check(features_ND: NDArray[np.floating], mean_D: NDArray[np.float64], targets_N: NDArray[np.generic]) -> None:
    if features_ND.ndim != 2 or features_ND.shape[1] != len(mean_D) or len(targets_N) != len(features_ND):
        raise ValueError(
            f"features {features_ND.shape} with {len(targets_N)} targets; expected (N, {len(mean_D)}) with N targets"
        )


def _chunks(length: int) -> list[slice]:
    return [slice(start, min(length, start + _CHUNK)) for start in range(0, length, _CHUNK)]


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    rates: NDArray[np.float64] = 0.5 * (1.0 + np.tanh(0.5 * logits))
    return rates
