from __future__ import annotations

import numpy as np
import pytest

from models.evaluate import (
    auc,
    auc_per_user,
    auc_statistic,
    bootstrap,
    bootstrap_mean,
    dcg_at,
    expected_calibration_error,
    grouped_auc_statistic,
    log_loss,
    log_loss_statistic,
    ndcg_at,
    normalised_entropy,
    observed_over_expected,
    recall_at,
    reliability,
)

RANKED = np.array([True, False, True, False])


def test_ranking_metrics_by_hand() -> None:
    assert recall_at(RANKED, 4, 2) == 0.25
    assert recall_at(RANKED, 2, 10) == 1.0
    assert dcg_at(RANKED, 3) == pytest.approx(1.0 + 0.5)
    assert ndcg_at(RANKED, 2, 4) == pytest.approx(1.5 / (1.0 + 1.0 / np.log2(3)))
    assert ndcg_at(np.array([True, True]), 2, 10) == 1.0
    assert np.isnan(recall_at(RANKED, 0, 2))
    with pytest.raises(ValueError, match="k is 0"):
        recall_at(RANKED, 1, 0)


def test_auc_counts_pairs_and_halves_ties() -> None:
    random = np.random.default_rng(0)
    scores = random.integers(0, 5, size=60).astype(float)
    labels = random.random(60) < 0.4
    pairs = scores[labels][:, None] - scores[~labels][None, :]
    assert auc(scores, labels) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    assert np.isnan(auc(scores, np.ones(60, dtype=bool)))


def test_auc_per_user() -> None:
    scores = np.array([0.1, 0.9, 0.9, 0.1, 0.5])
    labels = np.array([False, True, False, True, True])
    users = np.array([5, 5, 2, 2, 9])
    np.testing.assert_array_equal(auc_per_user(scores, labels, users), [0.0, 1.0, np.nan])


def test_log_loss_and_calibration_error() -> None:
    assert log_loss(np.array([0.5, 0.5]), np.array([True, False])) == pytest.approx(np.log(2))
    assert np.isfinite(log_loss(np.array([0.0]), np.array([True])))
    random = np.random.default_rng(1)
    probabilities = random.random(20_000)
    labels = random.random(20_000) < probabilities
    assert expected_calibration_error(probabilities, labels) < 0.02
    assert expected_calibration_error(probabilities**2, labels) > 0.1


def test_bootstrap_covers_and_repeats() -> None:
    values = np.random.default_rng(2).normal(3.0, 1.0, size=400)
    interval = bootstrap_mean(values, seed=4)
    assert interval == bootstrap_mean(values, seed=4)
    assert interval.low < interval.mean < interval.high
    assert interval.high - interval.low == pytest.approx(2 * 1.96 / 20, rel=0.2)
    assert bootstrap_mean(np.append(values, np.nan), seed=4) == interval


def test_bootstrap_draws_members_with_all_their_values() -> None:
    random = np.random.default_rng(3)
    member_means = random.normal(size=50)
    clusters = np.repeat(np.arange(50), 20)
    values = member_means[clusters]
    wide = bootstrap_mean(values, clusters=clusters)
    narrow = bootstrap_mean(values)
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


def test_bootstrap_wants_enough_resamples() -> None:
    with pytest.raises(ValueError, match="num_resamples is 10"):
        bootstrap_mean(np.ones(3), num_resamples=10)


def test_weights_repeat_examples() -> None:
    random = np.random.default_rng(3)
    scores = random.integers(0, 8, size=80).astype(float)
    labels = random.random(80) < 0.3
    probabilities = random.random(80)
    users = random.integers(0, 9, size=80)
    times = random.integers(0, 3, size=9)[users]
    repeated = np.repeat(np.arange(80), times)
    ones = np.ones(80)
    assert auc_statistic(scores, labels)(ones) == pytest.approx(auc(scores, labels))
    assert auc_statistic(scores, labels)(times.astype(float)) == pytest.approx(auc(scores[repeated], labels[repeated]))
    assert log_loss_statistic(probabilities, labels)(times.astype(float)) == pytest.approx(
        log_loss(probabilities[repeated], labels[repeated])
    )
    per_user = auc_per_user(scores, labels, users)
    sizes = np.bincount(users)[np.unique(users)]
    kept = ~np.isnan(per_user)
    expected = (per_user[kept] * sizes[kept]).sum() / sizes[kept].sum()
    assert grouped_auc_statistic(scores, labels, users)(ones) == pytest.approx(expected)


def test_calibration_metrics_by_hand() -> None:
    labels = np.array([True, False, False, False])
    assert normalised_entropy(np.full(4, 0.25), labels) == pytest.approx(1.0)
    assert normalised_entropy(np.array([0.9, 0.1, 0.1, 0.1]), labels) < 0.3
    assert np.isnan(normalised_entropy(np.full(2, 0.5), np.array([True, True])))
    assert observed_over_expected(np.full(4, 0.5), labels) == pytest.approx(0.5)
    predicted, observed, sizes = reliability(np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, True, True, True]), 2)
    assert predicted.tolist() == pytest.approx([0.15, 0.85])
    assert observed.tolist() == [0.5, 1.0] and sizes.tolist() == [2, 2]


def test_bootstrap_draws_members_whole_and_pairs_by_seed() -> None:
    random = np.random.default_rng(5)
    users = np.repeat(np.arange(40), 10)
    labels = random.random(400) < 0.4
    better = labels + random.normal(0.0, 1.0, 400)
    worse = labels + random.normal(0.0, 3.0, 400)
    first, second = auc_statistic(better, labels), auc_statistic(worse, labels)
    gain = bootstrap(lambda weights: first(weights) - second(weights), users)
    assert gain.low <= gain.mean <= gain.high and gain.low > 0.0
    assert bootstrap(first, users) == bootstrap(first, users)
    one_member = bootstrap(first, np.zeros(400, dtype=np.int64))
    assert one_member.low == pytest.approx(one_member.high) == pytest.approx(one_member.mean)
    with pytest.raises(ValueError, match="num_resamples is 10"):
        bootstrap(first, users, num_resamples=10)
