"""Indexes with int4 codes, and without vectors: what they answer, what they keep, and what they come back with."""

import numpy as np
import pytest

from index.attributes import Attribute, AttributeSchema
from index.config import IndexConfig
from index.live import LiveIndex
from index.tree import Range

SCHEMA = AttributeSchema((Attribute("year", "int"),))
FILTERS = (None, Range(field="year", gte=3, lt=6))
N, DIM = 3000, 33


def fill(vectors, **options):
    index = LiveIndex(IndexConfig(dim=vectors.shape[1], schema=SCHEMA, **options))
    for first in range(0, len(vectors), 500):
        keys = np.arange(first, min(first + 500, len(vectors)))
        index.upsert(keys, vectors[keys], [{"year": int(key) % 10} for key in keys])
        index.maintain()
    return index


@pytest.fixture
def vectors():
    return np.random.default_rng(3).standard_normal((N, DIM)).astype(np.float32)


def best(vectors, query, k, tree):
    """Keys and scores by definition."""
    keys = np.arange(len(vectors))
    if tree is not None:
        keys = keys[(keys % 10 >= 3) & (keys % 10 < 6)]
    scores = vectors[keys].astype(np.float64) @ query.astype(np.float64)
    order = np.lexsort((keys, -scores))[:k]
    return keys[order], scores[order]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("codes", ["int8", "int4"])
@pytest.mark.parametrize("tree", FILTERS)
def test_with_vectors_every_code_is_exact(backend, codes, tree, vectors):
    if backend == "reference":
        vectors = vectors[:700]
    index = fill(vectors, codes=codes, backend=backend)
    queries = np.random.default_rng(4).standard_normal((5, DIM)).astype(np.float32)
    together = index.search(queries, 20, tree)
    assert together.exact
    for query, keys in zip(queries, together.keys, strict=True):
        expected, scores = best(vectors, query, 20, tree)
        hits = index.search(query, 20, tree)
        assert hits.keys[0].tolist() == keys.tolist() == expected.tolist()
        assert hits.scores[0] == pytest.approx(scores, rel=1e-6)


@pytest.mark.parametrize("codes", ["int8", "int4"])
@pytest.mark.parametrize("tree", FILTERS)
def test_without_vectors_the_best_by_the_codes_are_found(codes, tree, vectors):
    index = fill(vectors, codes=codes, store_vectors=False)
    decoded, found = index.vectors(np.arange(N))
    assert found.all()
    queries = np.random.default_rng(4).standard_normal((5, DIM)).astype(np.float32)
    together = index.search(queries, 20, tree)
    assert not together.exact
    for query, keys in zip(queries, together.keys, strict=True):
        expected, scores = best(decoded, query, 20, tree)
        hits = index.search(query, 20, tree)
        assert hits.keys[0].tolist() == keys.tolist() == expected.tolist()
        assert hits.scores[0] == pytest.approx(scores, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(("codes", "error", "recall"), [("int8", 0.02, 0.93), ("int4", 0.3, 0.5)])
def test_codes_stand_for_nearly_the_vectors(codes, error, recall, vectors):
    index = fill(vectors, codes=codes, store_vectors=False)
    decoded, _ = index.vectors(np.arange(N))
    assert np.abs(decoded - vectors).max() < error * 2 and np.sqrt(np.square(decoded - vectors).mean()) < error
    query = np.random.default_rng(4).standard_normal(DIM).astype(np.float32)
    shared = set(index.search(query, 100).keys[0].tolist()) & set(best(vectors, query, 100, None)[0].tolist())
    assert len(shared) >= recall * 100


def test_the_backends_agree_on_codes(vectors):
    found = [
        fill(vectors[:500], codes=codes, store_vectors=False, backend=backend).search(vectors[:3], 10)
        for codes in ("int8", "int4")
        for backend in ("cpu", "serial", "reference")
    ]
    for three in (found[:3], found[3:]):
        assert all((each.keys == three[0].keys).all() and (each.scores == three[0].scores).all() for each in three)


@pytest.mark.parametrize("codes", ["int8", "int4"])
@pytest.mark.parametrize("stored", [True, False])
def test_snapshots_and_compaction_keep_them(codes, stored, vectors, tmp_path, monkeypatch):
    monkeypatch.setattr("index.upkeep.MIN_COMPACT_ROWS", 100)
    index = fill(vectors, codes=codes, store_vectors=stored)
    index.delete(np.arange(0, N, 2))
    index.maintain()
    before = index.search(vectors[7], 15)
    index.snapshot(tmp_path, {})
    opened, _ = LiveIndex.open_newest(tmp_path)
    assert opened.config.codes == codes and opened.config.store_vectors == stored
    after = opened.search(vectors[7], 15)
    assert after.keys.tolist() == before.keys.tolist() and after.scores.tolist() == before.scores.tolist()
    opened.upsert([10**6], vectors[7:8] * 2, [{}])
    assert opened.search(vectors[7], 1).keys[0, 0] == 10**6


def test_codes_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="codes = 'int2', expected one of"):
        IndexConfig(dim=2, codes="int2")
