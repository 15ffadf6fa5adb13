import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from index.config import IndexConfig
from index.live import LiveIndex
from index.module import IndexModule, soft_topk
from tests.index.worlds import SCHEMA

DIM = 8


def make_index(num_items=150, seed=0):
    rng = np.random.default_rng(seed)
    index = LiveIndex(IndexConfig(dim=DIM, schema=SCHEMA, signals=("day",)))
    keys = rng.choice(10**6, num_items, replace=False).astype(np.int64)
    index.upsert(keys, rng.standard_normal((num_items, DIM)), [{"year": int(key)} for key in keys])
    return index


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60))
def test_forward_equals_the_live_index_ties_included(seed, k):
    rng = np.random.default_rng(seed)
    index = LiveIndex(IndexConfig(dim=3))
    index.upsert(rng.choice(999, 60, replace=False).astype(np.int64), rng.integers(-1, 2, (60, 3)), [{}] * 60)
    queries = rng.integers(-1, 2, (2, 3)).astype(np.float32)
    module = IndexModule.from_index(index)
    (keys, scores, rows), expected = module(torch.from_numpy(queries), k), index.search(queries, k)
    assert (keys.numpy() == expected.keys).all() and (scores.numpy() == expected.scores).all()
    assert (module.key_N[rows] == keys).all()


def test_masks_and_dead_rows_are_left_out():
    module = IndexModule.from_index(make_index(20))
    mask = torch.zeros(2, 20, dtype=torch.bool)
    mask[0, :3], mask[1, 5] = True, True
    module.live_N[0] = False
    keys, scores, _ = module(torch.randn(2, DIM), 4, mask)
    assert set(keys[0, :2].tolist()) == set(module.key_N[1:3].tolist())
    assert keys[0, 2:].tolist() == [-1, -1] and keys[1].tolist() == [module.key_N[5].item(), -1, -1, -1]
    assert scores[1, 1:].tolist() == [-torch.inf] * 3
    assert module(torch.randn(1, DIM), 20)[0][0, -1] == -1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_export_round_trip_gives_the_same_hits(tmp_path):
    module = IndexModule.from_index(make_index()).eval()
    queries, mask = torch.randn(5, DIM), torch.rand(150) < 0.5
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(
        module, (queries, 10, mask), dynamic_shapes={"query_BD": {0: batch}, "k": None, "mask": None}
    )
    torch.export.save(program, tmp_path / "index.pt2")
    loaded = torch.export.load(tmp_path / "index.pt2").module()
    for size in (5, 17):
        queries = torch.randn(size, DIM)
        for found, expected in zip(loaded(queries, 10, mask), module(queries, 10, mask), strict=True):
            assert torch.equal(found, expected)


def test_from_an_index_and_back():
    index = make_index()
    keys = index.keys()
    index.set_signals(keys, np.arange(150.0)[:, None])
    module = IndexModule.from_index(index, trainable=True)
    with torch.no_grad():
        module.vector_ND.mul_(2)
    module.live_N[3] = False
    attributes, vectors = index.attributes(keys), index.vectors(keys)[0]
    index.upsert(np.array([-99]), np.ones((1, DIM)), [{}])
    module.write_to(index)
    kept = np.delete(np.arange(150), 3)
    assert index.keys().tolist() == keys[kept].tolist()
    assert (index.vectors(keys[kept])[0] == 2 * vectors[kept]).all()
    assert index.attributes(keys[kept]) == [attributes[row] for row in kept]
    assert index.signals(keys[kept])[:, 0].tolist() == kept.tolist()
    fresh = LiveIndex(IndexConfig(dim=DIM))
    module.write_to(fresh)
    assert fresh.keys().tolist() == keys[kept].tolist()


def interests(num_items=120, num_users=40, seed=0):
    """Fixed queries, each with the row it should find; the items start at random."""
    torch.manual_seed(seed)
    keys = np.arange(num_items, dtype=np.int64)
    module = IndexModule(
        keys, np.random.default_rng(seed).standard_normal((num_items, DIM)).astype(np.float32), trainable=True
    )
    return module, torch.randn(num_users, DIM), torch.randperm(num_items)[:num_users]


def recall(module, queries, wanted, k):
    return (module(queries, k)[0] == module.key_N[wanted].unsqueeze(1)).any(1).float().mean().item()


def test_items_learn_through_sampled_softmax():
    module, queries, wanted = interests()
    before = recall(module, queries, wanted, 5)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(120):
        loss = module.sampled_softmax_loss(queries, wanted, torch.randint(0, 120, (40,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert before < 0.3 and recall(module, queries, wanted, 5) > 0.95


def test_items_learn_through_soft_topk():
    module, queries, wanted = interests(seed=1)
    before = recall(module, queries, wanted, 5)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(120):
        weights = soft_topk(queries @ module.vector_ND.T, 5, temperature=0.5)
        loss = -weights.gather(1, wanted.unsqueeze(1)).clamp(min=1e-6).log().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert before < 0.3 and recall(module, queries, wanted, 5) > 0.95


def test_the_score_of_a_hit_carries_its_gradient():
    module, queries, _ = interests()
    _, scores, rows = module(queries[:1], 3)
    scores.sum().backward()
    touched = module.vector_ND.grad.abs().sum(1).nonzero().flatten().tolist()
    assert sorted(touched) == sorted(rows[0].tolist())
    assert torch.allclose(module.vector_ND.grad[rows[0, 0]], queries[0])


def test_sampled_softmax_with_every_row_is_the_full_softmax():
    module, queries, wanted = interests(num_items=50, num_users=20)
    full = torch.nn.functional.cross_entropy(queries @ module.vector_ND.T, wanted)
    assert torch.allclose(module.sampled_softmax_loss(queries, wanted, torch.arange(50)), full, rtol=1e-5)
    uniform = torch.full((50,), -float(np.log(50)))
    corrected = module.sampled_softmax_loss(queries, wanted, torch.arange(50), uniform)
    assert torch.allclose(corrected, full, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.01, 1.0, 30.0])
def test_soft_topk_sums_to_k_and_hardens(temperature):
    scores = torch.randn(4, 50, dtype=torch.float64)
    scores[0, 10:20] = -torch.inf
    weights = soft_topk(scores, 7, temperature=temperature)
    assert torch.allclose(weights.sum(1), torch.full((4,), 7.0, dtype=torch.float64))
    assert bool((weights[0, 10:20] == 0).all())
    hard = torch.zeros_like(scores).scatter_(1, scores.topk(7).indices, 1.0)
    if temperature < 0.1:
        assert float((weights - hard).abs().mean()) < 0.03


def test_soft_topk_gradient_is_that_of_its_values():
    scores = torch.randn(2, 9, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda each: soft_topk(each, 3, temperature=0.7), (scores,), atol=1e-6)


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="all different"):
        IndexModule(np.array([1, 1]), np.ones((2, 2), np.float32))
    with pytest.raises(ValueError, match=r"expected \[2, D\]"):
        IndexModule(np.array([1, 2]), np.ones((3, 2), np.float32))
    with pytest.raises(ValueError, match="1 <= k < 4"):
        soft_topk(torch.ones(1, 4), 4)
    module = IndexModule(np.array([5, 1]), np.ones((2, 2), np.float32))
    assert module.rows_of(torch.tensor([5, 1])).tolist() == [1, 0]
    with pytest.raises(ValueError, match="key 3"):
        module.rows_of(torch.tensor([1, 3]))
