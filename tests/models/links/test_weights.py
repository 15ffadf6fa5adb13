from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.retrieval.links.candidates import Entries
from models.retrieval.links.weights import Design, fit_l1, largest_l1


def make_problem(
    seed: int, num_rows: int = 120, num_links: int = 15
) -> tuple[np.ndarray, Design, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    matrix = random.random((num_rows, num_links)) < random.uniform(0.02, 0.6, num_links)
    truth = np.where(random.random(num_links) < 0.4, random.normal(0, 2, num_links), 0)
    labels = random.random(num_rows) < 1 / (1 + np.exp(0.5 - matrix @ truth))
    labels[:2] = (True, False)
    design = Design(Entries(*np.nonzero(matrix)), num_rows, num_links)
    return matrix, design, labels, random.uniform(0.5, 2.0, num_links)


def objective(
    matrix: np.ndarray, labels: np.ndarray, penalties: np.ndarray, l1: float, weights: np.ndarray, intercept: float
) -> float:
    logits = matrix @ weights + intercept
    return float(np.logaddexp(0, np.where(labels, -logits, logits)).mean() + l1 * (penalties * np.abs(weights)).sum())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.3, 0.05, 0.01]), non_negative=st.booleans())
def test_no_small_step_is_better(seed: int, share: float, non_negative: bool) -> None:
    matrix, design, labels, penalties = make_problem(seed)
    l1 = share * largest_l1(design, labels, penalties)
    fit = fit_l1(design, labels, penalties, l1, non_negative=non_negative)
    best = objective(matrix, labels, penalties, l1, fit.weights, fit.intercept)
    random = np.random.default_rng(seed)
    for size in (0.5, 0.05, 0.005):
        for _ in range(20):
            moved = fit.weights + size * random.normal(0, 1, len(fit.weights)) * (random.random(len(fit.weights)) < 0.3)
            moved = np.maximum(moved, 0) if non_negative else moved
            shifted = fit.intercept + size * random.normal()
            assert objective(matrix, labels, penalties, l1, moved, shifted) >= best - 1e-5
    if non_negative:
        assert (fit.weights >= 0).all()


@pytest.mark.parametrize("share", [0.2, 0.03])
def test_as_low_as_scikit_learn(share: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    for seed in range(3):
        matrix, design, labels, _ = make_problem(seed, 400, 30)
        even = np.ones(30)
        l1 = share * largest_l1(design, labels, even)
        theirs = linear_model.LogisticRegression(
            l1_ratio=1.0, solver="saga", C=1 / (l1 * 400), tol=1e-8, max_iter=20_000
        ).fit(matrix.astype(float), labels)
        ours = fit_l1(design, labels, even, l1, non_negative=False, tolerance=1e-5)
        low = objective(matrix, labels, even, l1, theirs.coef_[0], float(theirs.intercept_[0]))
        assert objective(matrix, labels, even, l1, ours.weights, ours.intercept) <= low + 1e-7
        np.testing.assert_allclose(ours.weights, theirs.coef_[0], atol=2e-3)
        assert ((ours.weights != 0) == (np.abs(theirs.coef_[0]) > 1e-3)).mean() > 0.9


def test_the_largest_penalty_leaves_no_link() -> None:
    _, design, labels, penalties = make_problem(4)
    l1 = largest_l1(design, labels, penalties)
    fit = fit_l1(design, labels, penalties, 1.001 * l1, non_negative=False)
    assert not fit.weights.any()
    assert fit.intercept == pytest.approx(np.log(labels.mean() / (1 - labels.mean())), abs=1e-6)
    assert fit_l1(design, labels, penalties, 0.9 * l1, non_negative=False).weights.any()


def test_labels_of_one_kind_are_refused() -> None:
    _, design, labels, penalties = make_problem(5)
    with pytest.raises(ValueError, match="0 of 120 pairs are hires"):
        fit_l1(design, np.zeros_like(labels), penalties, 0.1, non_negative=True)


def test_penalties_far_apart_reach_the_optimum() -> None:
    for seed in range(8):
        matrix, design, labels, _ = make_problem(seed)
        penalties = np.geomspace(0.01, 100.0, design.num_links)
        l1 = 1e-3 * largest_l1(design, labels, penalties)
        fit = fit_l1(design, labels, penalties, l1, non_negative=seed % 2 == 0)
        residual = 1 / (1 + np.exp(-(matrix @ fit.weights + fit.intercept))) - labels
        gradient = matrix.T @ residual / len(labels)
        assert abs(residual.mean()) <= 1e-3 * l1
        beyond = np.where(fit.weights != 0, np.abs(gradient + l1 * penalties * np.sign(fit.weights)), 0)
        assert (beyond <= 1e-3 * l1 * penalties + 1e-12).all()
