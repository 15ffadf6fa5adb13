import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index import exclusions
from index.config import IndexConfig
from index.filter import parse_filter
from index.live import LiveIndex
from tests.index.worlds import SCHEMA, best_items, listed

DIM, NUM_ITEMS = 6, 300
TREES = [None, *(parse_filter(text, SCHEMA) for text in ("year < 4", "year = 2", "year > 90"))]


@pytest.fixture(scope="module")
def items():
    rng = np.random.default_rng(0)
    vectors = rng.integers(-2, 3, (NUM_ITEMS, DIM)).astype(np.float32)  # many ties
    return {key: (vectors[key], {"year": key % 7}) for key in range(NUM_ITEMS)}


@pytest.fixture(scope="module", params=["cpu", "reference"])
def index(request, items):
    index = LiveIndex(IndexConfig(dim=DIM, schema=SCHEMA, backend=request.param))
    vectors, values = zip(*items.values(), strict=True)
    index.upsert(np.arange(NUM_ITEMS), np.stack(vectors), values)
    return index


call = st.tuples(
    st.lists(st.integers(-2, 2), min_size=DIM, max_size=DIM),
    st.sampled_from(TREES),
    st.one_of(st.none(), st.lists(st.integers(0, NUM_ITEMS + 20), max_size=40), st.just(list(range(NUM_ITEMS)))),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(call, min_size=1, max_size=6), st.integers(1, NUM_ITEMS + 5), st.booleans(), st.integers(0, 40))
def test_every_query_has_its_own_exclusions(index, items, calls, k, shared, max_dropped):
    exclude = [5, 17, 5] if shared else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exclusions, "MAX_DROPPED", max_dropped)
        hits = index.search(
            np.array([query for query, _, _ in calls], np.float32),
            k,
            exclude=exclude,
            filters=[tree for _, tree, _ in calls],
            excludes=[None if own is None else np.array(own, np.int64) for _, _, own in calls],
        )
    for place, (query, tree, own) in enumerate(calls):
        gone = {*(exclude or []), *(own or [])}
        assert listed(hits, place) == best_items(query, items, k, tree, gone)
        assert hits.matched_per_query[place] == len(best_items(query, items, NUM_ITEMS, tree, gone))
    assert hits.num_matched == sum(hits.matched_per_query)


def test_exclusions_that_are_not_one_per_query_are_named(index):
    with pytest.raises(ValueError, match="1 excludes for 2 queries"):
        index.search(np.ones((2, DIM)), 3, excludes=[None])
