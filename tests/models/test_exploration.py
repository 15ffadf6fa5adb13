"""The Bayesian head over known features, and propensities against exact chances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.ranking.exploration import (
    BayesianHead,
    Draws,
    Evidence,
    ExplorationConfig,
    Projection,
    TrunkMismatch,
    logits_of,
)
from models.ranking.posterior import Gaussian
from models.ranking.propensity import best_rows, epsilon_greedy_rows, propensities

NUM_HIDDEN = 12


def evidence(num_examples: int, seed: int = 0, shift: float = 0.0) -> Evidence:
    """Labels that the offsets explain but for `shift` times the first hidden feature, for both actions."""
    random = np.random.default_rng(seed)
    hidden = random.standard_normal((num_examples, NUM_HIDDEN)).astype(np.float32) @ np.diag(
        np.linspace(0.5, 3.0, NUM_HIDDEN).astype(np.float32)
    )
    offsets = np.stack([hidden[:, 1] - 1.0, hidden[:, 2]], axis=1)
    logits = offsets + shift * hidden[:, :1]
    return Evidence(hidden, offsets, random.random(offsets.shape) < 1 / (1 + np.exp(-logits)))


@pytest.fixture(scope="module")
def head() -> BayesianHead:
    return BayesianHead.fit("trunk-1", 2, [evidence(2000), evidence(2000, seed=1)])


def test_the_projection_keeps_all_of_a_narrow_layer() -> None:
    hidden = evidence(5000).hidden_NX
    projection = Projection.fit(hidden, 128)
    features = projection(hidden)
    assert features.shape == (5000, NUM_HIDDEN + 1) and (features[:, -1] == 1.0).all()
    variances = features[:, :-1].var(axis=0)
    assert variances.max() < 1.05 and np.allclose(variances[:3], 1.0, atol=0.05)
    solution = np.linalg.lstsq(features, hidden, rcond=None)[0]
    assert np.allclose(features @ solution, hidden, atol=0.01), "nothing is lost"


def test_the_projection_sees_what_never_varied() -> None:
    hidden = np.concatenate([evidence(5000).hidden_NX, np.zeros((5000, 30), np.float32)], axis=1)
    projection = Projection.fit(hidden, 16)
    known, strange = hidden[:1], hidden[:1].copy()
    strange[0, -1] = 3.0
    assert projection(known).shape == (1, 17)
    assert np.abs(projection(known) - projection(strange)).sum() > 0.5


def test_a_good_ranker_is_left_alone_and_a_wrong_one_corrected(head: BayesianHead) -> None:
    test = evidence(500, seed=9, shift=2.0)
    before = 1 / (1 + np.exp(-test.offsets_NT))
    ours = head.draw(test.hidden_NX, before.astype(np.float32), Draws(1, 0, 0.0))[0]
    assert np.abs(ours - before).mean() < 0.03
    wrong = BayesianHead.fit("trunk-1", 2, [evidence(4000, shift=2.0)])
    ours = wrong.draw(test.hidden_NX, before.astype(np.float32), Draws(1, 0, 0.0))[0]
    truth = 1 / (1 + np.exp(-(test.offsets_NT + 2.0 * test.hidden_NX[:, :1])))
    assert np.abs(ours - truth).mean() < 0.3 * np.abs(before - truth).mean()


def test_deviations_are_those_of_the_draws_and_shrink(head: BayesianHead) -> None:
    test = evidence(40, seed=2)
    middle = np.full((40, 2), 0.5, np.float32)
    drawn = head.draw(test.hidden_NX, middle, Draws(3, 4000, 0.5))
    assert np.allclose(logits_of(drawn).std(axis=0), 0.5 * head.deviations(test.hidden_NX), rtol=0.1)
    more = head.update("trunk-1", [evidence(20_000, seed=4)])
    assert (more.deviations(test.hidden_NX) < 0.6 * head.deviations(test.hidden_NX)).all()
    few = BayesianHead.fit("trunk-1", 2, [evidence(20)])
    assert (few.deviations(test.hidden_NX).mean(axis=0) > 5 * head.deviations(test.hidden_NX).mean(axis=0)).all()


def test_one_draw_per_seed_whatever_is_ranked(head: BayesianHead) -> None:
    """So a page is consistent, and a later page continues an earlier one."""
    test = evidence(60, seed=5)
    rates = np.full((60, 2), 0.3, np.float32)
    whole = head.draw(test.hidden_NX, rates, Draws(77, 8, 1.0))
    rest = head.draw(test.hidden_NX[20:], rates[20:], Draws(77, 0, 1.0))
    assert np.allclose(whole[0, 20:], rest[0], atol=1e-6)
    twins = np.concatenate([test.hidden_NX[:1], test.hidden_NX[:1]])
    same = head.draw(twins, rates[:2], Draws(77, 3, 1.0))
    assert (same[:, 0] == same[:, 1]).all(), "equal candidates meet the same weights"
    other = head.draw(test.hidden_NX, rates, Draws(78, 0, 1.0))
    assert np.abs(whole[0] - other[0]).max() > 0.01
    assert len({float(draw[0, 0]) for draw in whole}) == 9


def test_draws_keep_what_actions_imply(head: BayesianHead) -> None:
    test = evidence(200, seed=6)
    drawn = head.draw(test.hidden_NX, np.full((200, 2), 0.3, np.float32), Draws(0, 20, 5.0), implied=[(1, 0)])
    assert (drawn[..., 1] <= drawn[..., 0]).all()


def test_parts_of_one_run_equal_the_whole() -> None:
    whole = evidence(3000)
    parts = [
        Evidence(whole.hidden_NX[rows], whole.offsets_NT[rows], whole.labels_NT[rows])
        for rows in np.array_split(np.arange(3000), 7)
    ]
    one, many = (BayesianHead.fit("t", 2, run) for run in ([whole], parts))
    for a, b in zip(one.posteriors, many.posteriors, strict=True):
        assert np.allclose(a.mean_D, b.mean_D) and np.allclose(a.precision_DD, b.precision_DD, atol=1e-4)


def test_another_network_is_refused(head: BayesianHead, tmp_path: Path) -> None:
    path = tmp_path / "exploration.safetensors"
    head.save(path)
    again = BayesianHead.load(path, "trunk-1")
    test = evidence(10)
    rates = np.full((10, 2), 0.5, np.float32)
    assert (
        again.draw(test.hidden_NX, rates, Draws(4, 3, 1.0)) == head.draw(test.hidden_NX, rates, Draws(4, 3, 1.0))
    ).all()
    assert again.config == head.config
    with pytest.raises(TrunkMismatch, match=r"network trunk-1, not of trunk-2; recompute"):
        BayesianHead.load(path, "trunk-2")
    with pytest.raises(TrunkMismatch):
        head.update("trunk-2", [test])
    with pytest.raises(TrunkMismatch):
        head.update("trunk-3", [test], trained_from="trunk-2")
    assert head.update("trunk-2", [test], trained_from="trunk-1").trunk == "trunk-2"


def test_no_evidence() -> None:
    with pytest.raises(ValueError, match="no evidence"):
        BayesianHead.fit("t", 2, [])
    few = evidence(50)
    head = BayesianHead.fit("t", 1, [Evidence(few.hidden_NX, few.offsets_NT[:, :1], few.labels_NT[:, :1])])
    faded = head.update("t", [])
    assert (faded.deviations(evidence(5).hidden_NX) > head.deviations(evidence(5).hidden_NX)).all()
    with pytest.raises(ValueError, match="max_features is 200"):
        ExplorationConfig(max_features=200)
    with pytest.raises(ValueError, match="prior_deviation is 0"):
        ExplorationConfig(prior_deviation=0.0)
    with pytest.raises(ValueError, match="discount is 2"):
        ExplorationConfig(discount=2.0)


def test_thompson_sampling_learns_which_arm_is_best() -> None:
    """Ten arms, one-hot features: regret per round falls by far, and beats a greedy choice stuck on what it tried."""
    rates = np.linspace(0.05, 0.35, 10)

    def regret(scale: float, seed: int) -> NDArray[np.float64]:
        random = np.random.default_rng(seed)
        posterior = Gaussian.prior(10, 1.0)
        lost = np.zeros(60)
        for day in range(60):
            drawn = posterior.draws(20, random, scale) if scale else np.repeat(posterior.mean_D[None], 20, axis=0)
            arms = drawn.argmax(axis=1)
            clicks = random.random(20) < rates[arms]
            posterior = posterior.given_labels(np.eye(10)[arms], clicks, np.full(20, -1.5))
            lost[day] = (rates.max() - rates[arms]).mean()
        return lost

    thompson = np.mean([regret(1.0, seed) for seed in range(8)], axis=0)
    greedy = np.mean([regret(0.0, seed) for seed in range(8)], axis=0)
    assert thompson[-10:].mean() < 0.4 * thompson[:5].mean()
    assert thompson[-10:].mean() < 0.7 * greedy[-10:].mean()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 8), st.integers(0, 99))
def test_best_rows_is_a_stable_sort(num_rows: int, num_values: int, num_places: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, num_values, (3, num_rows)).astype(np.float64)
    for row, found in zip(values.tolist(), best_rows(values, num_places).tolist(), strict=True):
        assert found == sorted(range(num_rows), key=lambda at: (-row[at], at))[:num_places]


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_epsilon_greedy_chances(epsilon: float) -> None:
    """Of three rows, exactly: the first place is e/3 for each plus 1 - e for the best, and so on for what is left."""
    order = np.array([2, 0, 1])
    pages = epsilon_greedy_rows(order, epsilon, 20_000, 3, np.random.default_rng(0))
    assert (np.sort(pages, axis=1) == [0, 1, 2]).all()
    first = {row: epsilon / 3 + (1 - epsilon) * (row == 2) for row in range(3)}
    second = {row: 0.0 for row in range(3)}
    for top, chance in first.items():
        left = [row for row in order.tolist() if row != top]
        second[left[0]] += chance * (1 - epsilon / 2)
        second[left[1]] += chance * epsilon / 2
    for place, expected in enumerate((first, second)):
        for row, chance in expected.items():
            assert (pages[:, place] == row).mean() == pytest.approx(chance, abs=0.015)
    with pytest.raises(ValueError, match=r"epsilon is 1\.5"):
        epsilon_greedy_rows(order, 1.5, 1, 3, np.random.default_rng(0))


def test_epsilon_greedy_stops_at_the_last_row() -> None:
    pages = epsilon_greedy_rows(np.arange(2), 0.5, 4, 10, np.random.default_rng(0))
    assert pages.shape == (4, 2)


def test_propensities_of_gaussian_values() -> None:
    """Two candidates a deviation apart: P(first is best) = Phi(1 / sqrt 2)."""
    random = np.random.default_rng(0)
    values = np.array([1.0, 0.0]) + random.standard_normal((4000, 2))
    found = propensities(np.array([0, 1]), best_rows(values, 2))
    assert np.allclose(found, 0.7602, atol=0.02) and found[0] == found[1]
    rare = propensities(np.array([1, 0]), best_rows(values[:64] + [9.0, 0.0], 2))
    assert np.allclose(rare, 1 / 65), "never 0"
    with pytest.raises(ValueError, match="pages of 1 places for 2"):
        propensities(np.array([0, 1]), best_rows(values, 1))


@pytest.mark.parametrize("chance", [0.02, 0.2, 0.8])
def test_the_weight_is_right_on_average(chance: float) -> None:
    num_draws = 64
    hits = np.random.default_rng(1).random((20_000, num_draws)) < chance
    weights = np.array([1 / propensities(np.array([1]), row[:, None].astype(np.int64))[0] for row in hits[:4000]])
    expected = (1 - (1 - chance) ** (num_draws + 1)) / chance
    assert weights.mean() == pytest.approx(expected, rel=0.03)
