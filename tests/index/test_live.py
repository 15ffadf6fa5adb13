import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import index.code_column as code_column
import index.key_map as key_map
import index.sorted_rows as sorted_rows
import index.upkeep as upkeep
from index.attributes import AttributeSchema
from index.filter import parse_filter
from index.live import IndexConfig, LiveIndex
from index.planner import Costs
from tests.index.worlds import SCHEMA, attributes, best_items, filters, listed

DIM = 5
KEYS = st.integers(-(2**63), 2**63 - 1).filter(lambda key: key != -1)
NUM_KEYS = 24
SMALL_KEYS = st.integers(0, NUM_KEYS - 1)
vectors = st.lists(st.sampled_from([0.0, 1.0, -1.0, 0.5, 3.0, 1e-3, -2.5]), min_size=DIM, max_size=DIM).map(
    lambda values: np.array(values, np.float32)
)

NEVER = 1e18
GATHER = Costs(gather=0.0)
COMPACT = Costs(compact=0.0, gather=NEVER, batch=NEVER)
STREAM = Costs(compact=NEVER, gather=NEVER, batch=NEVER)
BATCH = Costs(batch=0.0, batch_query=0.0, gather=NEVER)


def make_index(**options):
    settings_ = {"dim": DIM, "schema": SCHEMA, "signals": ("hour", "day"), "capacity": 64}
    return LiveIndex(IndexConfig(**(settings_ | options)))


class Catalogue(RuleBasedStateMachine):
    """An index against a dict: every read equals the definition, after any sequence of writes."""

    @initialize(backend=st.sampled_from(["serial", "cpu", "reference"]))
    def start(self, backend):
        self.index = make_index(backend=backend)
        self.items = {}
        self.signals = {}

    @rule(batch=st.lists(st.tuples(SMALL_KEYS, vectors, attributes), min_size=1, max_size=25))
    def upsert(self, batch):
        keys = np.array([key for key, _, _ in batch], np.int64)
        self.index.upsert(keys, np.stack([vector for _, vector, _ in batch]), [each for _, _, each in batch])
        for key, vector, each in batch:
            self.items[key] = (vector, each)
            self.signals.setdefault(key, np.zeros(2))

    @rule(keys=st.lists(SMALL_KEYS, max_size=12))
    def delete(self, keys):
        there = {key for key in keys if key in self.items}
        assert self.index.delete(np.array(keys, np.int64)) == len(there)
        for key in there:
            del self.items[key], self.signals[key]

    @rule(changes=st.lists(st.tuples(SMALL_KEYS, st.integers(-3, 9), st.integers(-3, 9)), min_size=1, max_size=20))
    def add_signals(self, changes):
        keys = np.array([key for key, _, _ in changes], np.int64)
        ignored = self.index.add_signals(keys, np.array([[a, b] for _, a, b in changes], np.float64))
        assert ignored == sum(key not in self.items for key, _, _ in changes)
        for key, a, b in changes:
            if key in self.items:
                self.signals[key] = self.signals[key] + [a, b]

    @rule(key=SMALL_KEYS, value=st.integers(-3, 9))
    def set_signals(self, key, value):
        assert self.index.set_signals(np.array([key]), np.full((1, 2), float(value))) == (key not in self.items)
        if key in self.items:
            self.signals[key] = np.full(2, float(value))

    @rule(kept_up=st.booleans())
    def maintain(self, kept_up):
        """All pending work now, or no more of it beside the writes from here on."""
        if kept_up:
            self.index.maintain()
            assert not self.index._upkeep.is_due
        else:
            self.index.close()

    @rule(factor=st.sampled_from([0.5, 2.0, 0.0]))
    def rescale(self, factor):
        self.index.rescale_signals(np.array([factor, 1.0]))
        for key in self.signals:
            self.signals[key] = self.signals[key] * [factor, 1.0]

    @rule(
        query=vectors,
        k=st.integers(1, 70),
        tree=st.none() | filters,
        exclude=st.none() | st.lists(SMALL_KEYS, max_size=20),
        costs=st.sampled_from([GATHER, COMPACT, STREAM, BATCH]),
    )
    def search(self, query, k, tree, exclude, costs):
        self.index.costs = costs
        hits = self.index.search(query, k, tree, None if exclude is None else np.array(exclude, np.int64))
        left_out = exclude or ()
        assert hits.exact
        assert listed(hits) == best_items(query, self.items, k, tree, left_out)
        matched = [key for key, (_, each) in self.items.items() if tree is None or tree.matches(each)]
        assert hits.num_matched == len(set(matched) - set(left_out))
        assert self.index.count(tree) == len(matched)

    @rule(
        queries=st.lists(st.tuples(vectors, st.none() | filters), min_size=1, max_size=6),
        k=st.integers(1, 40),
        costs=st.sampled_from([GATHER, COMPACT, STREAM, BATCH, Costs()]),
    )
    def search_with_a_filter_each(self, queries, k, costs):
        self.index.costs = costs
        query_BD, trees = np.stack([query for query, _ in queries]), [tree for _, tree in queries]
        hits = self.index.search(query_BD, k, filters=trees)
        for place, (query, tree) in enumerate(queries):
            assert listed(hits, place) == best_items(query, self.items, k, tree)
            assert hits.matched_per_query[place] == self.index.count(tree)
        assert hits.num_matched == sum(hits.matched_per_query)

    @rule(k=st.integers(1, 70), tree=st.none() | filters, exclude=st.lists(SMALL_KEYS, max_size=5))
    def search_signal(self, k, tree, exclude):
        hits = self.index.search_signal("day", k, tree, np.array(exclude, np.int64))
        matched = [
            key for key, (_, each) in self.items.items() if key not in exclude and (tree is None or tree.matches(each))
        ]
        expected = sorted(matched, key=lambda key: (-self.signals[key][1], key))[:k]
        assert listed(hits) == [(key, self.signals[key][1]) for key in expected]

    @invariant()
    def holds_the_same_items(self):
        if not hasattr(self, "index"):
            return
        keys = np.arange(NUM_KEYS)
        assert self.index.num_items == len(self.items)
        assert self.index.keys().tolist() == sorted(self.items)
        found_vectors, found = self.index.vectors(keys)
        found_signals = self.index.signals(keys)
        for key, values in zip(keys.tolist(), self.index.attributes(keys), strict=True):
            assert (key in self.index) == (key in self.items) == found[key]
            if key not in self.items:
                assert values is None
                assert not found_vectors[key].any() and not found_signals[key].any()
                continue
            vector, given_attributes = self.items[key]
            assert (found_vectors[key] == vector).all()
            assert (found_signals[key] == self.signals[key]).all()
            expected = {name: value for name, value in given_attributes.items() if value != []}
            if "genre" in expected:
                expected["genre"] = list(dict.fromkeys(expected["genre"]))
            assert values == expected


