"""Off-policy estimators on logs whose truth is known."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from models.off_policy import doubly_robust, ips, matched_first, snips, weigh

NUM_CONTEXTS, NUM_ACTIONS = 6, 5


class Log(NamedTuple):
    rewards: NDArray[np.float64]
    propensities: NDArray[np.float64]
    targets: NDArray[np.float64]
    contexts: NDArray[np.int64]
    actions: NDArray[np.int64]
    rates: NDArray[np.float64]
    """[contexts, actions]."""
    policy: NDArray[np.float64]
    """The target's, [contexts, actions]."""

    @property
    def truth(self) -> float:
        return float((self.policy * self.rates).sum(axis=1).mean())


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return chances


def simulate(num_rows: int, seed: int, tilt: float = 1.5) -> Log:
    """Synthetic: contexts drawn evenly, the logging policy prefers what the target does not."""
    world = np.random.default_rng(99)
    rates = world.uniform(0.05, 0.6, (NUM_CONTEXTS, NUM_ACTIONS))
    logging, policy = softmax(-tilt * rates), softmax(6.0 * rates)
    random = np.random.default_rng(seed)
    contexts = random.integers(0, NUM_CONTEXTS, num_rows)
    actions = (random.random(num_rows)[:, None] > logging[contexts].cumsum(axis=1)).sum(axis=1)
    return Log(
        (random.random(num_rows) < rates[contexts, actions]).astype(np.float64),
        logging[contexts, actions],
        policy[contexts, actions],
        contexts,
        actions,
        rates,
        policy,
    )


def test_the_truth_is_found() -> None:
    log = simulate(60_000, 0)
    weights = weigh(log.targets, log.propensities).values_N
    wrong = log.rates * 0.5 + 0.1
    estimates = {
        "ips": ips(log.rewards, weights),
        "snips": snips(log.rewards, weights),
        "dr": doubly_robust(
            log.rewards,
            weights,
            wrong[log.contexts, log.actions],
            (log.policy * wrong).sum(axis=1)[log.contexts],
        ),
    }
    for name, estimate in estimates.items():
        # The interval is two standard errors; three are allowed for the luck of one seed.
        assert abs(estimate.mean - log.truth) < 0.75 * (estimate.high - estimate.low), name
    naive = log.rewards.mean()
    assert abs(naive - log.truth) > 0.05, "what the log earned itself is no estimate"


def test_intervals_cover_and_estimates_are_unbiased() -> None:
    covered, means = [], []
    for seed in range(60):
        log = simulate(1500, seed)
        estimate = ips(log.rewards, weigh(log.targets, log.propensities).values_N, seed=seed)
        covered.append(estimate.low < log.truth < estimate.high)
        means.append(estimate.mean)
    assert np.mean(covered) > 0.85
    assert abs(np.mean(means) - log.truth) < 4 * np.std(means) / np.sqrt(len(means))


def test_doubly_robust_is_right_if_either_part_is() -> None:
    log = simulate(40_000, 1)
    expected = (log.policy * log.rates).sum(axis=1)[log.contexts]
    predicted = log.rates[log.contexts, log.actions]
    wrong = weigh(log.targets, np.full(len(log.targets), 0.2)).values_N  # the log was not even
    assert doubly_robust(log.rewards, wrong, predicted, expected).mean == pytest.approx(log.truth, abs=0.01)
    assert abs(ips(log.rewards, wrong).mean - log.truth) > 0.02
    right = weigh(log.targets, log.propensities).values_N
    narrow = doubly_robust(log.rewards, right, predicted, expected)
    wide = ips(log.rewards, right)
    assert narrow.high - narrow.low < 0.85 * (wide.high - wide.low), "a good model takes variance out"


def test_self_normalised_stays_in_range_and_keeps_constants() -> None:
    log = simulate(200, 2)
    weights = weigh(log.targets, log.propensities).values_N
    assert snips(np.ones(200), weights).mean == pytest.approx(1.0)
    assert ips(np.ones(200), weights).mean != pytest.approx(1.0, abs=1e-3)
    estimate = snips(log.rewards, weights)
    assert estimate.low >= 0.0 and estimate.high <= 1.0


