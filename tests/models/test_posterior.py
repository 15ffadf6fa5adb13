"""Bayesian regression against closed forms and numeric integrals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.ranking.posterior import Gaussian


def problem(
    num_examples: int, num_features: int, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    random = np.random.default_rng(seed)
    features = random.standard_normal((num_examples, num_features))
    logits = features @ random.standard_normal(num_features)
    return (
        features,
        logits + random.standard_normal(num_examples),
        random.random(num_examples) < 1 / (1 + np.exp(-logits)),
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 60), st.integers(1, 8), st.floats(0.1, 10.0), st.floats(0.1, 4.0), st.integers(0, 99))
def test_the_mean_is_ridge(num_examples: int, num_features: int, precision: float, noise: float, seed: int) -> None:
    features, values, _ = problem(num_examples, num_features, seed)
    found = Gaussian.prior(num_features, precision).given_values(features, values, noise)
    ridge = precision * noise * np.eye(num_features)
    expected = np.linalg.solve(features.T @ features + ridge, features.T @ values)
    assert np.allclose(found.mean_D, expected, atol=1e-9)
    assert np.allclose(found.precision_DD, precision * np.eye(num_features) + features.T @ features / noise)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.integers(0, 99))
def test_in_parts_equals_at_once(sizes: list[int], seed: int) -> None:
    features, values, _ = problem(sum(sizes), 4, seed)
    prior = Gaussian.prior(4, 0.5)
    at_once = prior.given_values(features, values, 2.0)
    in_parts, start = prior, 0
    for size in sizes:
        rows = slice(start, start + size)
        in_parts = in_parts.forget(1.0, prior).given_values(features[rows], values[rows], 2.0)
        start += size
    assert np.allclose(in_parts.mean_D, at_once.mean_D, atol=1e-9)
    assert np.allclose(in_parts.precision_DD, at_once.precision_DD)


def test_the_mode_of_labels_in_parts_is_near_the_mode_at_once() -> None:
    features, _, labels = problem(4000, 4)
    prior = Gaussian.prior(4, 1.0)
    at_once = prior.given_labels(features, labels)
    in_parts = prior
    for rows in np.array_split(np.arange(4000), 8):
        in_parts = in_parts.given_labels(features[rows], labels[rows])
    deviations = np.sqrt(np.diag(np.linalg.inv(at_once.precision_DD)))
    assert (np.abs(in_parts.mean_D - at_once.mean_D) < 0.5 * deviations).all()
    assert np.allclose(in_parts.precision_DD, at_once.precision_DD, rtol=0.1, atol=15.0)


@pytest.mark.parametrize("num_features", [1, 2])
@pytest.mark.parametrize("num_examples", [60, 400])
def test_laplace_is_near_the_integral(num_examples: int, num_features: int) -> None:
    """Mean and covariance of the true posterior, integrated on a grid of 8 standard deviations."""
    features, _, labels = problem(num_examples, num_features, seed=3)
    offsets = np.random.default_rng(4).standard_normal(num_examples)
    found = Gaussian.prior(num_features, 1.0).given_labels(features, labels, offsets)
    deviations = np.sqrt(np.diag(np.linalg.inv(found.precision_DD)))
    axes = [mean + 8.0 * sd * np.linspace(-1, 1, 161) for mean, sd in zip(found.mean_D, deviations, strict=True)]
    weights = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
    logits = weights @ features.T + offsets
    log_density = (logits * labels - np.logaddexp(0.0, logits)).sum(axis=1) - 0.5 * (weights**2).sum(axis=1)
    density = np.exp(log_density - log_density.max())
    density /= density.sum()
    mean = density @ weights
    covariance = (weights - mean).T @ ((weights - mean) * density[:, None])
    # The skew that Laplace leaves out is of order 1/sqrt(n) of a standard deviation.
    assert (np.abs(found.mean_D - mean) < 3.0 / np.sqrt(num_examples) * deviations).all()
    assert np.allclose(np.linalg.inv(found.precision_DD), covariance, rtol=20.0 / num_examples, atol=2e-4)


def test_labels_find_the_mode() -> None:
    features, _, labels = problem(300, 5)
    offsets = np.linspace(-1, 1, 300)
    prior = Gaussian(np.full(5, 0.3), 2.0 * np.eye(5))
    found = prior.given_labels(features, labels, offsets)
    rates = 1 / (1 + np.exp(-(features @ found.mean_D + offsets)))
    assert np.allclose(features.T @ (labels - rates), 2.0 * (found.mean_D - 0.3), atol=1e-4)
    curvature = (features * (rates * (1 - rates))[:, None]).T @ features
    assert np.allclose(found.precision_DD, prior.precision_DD + curvature)


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_separable_labels_have_a_mode(scale: float) -> None:
    """A plain Newton step overshoots here: the prior alone holds the weights."""
    features = scale * np.array([[-1.0], [-2.0], [1.0], [3.0]])
    found = Gaussian.prior(1, 1e-3).given_labels(features, np.array([False, False, True, True]))
    rates = 1 / (1 + np.exp(-(features[:, 0] * found.mean_D[0])))
    slope = features[:, 0] @ (np.array([0, 0, 1, 1]) - rates)
    assert found.mean_D[0] > 0 and slope == pytest.approx(1e-3 * found.mean_D[0], rel=1e-2, abs=1e-4)


def test_covariance_shrinks_with_data() -> None:
    features, values, labels = problem(500, 3)
    prior = Gaussian.prior(3, 1.0)
    for linear in (True, False):
        before = prior
        for count in (10, 50, 500):
            seen = features[:count]
            after = prior.given_values(seen, values[:count]) if linear else prior.given_labels(seen, labels[:count])
            assert np.linalg.eigvalsh(after.precision_DD).min() > np.linalg.eigvalsh(before.precision_DD).min()
            assert (np.diag(np.linalg.inv(after.precision_DD)) < np.diag(np.linalg.inv(before.precision_DD))).all()
            before = after


def test_forgetting_ends_at_the_prior() -> None:
    features, values, _ = problem(200, 3)
    prior = Gaussian.prior(3, 2.0)
    found = prior.given_values(features, values)
    once = found.forget(0.5, prior)
    assert np.allclose(once.precision_DD, 0.5 * found.precision_DD + 0.5 * prior.precision_DD)
    assert np.allclose(once.precision_DD @ once.mean_D, 0.5 * found.precision_DD @ found.mean_D)
    for _ in range(100):
        found = found.forget(0.5, prior)
    assert np.allclose(found.mean_D, 0.0) and np.allclose(found.precision_DD, prior.precision_DD)
    # At a fixed flow of data the evidence that counts is 1 / (1 - g) runs of it.
    steady = prior
    for _ in range(200):
        steady = steady.forget(0.9, prior).given_values(features, values)
    assert np.allclose(steady.precision_DD, prior.precision_DD + 10.0 * features.T @ features)


def test_draws_have_the_mean_and_the_covariance() -> None:
    features, values, _ = problem(30, 3)
    found = Gaussian.prior(3, 1.0).given_values(features, values)
    drawn = found.draws(40_000, np.random.default_rng(0), scale=0.5)
    covariance = 0.25 * np.linalg.inv(found.precision_DD)
    assert np.allclose(drawn.mean(axis=0), found.mean_D, atol=5 * np.sqrt(covariance.max() / 40_000))
    assert np.allclose(np.cov(drawn.T), covariance, rtol=0.05, atol=0.03 * covariance.max())
    assert (found.draws(2, np.random.default_rng(0), scale=0.0) == found.mean_D).all()


def test_what_does_not_fit_is_refused() -> None:
    prior = Gaussian.prior(3, 1.0)
    with pytest.raises(ValueError, match=r"features \(4, 2\) with 4 targets"):
        prior.given_values(np.zeros((4, 2)), np.zeros(4))
    with pytest.raises(ValueError, match=r"features \(4, 3\) with 5 targets"):
        prior.given_labels(np.zeros((4, 3)), np.zeros(5, np.bool_))
    with pytest.raises(ValueError, match="2 offsets for 4"):
        prior.given_labels(np.zeros((4, 3)), np.zeros(4, np.bool_), np.zeros(2))
    with pytest.raises(ValueError, match="discount is 0"):
        prior.forget(0.0, prior)
    with pytest.raises(ValueError, match="noise_variance is 0"):
        prior.given_values(np.zeros((4, 3)), np.zeros(4), 0.0)
    with pytest.raises(ValueError, match="precision is -1"):
        Gaussian.prior(3, -1.0)