@pytest.fixture(autouse=True, scope="module")
def _soon():
    """Centre the codes, make planes and grow early, so that small catalogues go through all of it."""
    small = {"MEAN_ROWS": 12, "MIN_COMPACT_ROWS": 16, "COMPACT_ROWS": 64, "CATCH_UP_ROWS": 3, "MIN_AHEAD_ROWS": 1}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in small.items():
            patch.setattr(upkeep, name, value)
        patch.setattr(code_column, "MIN_PLANE_ROWS", 6)
        patch.setattr(code_column, "MIN_POOL_CODES", 8)
        patch.setattr(key_map, "MIN_AHEAD_SLOTS", 64)
        patch.setattr(sorted_rows, "MIN_RECENT_ROWS", 8)
        yield


Catalogue.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestCatalogue = Catalogue.TestCase


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_search_over_many_rows_equals_the_definition(data):
    """Hundreds of rows: growth, planes and rare values, both scan strategies, several queries of one call."""
    seed = data.draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    num_items, dim = int(rng.integers(1, 700)), int(rng.integers(1, 40))
    kinds = data.draw(st.lists(attributes, min_size=1, max_size=12))
    index = LiveIndex(IndexConfig(dim=dim, schema=SCHEMA, capacity=64))
    items = {}
    values = rng.standard_normal((num_items, dim)) if seed % 2 else rng.integers(-2, 3, (num_items, dim))
    for start in range(0, num_items, 150):
        chosen = values[start : start + 150].astype(np.float32)
        keys = np.unique(rng.integers(-1000, 1000, len(chosen)) * 2)
        chosen, each = chosen[: keys.size], [kinds[i] for i in rng.integers(len(kinds), size=keys.size)]
        index.upsert(keys, chosen, each)
        items |= {int(key): pair for key, pair in zip(keys, zip(chosen, each, strict=True), strict=True)}
    queries = rng.standard_normal((3, dim)).astype(np.float32)
    for tree in [None, *data.draw(st.lists(filters, min_size=1, max_size=4))]:
        k = int(rng.choice([1, 7, 100, 1000]))
        hits = index.search(queries, k, tree)
        for place, query in enumerate(queries):
            assert listed(hits, place) == best_items(query, items, k, tree)


