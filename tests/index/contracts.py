"""What every index promises, as tests that run over each implementation.

An index whose hits are not certified (`Hits.exact` False) may differ from the definition only by float32 rounding.
"""

import numpy as np
import pytest

from index.attributes import Attribute, AttributeSchema
from index.config import IndexConfig
from index.filter import parse_filter
from tests.index.worlds import SCHEMA, best_items, exact_score, listed

DIM = 12


def assert_hits(hits, query, items, k, tree=None, exclude=(), place=0):
    """The hits of one query against the definition, or the same score at each place where they are not certified."""
    expected, found = best_items(query, items, k, tree, exclude), listed(hits, place)
    if hits.exact:
        assert found == expected
        return
    assert len(found) == len(expected) and len({key for key, _ in found}) == len(found)
    for (key, score), (_, wanted) in zip(found, expected, strict=True):
        assert key not in exclude and (tree is None or tree.matches(items[key][1]))
        assert score == pytest.approx(exact_score(query, items[key][0]), rel=1e-5, abs=1e-5)
        assert score == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def catalogue(rng, num_items, dim=DIM):
    keys = rng.choice(10**6, num_items, replace=False).astype(np.int64)
    vectors = rng.standard_normal((num_items, dim)).astype(np.float32)
    values = [
        {
            "genre": [str(g) for g in rng.choice(["a", "b", "c"], rng.integers(0, 3))],
            "year": int(rng.integers(1980, 2020)),
        }
        for _ in range(num_items)
    ]
    items = {int(key): (vector, value) for key, vector, value in zip(keys, vectors, values, strict=True)}
    return keys, vectors, values, items


FILTERS = (
    None,
    'genre any_of ["a"]',
    'genre none_of ["a", "b"] and year >= 2000',
    "year < 1985 or not genre exists",
    "year > 3000",
)


