"""Searches by 1-bit codes with a depth, rotated codes, and what snapshots keep of both."""

import json

import numpy as np
import pytest

from index.boosts import Boost
from index.config import IndexConfig
from index.hits import Hits
from index.live import LiveIndex
from index.planner import Costs
from index.recall import RecallSample, count_found
from index.tree import Range
from tests.index.test_codes_alone import DIM, N, best, fill

KINDS = ["rotated_sign", "sign_oporp"]


@pytest.fixture
def vectors():
    return np.random.default_rng(3).standard_normal((N, DIM)).astype(np.float32) + 0.2


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_depth_answers_the_best_of_what_the_codes_keep(kind, backend, vectors):
    index = fill(vectors[:900], signs=kind, backend=backend)
    query = vectors[5]
    everything = index.search(query, 20)
    assert everything.exact and everything.recall is None
    hits = index.search(query, 20, depth=200)
    assert not hits.exact and "signs" in hits.strategy and hits.num_matched == 900
    _, scores = best(vectors[:900], query, 900, None)
    of_key = dict(zip(best(vectors[:900], query, 900, None)[0].tolist(), scores.tolist(), strict=True))
    assert hits.scores[0] == pytest.approx([of_key[key] for key in hits.keys[0].tolist()], rel=1e-6)
    assert index.search(query, 20, depth=900).keys.tolist() == everything.keys.tolist()
    assert index.search(query, 20, depth=900).exact  # nothing to leave out


def test_more_depth_finds_more_and_rotated_signs_most(vectors):
    queries = vectors[:40]
    found = {}
    for kind in KINDS:
        index = fill(vectors, signs=kind, sign_bits=128)
        exact = index.search(queries, 10)
        for depth in (20, 300):
            index.costs = Costs(batch=1e9)  # as if no pass for several queries were there to prefer
            hits = index.search(queries, 10, depth=depth)
            assert not hits.exact
            found[kind, depth] = np.mean([*map(np.isin, exact.keys, hits.keys)])
    assert found["rotated_sign", 20] < found["rotated_sign", 300] > 0.97
    assert found["sign_oporp", 20] < found["sign_oporp", 300] < found["rotated_sign", 300]


def test_filters_that_list_their_matches_stay_exact(vectors):
    index = fill(vectors, signs="rotated_sign")
    tree = Range(field="year", gte=3, lt=4)
    hits = index.search(vectors[0], 10, tree, depth=50)
    assert hits.exact and hits.recall is None
    assert hits.keys[0].tolist() == best_of(vectors, vectors[0], 3)


def best_of(vectors, query, year):
    keys = np.arange(year, len(vectors), 10)
    scores = vectors[keys].astype(np.float64) @ query.astype(np.float64)
    return keys[np.argsort(-scores)][:10].tolist()


def test_exclusions_and_boosts_hold_with_a_depth(vectors):
    index = fill(vectors, signs="rotated_sign")
    query = vectors[9]
    first = index.search(query, 10, depth=100).keys[0]
    second = index.search(query, 10, exclude=first, depth=100)
    assert not np.isin(second.keys, first).any() and (second.keys >= 0).all()
    mine = index.search(query, 10, excludes=[first[:3]], depth=100)
    assert not np.isin(mine.keys, first[:3]).any()
    boosted = index.search(query, 10, boosts=[Boost(Range(field="year", gte=7, lt=8), 1e3)], depth=100)
    assert (boosted.keys[0] % 10 == 7).all() and not boosted.exact


def test_recall_is_measured_beside_the_searches(vectors):
    index = fill(vectors, signs="rotated_sign", recall_every=2, recall_window=3)
    values = []
    for query in vectors[:12]:
        hits = index.search(query, 10, depth=60)
        values.append((hits.recall, hits.recall_samples))
        index._searcher.recall.wait()
    assert values[0] == (None, 0) and values[1][1] == 1 and values[-1][1] == 3  # every other one, the last three
    assert all(0.3 < recall <= 1 for recall, _ in values[1:])
    wide = fill(vectors, signs="rotated_sign", recall_every=1)
    for query in vectors[:5]:
        wide.search(query, 10, depth=2900)
        wide._searcher.recall.wait()
    assert wide.search(vectors[0], 10, depth=2900).recall == 1.0


def test_without_vectors_recall_is_of_what_all_codes_would_answer(vectors):
    index = fill(vectors, signs="rotated_sign", store_vectors=False, recall_every=1)
    index.search(vectors[0], 10, depth=2900)
    index._searcher.recall.wait()
    hits = index.search(vectors[0], 10, depth=2900)
    assert hits.recall == 1.0 and hits.recall_samples >= 1 and not hits.exact
    assert index.search(vectors[0], 10).recall is None