def test_any_keys_are_served():
    index = make_index()
    keys = np.array([-(2**63), 2**63 - 1, 0, -2], np.int64)
    index.upsert(keys, np.ones((4, DIM)), [{}] * 4)
    assert index.search(np.ones(DIM), 4).keys.tolist() == [sorted(keys.tolist())]


def test_the_last_of_a_key_given_twice_counts():
    index = make_index()
    index.upsert([7, 8, 7], np.diag([1.0, 2, 3, 0, 0])[:3], [{"year": 1}, {"year": 2}, {"year": 3}])
    assert index.num_items == 2
    assert index.attributes([7]) == [{"year": 3}]


def test_rejected_writes_change_nothing():
    index = make_index()
    index.upsert([1], np.ones((1, DIM)), [{"year": 1}])
    bad = np.ones((2, DIM))
    bad[1, 2] = np.nan
    for keys, rows, values, message in [
        ([5, 6], bad, [{}, {}], "vector of key 6: holds nan or inf"),
        ([5, 6], bad * 1e300, [{}, {}], "vector of key 5: holds nan or inf"),
        ([5, 6], np.ones((2, DIM + 1)), [{}, {}], r"expected \[2, 5\]"),
        ([5, 6], np.ones((2, DIM)), [{}], "1 attribute mappings for 2 keys"),
        ([5, 6], np.ones((2, DIM)), [{}, {"year": "x"}], "key 6: attribute 'year'"),
        ([5, -1], np.ones((2, DIM)), [{}, {}], "key -1"),
        ([5.0, 6.0], np.ones((2, DIM)), [{}, {}], "keys: float64"),
    ]:
        with pytest.raises(ValueError, match=message):
            index.upsert(keys, rows, values)
    assert index.keys().tolist() == [1]
    with pytest.raises(ValueError, match="signals of key 1"):
        index.add_signals([1], [[np.inf, 0]])
    with pytest.raises(ValueError, match="shape"):
        index.set_signals([1], [[1.0]])
    with pytest.raises(ValueError, match="factors"):
        index.rescale_signals([1.0])