def test_weights_tell_whether_to_trust_them() -> None:
    log = simulate(20_000, 3)
    weights = weigh(log.targets, log.propensities)
    assert weights.mean == pytest.approx(1.0, abs=0.05) and weights.clipped == 0.0
    assert 1000 < weights.effective_size < 20_000
    same = weigh(log.propensities, log.propensities)
    assert same.effective_size == pytest.approx(20_000) and (same.values_N == 1.0).all()
    cut = weigh(log.targets, log.propensities, max_weight=1.0)
    assert cut.clipped > 0.1 and cut.values_N.max() == 1.0 and cut.mean < weights.mean
    nothing = weigh(np.zeros(5), np.full(5, 0.5))
    assert nothing.effective_size == 0.0 and np.isnan(snips(np.ones(5), nothing.values_N).mean)


def test_clusters_widen_the_interval() -> None:
    log = simulate(2000, 4)
    weights = weigh(log.targets, log.propensities).values_N
    rewards, repeated = np.repeat(log.rewards, 8), np.repeat(weights, 8)
    clusters = np.repeat(np.arange(2000), 8)
    plain, clustered = ips(rewards, repeated), ips(rewards, repeated, clusters=clusters)
    alone = ips(log.rewards, weights)
    assert clustered.mean == pytest.approx(alone.mean)
    assert clustered.high - clustered.low == pytest.approx(alone.high - alone.low, rel=0.1)
    assert plain.high - plain.low < 0.5 * (clustered.high - clustered.low)


@pytest.mark.parametrize(
    ("targets", "propensities", "words"),
    [
        ([0.5, 0.5], [0.5, 0.0], "propensity of row 1 is 0.0"),
        ([0.5, 0.5], [np.nan, 0.5], "propensity of row 0 is nan"),
        ([0.5, 0.5], [0.5, 1.5], "propensity of row 1 is 1.5"),
        ([0.5, -0.1], [0.5, 0.5], "target of row 1 is -0.1"),
        ([0.5], [0.5, 0.5], r"\(1,\) targets for \(2,\)"),
        ([], [], "no rows"),
    ],
)
def test_what_identifies_nothing_is_refused(targets: list[float], propensities: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        weigh(np.array(targets), np.array(propensities))


def even(num_rows: int, seed: int) -> Log:
    """A log that shows every action alike."""
    log = simulate(num_rows, seed)
    random = np.random.default_rng(seed + 1)
    actions = random.integers(0, NUM_ACTIONS, num_rows)
    return log._replace(
        actions=actions,
        rewards=(random.random(num_rows) < log.rates[log.contexts, actions]).astype(np.float64),
        propensities=np.full(num_rows, 1.0 / NUM_ACTIONS),
    )


def test_matched_first_impressions_are_what_the_other_ranking_earns() -> None:
    log = even(40_000, 3)
    for ranking in (log.rates, -log.rates):  # the best first, and the worst first
        first = ranking.argmax(axis=1)[log.contexts]
        truth = float(log.rates[np.arange(NUM_CONTEXTS), ranking.argmax(axis=1)][log.contexts].mean())
        found = matched_first(log.rewards, log.actions, first, log.propensities)
        assert found.rate.low < truth < found.rate.high and found.rate.high - found.rate.low < 0.06
        assert found.num_matched == pytest.approx(40_000 / NUM_ACTIONS, rel=0.1)
        assert found.rate.mean == pytest.approx(found.num_rewards / found.num_matched)
        # A policy that is certain, estimated by its probabilities.
        certain = weigh((log.actions == first).astype(np.float64), log.propensities)
        assert found.rate == pytest.approx(snips(log.rewards, certain.values_N))


def test_a_policy_that_draws_matches_as_its_probabilities_say() -> None:
    log = even(4_000, 5)
    probabilities = log.policy[log.contexts]
    random = np.random.default_rng(8)
    rates = []
    for _ in range(40):
        first = (random.random(4_000)[:, None] > probabilities.cumsum(axis=1)).sum(axis=1)
        rates.append(matched_first(log.rewards, log.actions, first, log.propensities).rate.mean)
    weights = weigh(probabilities[np.arange(4_000), log.actions], log.propensities)
    assert np.mean(rates) == pytest.approx(snips(log.rewards, weights.values_N).mean, abs=0.01)


def test_matching_needs_an_even_log() -> None:
    log = simulate(50, 1)
    with pytest.raises(ValueError, match="expected a log that shows every item alike"):
        matched_first(log.rewards, log.actions, log.actions, log.propensities)
    with pytest.raises(ValueError, match="50 rewards, 49 shown"):
        matched_first(log.rewards, log.actions[1:], log.actions, log.propensities)
    nothing = matched_first(log.rewards, log.actions, log.actions + 99, np.full(50, 0.2))
    assert nothing.num_matched == 0 and np.isnan(nothing.rate.mean)
