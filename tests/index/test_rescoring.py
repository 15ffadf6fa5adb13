import numpy as np
import pytest
import torch

from index.config import IndexConfig
from index.filter import parse_filter
from index.live import LiveIndex
from index.rescoring import search_rescored
from index.similarities import HadamardMLP, MixtureOfLogits
from tests.index.worlds import SCHEMA

DIM, NUM_ITEMS = 8, 300
KEYS = np.arange(NUM_ITEMS, dtype=np.int64) * 7 - 500


@pytest.fixture(scope="module")
def index():
    rng = np.random.default_rng(0)
    index = LiveIndex(IndexConfig(dim=DIM, schema=SCHEMA))
    index.upsert(KEYS, rng.standard_normal((NUM_ITEMS, DIM)), [{"year": n % 10} for n in range(NUM_ITEMS)])
    return index


@pytest.fixture(params=[HadamardMLP, MixtureOfLogits])
def make_rescorer(request):
    def make(query_dim=DIM, item_dim=DIM):
        torch.manual_seed(5)
        return request.param(query_dim, item_dim)

    return make


def exhaustive(rescorer, query_BQ, item_NX, keys, k):
    with torch.inference_mode():
        items = torch.from_numpy(item_NX).expand(len(query_BQ), -1, -1)
        score_BN = rescorer(torch.from_numpy(query_BQ), items).numpy()
    order = np.stack([np.lexsort((keys, -score))[:k] for score in score_BN])
    return keys[order], np.take_along_axis(score_BN, order, 1)


def test_all_candidates_equal_exhaustive_scoring(index, make_rescorer):
    rescorer = make_rescorer()
    queries = np.random.default_rng(1).standard_normal((4, DIM)).astype(np.float32)
    hits = search_rescored(index, rescorer, queries, 20, num_candidates=NUM_ITEMS)
    keys, scores = exhaustive(rescorer, queries, index.vectors(KEYS)[0], KEYS, 20)
    assert hits.exact and hits.num_rescored == 4 * NUM_ITEMS
    assert (hits.keys == keys).all()
    np.testing.assert_allclose(hits.scores, scores, rtol=1e-5, atol=1e-5)


def test_fewer_candidates_are_the_best_by_inner_product(index, make_rescorer):
    rescorer = make_rescorer()
    query = np.random.default_rng(2).standard_normal(DIM).astype(np.float32)
    hits = search_rescored(index, rescorer, query, 5, num_candidates=30)
    assert not hits.exact and hits.num_rescored == 30
    first = index.search(query, 30).keys[0]
    order = np.sort(first)
    keys, _ = exhaustive(rescorer, query[None], index.vectors(order)[0], order, 5)
    assert hits.keys.tolist() == keys.tolist()


def test_filter_leaves_a_tail(index, make_rescorer):
    tree = parse_filter("year = 3", SCHEMA)
    hits = search_rescored(index, make_rescorer(), np.ones((2, DIM)), 50, num_candidates=60, filter=tree)
    assert hits.exact and hits.num_matched == 30
    assert (hits.keys[:, :30] != -1).all() and (hits.keys[:, 30:] == -1).all()
    assert (hits.scores[:, 30:] == -np.inf).all()
    nothing = search_rescored(
        index, make_rescorer(), np.ones(DIM), 3, num_candidates=9, filter=parse_filter("year > 99", SCHEMA)
    )
    assert nothing.keys.tolist() == [[-1, -1, -1]]


def test_features_may_come_from_elsewhere(index, make_rescorer):
    rng = np.random.default_rng(3)
    table = rng.standard_normal((NUM_ITEMS, 5)).astype(np.float32)
    users = rng.standard_normal((2, 3)).astype(np.float32)
    rescorer = make_rescorer(3, 5)
    hits = search_rescored(
        index,
        rescorer,
        np.ones((2, DIM)),
        9,
        num_candidates=NUM_ITEMS,
        query_features=users,
        item_features=lambda keys: table[np.searchsorted(KEYS, keys)],
    )
    assert (hits.keys == exhaustive(rescorer, users, table, KEYS, 9)[0]).all()


def test_gates_are_a_mixture():
    model = MixtureOfLogits(DIM, 5, query_components=3, item_components=2, temperature=0.1)
    logits, gates = model.mix(torch.randn(2, DIM), torch.randn(2, 7, 5))
    assert logits.shape == gates.shape == (2, 7, 6)
    assert bool((gates >= 0).all()) and torch.allclose(gates.sum(-1), torch.ones(2, 7))
    assert bool((logits.abs() <= 10 + 1e-4).all())


def test_rescorers_learn_what_an_inner_product_cannot(make_rescorer):
    """An item suits a query when both lie on the same side of the first axis AND of the second: no dot product of
    the given features orders that."""
    torch.manual_seed(0)
    rescorer = make_rescorer(2, 2)
    optimizer = torch.optim.Adam(rescorer.parameters(), lr=3e-3)
    query, item = torch.randn(64, 2), torch.randn(64, 32, 2)
    suits = ((query[:, None, 0] * item[..., 0] > 0) & (query[:, None, 1] * item[..., 1] > 0)).float()
    losses = []
    for _ in range(150):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(rescorer(query, item), suits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.35 and losses[-1] < losses[0] / 2


def test_what_does_not_fit_is_named(index):
    rescorer = HadamardMLP(DIM, DIM)
    with pytest.raises(ValueError, match="num_candidates = 3, expected at least k = 5"):
        search_rescored(index, rescorer, np.ones(DIM), 5, num_candidates=3)
    with pytest.raises(ValueError, match=r"query features: shape \[2, 8\]"):
        search_rescored(index, rescorer, np.ones(DIM), 5, num_candidates=9, query_features=np.ones((2, DIM)))
    with pytest.raises(ValueError, match="rescorer: scores"):
        search_rescored(index, lambda query, item: item, np.ones(DIM), 5, num_candidates=9)
    with pytest.raises(ValueError, match="temperature"):
        MixtureOfLogits(2, 2, temperature=0.0)
