"""Weights on top of inner products, against their definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.attributes import Attribute, AttributeSchema
from index.config import IndexConfig
from index.filter import parse_filter
from index.live import Boost, LiveIndex

SCHEMA = AttributeSchema((Attribute("year", "int"), Attribute("tag", "keyword")))
FILTERS = ("year < 3", 'tag any_of ["a"]', "year >= 8 or tag exists", "year > 99")


def fill(vectors, **options):
    index = LiveIndex(IndexConfig(dim=vectors.shape[1], schema=SCHEMA, **options))
    attributes = [{"year": key % 10, **({"tag": "a"} if key % 7 == 0 else {})} for key in range(len(vectors))]
    index.upsert(np.arange(len(vectors)), vectors, attributes)
    index.maintain()
    return index, attributes


def expect(vectors, attributes, query, k, tree, boosts, exclude=()):
    scored = []
    for key, (vector, each) in enumerate(zip(vectors, attributes, strict=True)):
        if key in exclude or (tree is not None and not tree.matches(each)):
            continue
        score = float(query.astype(np.float64) @ vector.astype(np.float64))
        bonus = 0.0
        for boost in boosts:
            bonus += boost.weight if boost.filter.matches(each) else 0.0
        scored.append((-(score + bonus), key))
    return [key for _, key in sorted(scored)[:k]]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_boosted_scores_are_inner_products_plus_weights(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    vectors = rng.integers(-3, 4, (data.draw(st.sampled_from([5, 70, 600])), 4)).astype(np.float32)  # ties abound
    index, attributes = fill(vectors, backend=data.draw(st.sampled_from(["cpu", "reference"])))
    weights = st.sampled_from([-4.0, -0.5, 0.0, 1.0, 2.0, 1e6])
    boosts = [
        Boost(parse_filter(text, SCHEMA), data.draw(weights))
        for text in data.draw(st.lists(st.sampled_from(FILTERS), min_size=1, max_size=3))
    ]
    tree = data.draw(st.sampled_from([None, parse_filter("year < 7", SCHEMA)]))
    exclude = data.draw(st.lists(st.integers(0, 20), max_size=4))
    queries = rng.integers(-2, 3, (3, 4)).astype(np.float32)
    k = data.draw(st.integers(1, 30))
    hits = index.search(queries, k, tree, excludes=[exclude] * 3, boosts=boosts)
    assert hits.exact
    for query, keys in zip(queries, hits.keys, strict=True):
        expected = expect(vectors, attributes, query, k, tree, boosts, exclude)
        assert keys[keys >= 0].tolist() == expected


def test_a_boost_lifts_what_a_plain_search_cuts_off():
    vectors = np.random.default_rng(0).standard_normal((5000, 16)).astype(np.float32)
    index, attributes = fill(vectors)
    boosts = [Boost(parse_filter('tag any_of ["a"]', SCHEMA), 3.5)]
    hits = index.search(vectors[0], 50, boosts=boosts)
    assert hits.keys[0].tolist() == expect(vectors, attributes, vectors[0], 50, None, boosts)
    assert hits.num_matched == 5000
    assert 0 < sum(key % 7 == 0 for key in index.search(vectors[0], 50).keys[0]) < sum(hits.keys[0] % 7 == 0)


def test_a_weight_must_be_finite():
    with pytest.raises(ValueError, match="boost weight nan"):
        Boost(parse_filter("year < 3", SCHEMA), float("nan"))
