import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.config import IndexConfig
from index.filter import parse_filter
from index.heads import search_heads
from index.live import LiveIndex
from tests.index.worlds import SCHEMA, exact_score


def make_index(rng, num_items=200, dim=6, *, whole=False):
    vectors = rng.integers(-2, 3, (num_items, dim)) if whole else rng.standard_normal((num_items, dim))
    index = LiveIndex(IndexConfig(dim=dim, schema=SCHEMA))
    keys = np.arange(num_items, dtype=np.int64) * 3
    index.upsert(keys, vectors, [{"year": int(key)} for key in keys])
    return index, dict(zip(keys.tolist(), vectors.astype(np.float32), strict=True))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 40), st.data())
def test_merge_equals_the_maximum_over_all_items(seed, num_heads, k, data):
    rng = np.random.default_rng(seed)
    index, vectors = make_index(rng, int(rng.integers(1, 120)))
    queries = rng.standard_normal((num_heads, 6)).astype(np.float32)
    quotas = data.draw(st.lists(st.integers(0, k // num_heads), min_size=num_heads, max_size=num_heads))
    merged = search_heads(index, queries, k, quotas=quotas)
    score_of = {key: [exact_score(query, vector) for query in queries] for key, vector in vectors.items()}
    best = sorted(score_of, key=lambda key: (-max(score_of[key]), key))
    keys = merged.keys.tolist()
    assert len(keys) == len(set(keys)) == min(k, len(best))
    for key, score, head in zip(keys, merged.scores, merged.best_head, strict=True):
        assert score == np.float32(max(score_of[key])) == np.float32(score_of[key][head])
    assert (np.diff(merged.scores) <= 0).all()
    for head, quota in enumerate(quotas):
        own = sorted(score_of, key=lambda key, head=head: (-score_of[key][head], key))
        assert len(set(keys) & set(own[:k])) >= min(quota, len(own))
        assert (merged.found_by[:, head] == np.isin(keys, own[:k])).all()
    if not any(quotas):
        assert keys == best[:k]


def test_quotas_keep_places_for_a_head_that_the_maximum_would_drown():
    index, _ = make_index(np.random.default_rng(1))
    loud, quiet = np.ones(6, np.float32) * 100, np.ones(6, np.float32) * -0.01
    quiet_best = index.search(quiet, 3).keys[0].tolist()
    without = search_heads(index, [loud, quiet], 10)
    assert not set(quiet_best) & set(without.keys.tolist())
    kept = search_heads(index, [loud, quiet], 10, quotas=[0, 3])
    assert set(quiet_best) <= set(kept.keys.tolist()) and kept.keys.size == 10
    assert kept.keys[:7].tolist() == without.keys[:7].tolist()


def test_heads_that_share_their_best_bring_different_items():
    index, _ = make_index(np.random.default_rng(2))
    query = np.ones(6, np.float32)
    merged = search_heads(index, [query, query], 6, quotas=[3, 3])
    assert merged.keys.tolist() == index.search(query, 6).keys[0].tolist()
    assert merged.found_by.all() and (merged.best_head == 0).all()


def test_one_head_is_a_plain_search_ties_included():
    index, _ = make_index(np.random.default_rng(3), whole=True)
    query = np.array([1, 1, 0, 0, -1, 2], np.float32)
    assert search_heads(index, query, 50).keys.tolist() == index.search(query, 50).keys[0].tolist()


def test_filter_and_exclusions_hold_for_every_head():
    index, _ = make_index(np.random.default_rng(4))
    tree = parse_filter("year < 90", SCHEMA)
    merged = search_heads(index, np.eye(3, 6), 100, filter=tree, exclude=[0, 3])
    assert sorted(merged.keys.tolist()) == list(range(6, 90, 3))
    assert search_heads(index, np.eye(3, 6), 5, filter=parse_filter("year < 0", SCHEMA)).keys.size == 0


@pytest.mark.parametrize("quotas", [[1], [1, -1], [4, 2]])
def test_quotas_that_cannot_be_are_named(quotas):
    index, _ = make_index(np.random.default_rng(5), 5)
    with pytest.raises(ValueError, match="quotas"):
        search_heads(index, np.eye(2, 6), 5, quotas=quotas)