def test_counting_what_was_found():
    def hits(keys, scores):
        return Hits(
            keys=np.array(keys),
            scores=np.array(scores, np.float32),
            exact=False,
            num_matched=9,
            num_scanned=0,
            num_rescored=0,
            strategy="",
        )

    exact = hits([[1, 2, 3], [4, -1, -1]], [[3.0, 2.0, 1.0], [5.0, -np.inf, -np.inf]])
    assert count_found(exact, exact) == (4, 4)
    assert count_found(hits([[1, 9, 8], [7, -1, -1]], [[3.0, 1.0, 0.5], [4.0, -np.inf, -np.inf]]), exact) == (2, 4)
    assert RecallSample(1, 1).read() == (None, 0)


@pytest.mark.parametrize("kind", [*KINDS, None])
@pytest.mark.parametrize("stored", [True, False])
def test_snapshots_and_compaction_keep_the_frame(kind, stored, vectors, tmp_path, monkeypatch):
    monkeypatch.setattr("index.upkeep.MIN_COMPACT_ROWS", 100)
    index = fill(vectors, signs=kind, rotate=True, store_vectors=stored, seed=11)
    index.delete(np.arange(0, N, 2))
    index.maintain()
    depth = None if kind is None else 40
    before = index.search(vectors[7], 15, depth=depth)
    info = index.snapshot(tmp_path, {})
    assert (info.path / "rotation.npy").exists() and (info.path / "projection.npy").exists() == (kind is not None)
    opened, _ = LiveIndex.open_newest(tmp_path)
    assert opened.config.rotate and opened.config.signs == kind
    after = opened.search(vectors[7], 15, depth=depth)
    assert after.keys.tolist() == before.keys.tolist() and after.scores.tolist() == before.scores.tolist()
    opened.upsert([10**6], vectors[7:8] * 2, [{}])
    assert opened.search(vectors[7], 1, depth=depth).keys[0, 0] == 10**6


def test_a_snapshot_without_its_rotation_is_refused(vectors, tmp_path):
    info = fill(vectors[:100], rotate=True).snapshot(tmp_path, {})
    assert json.loads((info.path / "manifest.json").read_text())["manifest"]["rotate"] is True
    (info.path / "rotation.npy").unlink()
    with pytest.raises(Exception, match=r"rotation\.npy"):
        LiveIndex.open_newest(tmp_path)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("codes", ["int8", "int4"])
def test_rotated_codes_are_exact(codes, backend, vectors):
    vectors = vectors[: 3000 if backend == "cpu" else 600].copy()
    vectors[:, 3] *= 1e4
    index = fill(vectors, codes=codes, backend=backend, rotate=True)
    queries = np.random.default_rng(4).standard_normal((5, DIM)).astype(np.float32)
    together = index.search(queries, 20)
    assert together.exact
    for query, keys in zip(queries, together.keys, strict=True):
        assert index.search(query, 20).keys[0].tolist() == keys.tolist() == best(vectors, query, 20, None)[0].tolist()


def test_rotation_spreads_a_large_dimension(vectors):
    vectors = vectors.copy()
    vectors[:, 3] *= 30.0
    queries = np.random.default_rng(4).standard_normal((20, DIM)).astype(np.float32)
    queries[:, 3] = 0.0
    rescored = [fill(vectors, codes="int4", rotate=rotate).search(queries, 5).num_rescored for rotate in (False, True)]
    assert rescored[1] < 0.6 * rescored[0]


def test_without_vectors_rotated_backends_agree(vectors):
    found = [
        fill(vectors[:500], rotate=True, store_vectors=False, backend=backend).search(vectors[:3], 10)
        for backend in ("cpu", "serial", "reference")
    ]
    assert all((each.keys == found[0].keys).all() and (each.scores == found[0].scores).all() for each in found)
    decoded, _ = fill(vectors, rotate=True, store_vectors=False).vectors(np.arange(N))
    assert np.abs(decoded - vectors).max() < 0.05


def test_what_does_not_fit_is_refused(vectors):
    index = fill(vectors[:100], signs="rotated_sign")
    with pytest.raises(ValueError, match="depth = 5, expected k = 10 to"):
        index.search(vectors[0], 10, depth=5)
    with pytest.raises(ValueError, match="no 1-bit codes"):
        fill(vectors[:100]).search(vectors[0], 10, depth=50)
    for options, message in (
        ({"signs": "sign"}, "signs = 'sign', expected None or one of"),
        ({"sign_bits": 65}, "sign_bits = 65, expected a multiple of 64"),
        ({"recall_every": 0}, "recall_every = 0"),
    ):
        with pytest.raises(ValueError, match=message):
            fill(vectors[:1], **options)
    with pytest.raises(ValueError, match="rotate with dim = 4096, expected at most 2048"):
        fill(np.zeros((1, 4096), np.float32), rotate=True)


def test_warming_up_measures_what_1_bit_codes_cost():
    vectors = np.random.default_rng(0).standard_normal((17_000, 8)).astype(np.float32)
    index = LiveIndex(IndexConfig(dim=8, signs="rotated_sign"))
    index.upsert(np.arange(len(vectors)), vectors, [{}] * len(vectors))
    index.warm_up()
    assert index.costs_from == "measured" and index.costs.signs not in (0.0, Costs().signs)
    assert index.search(vectors[3], 5, depth=400).keys[0, 0] >= 0