def test_wrong_reads_are_named():
    index = make_index()
    for call, message in [
        (lambda: index.search(np.ones(DIM + 1), 3), "query: shape"),
        (lambda: index.search([np.inf] * DIM, 3), "nan or inf"),
        (lambda: index.search(np.ones(DIM), 0), "k = 0"),
        (lambda: index.search(np.ones(DIM), 2**40), "k = "),
        (lambda: index.search(np.ones((2, DIM)), 3, filters=[None]), "1 filters for 2 queries"),
        (lambda: index.search_signal("week", 3), r"'week'.*\['hour', 'day'\]"),
        (lambda: IndexConfig(dim=0), "dim = 0"),
        (lambda: IndexConfig(dim=2, signals=("a", "a")), "twice"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    other = AttributeSchema()
    bare = LiveIndex(IndexConfig(dim=DIM, schema=other))
    bare.upsert([1], np.ones((1, DIM)), [{}])
    with pytest.raises(ValueError, match="filter on 'year'"):
        bare.search(np.ones(DIM), 1, parse_filter("year = 1", SCHEMA))


def test_an_empty_index_answers():
    index = make_index()
    hits = index.search(np.ones((2, DIM)), 3)
    assert hits.keys.tolist() == [[-1] * 3] * 2 and hits.num_matched == 0 and hits.strategy == "empty"
    assert listed(index.search_signal("day", 2)) == []
    assert index.signals([5]).tolist() == [[0, 0]]
    assert index.delete([5]) == 0


def test_the_plan_is_told():
    index = make_index()
    rng = np.random.default_rng(0)
    index.upsert(np.arange(2000), rng.standard_normal((2000, DIM)), [{"year": key % 100} for key in range(2000)])
    few = index.search(np.ones(DIM), 10, parse_filter("year = 3", SCHEMA))
    assert (few.strategy, few.num_matched, few.num_scanned, few.num_rescored) == ("gather", 20, 0, 20)
    many = index.search(np.ones(DIM), 10)
    assert (many.strategy, many.num_matched, many.num_scanned) == ("stream", 2000, 2000)
    assert 10 <= many.num_rescored < 200


def test_queries_share_a_pass_where_that_is_cheaper():
    index = make_index()
    rng = np.random.default_rng(0)
    index.upsert(np.arange(2000), rng.standard_normal((2000, DIM)), [{"year": key % 100} for key in range(2000)])
    queries = rng.standard_normal((16, DIM)).astype(np.float32)
    together = index.search(queries, 10)
    assert together.strategy == "batch" and together.num_scanned == 16 * 2000
    alone = [index.search(query, 10) for query in queries]
    assert together.keys.tolist() == [hits.keys[0].tolist() for hits in alone]
    assert together.scores.tolist() == [hits.scores[0].tolist() for hits in alone]
    few, most = parse_filter("year = 3", SCHEMA), parse_filter("year != 3", SCHEMA)
    mixed = index.search(queries, 10, filters=[few, most, None, few] * 4)
    assert mixed.strategy == "batch+gather"
    assert mixed.matched_per_query == (20, 1980, 2000, 20) * 4


def test_costs_are_measured_where_there_are_rows():
    index = make_index()
    index.warm_up()
    assert index.costs == Costs()
    rng = np.random.default_rng(0)
    index.upsert(np.arange(20_000), rng.standard_normal((20_000, DIM)), [{}] * 20_000)
    index.warm_up()
    assert index.costs != Costs()
    assert index.costs.gather > index.costs.compact >= 0 and index.costs.start > 0
    assert index.search(np.ones(DIM), 3).exact


def test_warm_up_changes_nothing():
    index = make_index()
    index.warm_up()
    assert index.num_items == 0


def test_freed_rows_are_used_again():
    index = make_index()
    for round_ in range(200):
        index.upsert(np.arange(20), np.full((20, DIM), float(round_)), [{}] * 20)
    assert index._state.arrays.capacity == 64
    assert index.search(np.ones(DIM), 1).scores[0, 0] == 199 * DIM


def test_a_new_item_in_a_used_row_starts_without_signals():
    index = make_index()
    for key in range(200):
        index.upsert([key], np.ones((1, DIM)), [{"genre": ["a"], "year": key}])
        assert not index.signals([key]).any()
        index.add_signals([key], [[3.0, 4.0]])
        index.delete([key])
    assert index._state.arrays.capacity == 64


def test_a_deleted_item_comes_back_without_signals():
    index = make_index()
    index.upsert([1], np.ones((1, DIM)), [{}])
    index.add_signals([1], [[3.0, 4.0]])
    index.upsert([1], np.zeros((1, DIM)), [{}])
    assert index.signals([1]).tolist() == [[3.0, 4.0]]
    index.delete([1])
    index.upsert([1], np.ones((1, DIM)), [{}])
    assert index.signals([1]).tolist() == [[0.0, 0.0]]


def test_without_numba_the_reference_answers():
    code = """
import sys
sys.modules["numba"] = None
import numpy as np
from index.live import IndexConfig, LiveIndex
from index.planner import Costs
index = LiveIndex(IndexConfig(dim=2, signals=("n",)))
index.upsert([3, 4], [[1, 0], [0, 1]], [{}, {}])
index.add_signals([4], [[1.0]])
hits = index.search([0, 2.0], 3)
assert hits.keys.tolist() == [[4, 3, -1]] and hits.scores.tolist()[0][:2] == [2, 0], hits
assert (hits.strategy, hits.num_scanned, hits.num_rescored) == ("gather", 0, 2)
assert index.search_signal("n", 1).keys.tolist() == [[4]]
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_a_reader_keeps_its_moment():
    """Rows that a reader may see are not written again until it left."""
    index = make_index()
    index.upsert(np.arange(30), np.zeros((30, DIM)), [{}] * 30)
    with index._state.reading(np.arange(30)) as view:
        before = view.arrays.vector_ND[view.row_M].copy()
        for round_ in range(1, 20):
            index.upsert(np.arange(30), np.full((30, DIM), float(round_)), [{"year": round_}] * 30)
        assert (view.arrays.vector_ND[view.row_M] == before).all()
        assert (view.arrays.key_N[view.row_M] == np.arange(30)).all()
    index.maintain()
    capacity = index._state.arrays.capacity
    for round_ in range(50):
        index.upsert(np.arange(30), np.full((30, DIM), float(round_)), [{}] * 30)
    assert index._state.arrays.capacity == capacity


def test_a_batch_and_its_offset_go_together():
    index = make_index()
    with index.applying("items", "5-0"):
        index.upsert([1], np.ones((1, DIM)), [{}])
    with pytest.raises(RuntimeError), index.applying("items", "6-0"):
        raise RuntimeError
    assert index.offsets == {"items": "5-0"}


def test_one_writer_at_a_time():
    index = make_index()

    def write(start):
        for step in range(100):
            index.upsert([start + step], np.full((1, DIM), 1.0), [{"studio": str(step)}])
            index.add_signals([start + step], [[1.0, 2.0]])

    threads = [threading.Thread(target=write, args=(1000 * place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert index.num_items == 400
    assert (index.signals(index.keys()) == [1.0, 2.0]).all()
    assert index.count(parse_filter("studio = '7'", SCHEMA)) == 4