class IndexContract:
    """Subclasses give `make`; `can_filter` is False where the index must refuse a filter rather than ignore it."""

    can_filter = True

    def make(self, config):
        raise AssertionError("a subclass gives make")

    @pytest.fixture
    def rng(self):
        return np.random.default_rng(3)

    def filled(self, rng, num_items=700):
        keys, vectors, values, items = catalogue(rng, num_items)
        index = self.make(IndexConfig(dim=DIM, schema=SCHEMA, capacity=64))
        for start in range(0, num_items, 250):
            index.upsert(keys[start : start + 250], vectors[start : start + 250], values[start : start + 250])
        return index, items

    def test_empty_index_answers_nothing(self):
        index = self.make(IndexConfig(dim=DIM))
        hits = index.search(np.ones(DIM), 3)
        assert hits.keys.tolist() == [[-1, -1, -1]] and hits.num_matched == 0
        assert index.keys().size == index.num_items == index.count() == 0

    @pytest.mark.parametrize("k", [1, 10, 699, 1000])
    def test_search_equals_the_definition(self, rng, k):
        index, items = self.filled(rng)
        queries = rng.standard_normal((3, DIM)).astype(np.float32)
        hits = index.search(queries, k)
        assert hits.keys.shape == hits.scores.shape == (3, k) and hits.num_matched == 700
        for place, query in enumerate(queries):
            assert_hits(hits, query, items, k, place=place)

    @pytest.mark.parametrize("text", FILTERS)
    def test_filter_is_exact_or_refused(self, rng, text):
        index, items = self.filled(rng)
        query, tree = rng.standard_normal(DIM).astype(np.float32), parse_filter(text, SCHEMA)
        matched = sum(tree is None or tree.matches(values) for _, values in items.values())
        assert index.count(tree) == matched
        if not self.can_filter and 0 < matched < len(items):
            with pytest.raises(ValueError, match="ignores"):
                index.search(query, 20, tree)
            return
        hits = index.search(query, 20, tree)
        assert hits.num_matched == matched
        assert_hits(hits, query, items, 20, tree)

    def test_excluded_keys_are_not_answered(self, rng):
        if not self.can_filter:
            pytest.skip("refuses exclusions, as the filter test shows")
        index, items = self.filled(rng)
        query = rng.standard_normal(DIM).astype(np.float32)
        seen = index.search(query, 5).keys[0]
        hits = index.search(query, 10, exclude=np.append(seen, -7))
        assert hits.num_matched == 695
        assert_hits(hits, query, items, 10, exclude=set(seen.tolist()))

    def test_writes_are_seen_by_the_next_search(self, rng):
        index, items = self.filled(rng)
        for _ in range(5):
            gone = rng.choice(list(items), 40, replace=False)
            assert index.delete(np.append(gone, 10**7)) == 40
            for key in gone.tolist():
                del items[key]
            keys, vectors, values, fresh = catalogue(rng, 60)
            index.upsert(keys, vectors, values)
            replaced = np.array(list(items)[:30], np.int64)
            index.upsert(replaced, vectors[:30], values[:30])
            items |= fresh
            items |= {k: (v, a) for k, v, a in zip(replaced.tolist(), vectors[:30], values[:30], strict=True)}
            query = rng.standard_normal(DIM).astype(np.float32)
            assert_hits(index.search(query, 25), query, items, 25)
            assert index.keys().tolist() == sorted(items) and len(index) == len(items)

    def test_items_are_read_back_as_written(self, rng):
        index, items = self.filled(rng, 70)
        asked = np.array([*items, -5], np.int64)
        vectors, found = index.vectors(asked)
        assert found.tolist() == [True] * 70 + [False] and not vectors[-1].any()
        assert (vectors[:-1] == np.stack([vector for vector, _ in items.values()])).all()
        attributes = index.attributes(asked)
        assert attributes[-1] is None and [each["year"] for each in attributes[:-1]] == [
            values["year"] for _, values in items.values()
        ]

    def test_ties_go_to_the_lower_key(self):
        index = self.make(IndexConfig(dim=2))
        index.upsert(np.array([9, -4, 7, 2]), np.array([[1, 0], [1, 0], [1, 0], [2, 0]]), [{}] * 4)
        assert index.search([1.0, 0.0], 3).keys.tolist() == [[2, -4, 7]]

    def test_of_a_key_given_twice_the_last_counts(self):
        index = self.make(IndexConfig(dim=1))
        index.upsert(np.array([3, 3]), np.array([[1.0], [2.0]]), [{}, {}])
        assert index.num_items == 1 and index.search([1.0], 2).scores[0, 0] == 2.0

    @pytest.mark.parametrize("scale", [0.0, 1e-44, 1e-20, 1e18])
    def test_extreme_values(self, rng, scale):
        """Zero and denormal vectors, and scores near float32's limits."""
        index = self.make(IndexConfig(dim=DIM))
        vectors = (rng.standard_normal((200, DIM)) * scale).astype(np.float32)
        keys = np.arange(200, dtype=np.int64)
        index.upsert(keys, vectors, [{}] * 200)
        items = {int(key): (vector, {}) for key, vector in zip(keys, vectors, strict=True)}
        query = rng.standard_normal(DIM).astype(np.float32)
        assert_hits(index.search(query, 20), query, items, 20)

    def test_rejected_calls_change_nothing(self, rng):
        index = self.make(IndexConfig(dim=2, schema=AttributeSchema((Attribute("year", "int"),))))
        index.upsert(np.array([1]), np.ones((1, 2)), [{"year": 1}])
        for keys, vectors, values in [
            ([2], [[np.nan, 1]], [{}]),
            ([-1], [[1, 1]], [{}]),
            ([2], [[1, 1, 1]], [{}]),
            ([2], [[1, 1]], []),
            ([2], [[1, 1]], [{"year": "x"}]),
        ]:
            with pytest.raises(ValueError):
                index.upsert(np.array(keys), np.array(vectors), values)
        for query, k in [([1.0], 1), ([np.inf, 0.0], 1), ([1.0, 0.0], 0)]:
            with pytest.raises(ValueError):
                index.search(query, k)
        assert index.keys().tolist() == [1] and index.attributes([1]) == [{"year": 1}]
