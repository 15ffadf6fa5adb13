"""Weights of two opinions: found where the data has them, shrunk where it has not."""

from __future__ import annotations

import json

import numpy as np
import pytest

from models.decoder.blend import Blend, BlendConfig, Weights, bucket_of


def draw(num: int, weights: dict[int, tuple[float, float, float]], seed: int = 0):
    """Candidates whose labels follow the weights of their bucket; members of three candidates."""
    random = np.random.default_rng(seed)
    lengths = random.choice([2, 10, 50, 400], size=num)
    logits, scores = random.normal(0, 1.5, num), random.normal(0, 2.0, num)
    true = np.array([weights[bucket] for bucket in bucket_of(lengths).tolist()])
    chances = 1 / (1 + np.exp(-(true[:, 0] * logits + true[:, 1] * scores + true[:, 2])))
    return logits, scores, lengths, random.random(num) < chances, np.arange(num) // 3


def test_known_weights_are_found_bucket_by_bucket() -> None:
    true = {0: (0.3, 1.0, -0.5), 1: (0.6, 0.7, 0.0), 2: (0.9, 0.4, 0.2), 3: (1.2, 0.1, 0.4)}
    blend = Blend.fit(*draw(80_000, true), config=BlendConfig(shrinkage=1.0, prior=1.0))
    for bucket, weights in true.items():
        assert np.allclose(blend.weights[bucket], weights, atol=0.06)
    assert blend.earned and blend.report is not None
    assert blend.report.gain > 0.01 and blend.report.auc_blend > blend.report.auc_ranker
    assert sum(blend.report.bucket_sizes) == blend.report.num_examples == 80_000


def test_a_bucket_of_few_examples_stays_near_the_pooled_weights() -> None:
    same = (0.8, 0.5, 0.1)
    logits, scores, lengths, labels, members = draw(30_000, dict.fromkeys(range(4), same))
    few = np.flatnonzero(lengths == 2)[20:]
    kept = np.setdiff1d(np.arange(len(labels)), few)
    labels = labels.copy()
    labels[lengths == 2] = scores[lengths == 2] < 0  # the few of them say the opposite
    blend = Blend.fit(logits[kept], scores[kept], lengths[kept], labels[kept], members[kept])
    assert abs(blend.weights[0].score - blend.pooled.score) < 0.15
    assert blend.weights[0].score > 0.0
    empty = lengths[kept] != 2
    rest = Blend.fit(*(column[kept][empty] for column in (logits, scores, lengths, labels, members)))
    assert np.allclose(rest.weights[0], rest.pooled)


def test_a_score_that_adds_nothing_gets_no_weight_and_the_report_says_so() -> None:
    blend = Blend.fit(*draw(6_000, dict.fromkeys(range(4), (1.0, 0.0, 0.0)), seed=2))
    assert blend.report is not None
    if blend.report.gain <= 0.0:
        assert not blend.earned
    assert all(weights.score < 0.03 for weights in blend.weights)
    against = Blend.fit(*draw(6_000, dict.fromkeys(range(4), (1.0, -0.5, 0.0))))
    assert not against.earned and all(weights.score == 0.0 for weights in against.weights)
    assert all(weights.logit > 0.7 for weights in against.weights)


def test_it_reads_back_what_it_wrote_and_refuses_other_documents() -> None:
    logits, scores, lengths, labels, members = draw(3_000, dict.fromkeys(range(4), (0.8, 0.5, 0.1)))
    blend = Blend.fit(logits, scores, lengths, labels, members)
    again = Blend.from_dict(json.loads(json.dumps(blend.to_dict())))
    assert again == blend
    assert np.array_equal(again(logits, scores, lengths), blend(logits, scores, lengths))
    with pytest.raises(ValueError, match="format is 9, expected 1"):
        Blend.from_dict({**blend.to_dict(), "format": 9})
    with pytest.raises(ValueError, match="history_edges"):
        Blend.from_dict({**blend.to_dict(), "history_edges": [1]})


def test_a_members_candidates_are_blended_by_the_members_bucket() -> None:
    weights = (Weights(1, 2, 3), Weights(1, 0, 0), Weights(0, 1, 0), Weights(0, 0, 5))
    blend = Blend(weights, weights[0])
    logits, scores = np.array([1.0, -1.0], np.float32), np.array([0.5, 2.0], np.float32)
    assert blend(logits, scores, 4).tolist() == [5.0, 6.0]
    assert blend(logits, scores, 5).tolist() == [1.0, -1.0]
    assert blend(logits, scores, 99).tolist() == [0.5, 2.0]
    assert blend(logits, scores, np.array([100, 0])).tolist() == [5.0, 6.0]
    assert Blend.ranker_alone()(logits, scores, 7).tolist() == logits.tolist()


def test_what_cannot_be_fitted_is_named() -> None:
    column = np.zeros(4)
    assert not Blend.fit(column, column, np.ones(4, int), np.zeros(4, bool)).earned
    with pytest.raises(ValueError, match="score 2 is nan"):
        Blend.fit(column, np.array([0, 0, np.nan, 0]), np.ones(4, int), np.arange(4) > 1)
    with pytest.raises(ValueError, match="expected one length"):
        Blend.fit(column, column[:3], np.ones(4, int), np.arange(4) > 1)
