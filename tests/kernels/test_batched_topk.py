import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels.cpu.batched_topk as cpu
from kernels.batched_topk import batched_topk, has_batches
from kernels.codes import UNIT, encode_query, encode_query_coarsely, unpack
from tests.kernels.test_filtered_topk import FAMILIES, encode, oracle, pack

number = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False), st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.1])
)


def search(queries, vectors, keys, flags, groups, k, mean=None, **options):
    masks = np.stack([pack(each) for each in flags])
    groups = np.array(groups, np.int64)
    found = batched_topk(queries, vectors, encode(vectors, mean), keys, masks, groups, k, **options)
    return [list(zip(keys[best.row_K].tolist(), best.score_K.tolist(), strict=True)) for best in found]


def check(queries, vectors, keys, flags, groups, k, mean=None, **options):
    found = search(queries, vectors, keys, flags, groups, k, mean, **options)
    expected = [oracle(query, vectors, keys, flags[group], k) for query, group in zip(queries, groups, strict=True)]
    assert found == expected


def test_this_machine_runs_batches():
    assert has_batches(2) and not has_batches(1)


def test_the_product_is_exact_at_any_shape():
    rng = np.random.default_rng(0)
    for dim in (2, 3, 5, 17, 64, 129):
        for num_rows in (1, 2, 11, 100, 999):
            for size in (1, 2, 5, 64):
                left = rng.integers(-127, 128, (size, dim), np.int8)
                right = rng.integers(-127, 128, (num_rows, dim), np.int8)
                product = torch._int_mm(torch.from_numpy(left), torch.from_numpy(right).t())
                assert (product.numpy() == left.astype(np.int64) @ right.T.astype(np.int64)).all()


@pytest.fixture
def _small_tiles(monkeypatch):
    """Several tiles, blocks and parts over a few hundred rows."""
    monkeypatch.setattr(cpu, "TILE_ROWS", 96)
    monkeypatch.setattr(cpu, "PARALLEL_BYTES", 64)
    monkeypatch.setattr(cpu, "MAX_BATCH", 5)


@pytest.mark.usefixtures("_small_tiles")
@pytest.mark.parametrize("backend", ["cpu", "serial", "reference"])
@pytest.mark.parametrize(("num_rows", "dim", "size", "k"), [(1, 1, 1, 1), (65, 17, 3, 100), (700, 33, 12, 20)])
def test_equals_the_oracle_at_odd_shapes(backend, num_rows, dim, size, k):
    rng = np.random.default_rng(num_rows * dim)
    vectors = rng.standard_normal((num_rows, dim)).astype(np.float32)
    keys = rng.permutation(np.arange(num_rows, dtype=np.int64) - num_rows // 2)
    queries = rng.standard_normal((size, dim)).astype(np.float32)
    for shares in ([1.0], [0.1], [0.9, 0.2, 0.0]):
        flags = [rng.random(num_rows) < share for share in shares]
        groups = rng.integers(len(shares), size=size)
        check(queries, vectors, keys, flags, groups, k, vectors.mean(0), backend=backend, num_threads=3)


@pytest.mark.usefixtures("_small_tiles")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("query_family", ["one_hot", "huge", "denormal", "mixed_scales", "far_mean"])
def test_equals_the_oracle_on_adversarial_vectors(family, query_family):
    rng = np.random.default_rng(5)
    vectors = FAMILIES[family](rng, (200, 16)).astype(np.float32)
    queries = FAMILIES[query_family](rng, (4, 16)).astype(np.float32)
    flags = [rng.random(200) < 0.7, rng.random(200) < 0.1]
    with np.errstate(over="ignore"):
        mean = vectors.astype(np.float64).mean(0).astype(np.float32)
    check(queries, vectors, rng.permutation(200), flags, [0, 1, 0, 0], 12, mean)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_equals_the_oracle_on_any_floats(data):
    dim = data.draw(st.integers(1, 6))
    pool = data.draw(st.lists(st.lists(number, min_size=dim, max_size=dim), min_size=1, max_size=8))
    picks = data.draw(st.lists(st.integers(0, len(pool) - 1), min_size=1, max_size=90))
    vectors = np.array([pool[pick] for pick in picks], np.float32)
    queries = np.array(data.draw(st.lists(st.lists(number, min_size=dim, max_size=dim), min_size=1, max_size=5)))
    flag_lists = st.lists(st.booleans(), min_size=len(picks), max_size=len(picks))
    flags = [np.array(each) for each in data.draw(st.lists(flag_lists, min_size=1, max_size=3))]
    groups = [data.draw(st.integers(0, len(flags) - 1)) for _ in queries]
    keys = np.array(data.draw(st.permutations(range(len(picks)))), np.int64)
    check(queries.astype(np.float32), vectors, keys, flags, groups, data.draw(st.integers(1, 12)), vectors[0])


def test_a_vector_as_long_as_float32_goes_is_found_by_a_zero_query():
    vectors = np.zeros((5, 3), np.float32)
    vectors[4, 2] = 3.402820221199752e38
    flags = np.arange(5) == 4
    assert search(np.zeros((1, 3), np.float32), vectors, np.arange(5), [flags], [0], 1) == [[(4, 0.0)]]


def test_more_ties_than_room_fall_back_to_one_query(monkeypatch):
    monkeypatch.setattr(cpu, "_FIRST_CANDIDATES", 130)
    vectors = np.ones((4000, 3), np.float32)
    vectors[7] = 2
    keys = np.arange(4000)[::-1].copy()
    queries = np.array([[1, 1, 1], [0, 0, 0]], np.float32)
    found = search(queries, vectors, keys, [np.ones(4000, bool)], [0, 0], 2)
    assert found == [[(3992, 6.0), (0, 3.0)], [(0, 0.0), (1, 0.0)]]


def test_read_only_codes_are_read():
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((300, 8)).astype(np.float32)
    codes = encode(vectors)
    codes.upper_NP.flags.writeable = codes.lower_NP.flags.writeable = False
    mask = pack(np.ones(300, bool))[None]
    (best,) = batched_topk(vectors[:1], vectors, codes, np.arange(300), mask, np.zeros(1, np.int64), 5)
    expected = oracle(vectors[0], vectors, np.arange(300), np.ones(300, bool), 5)
    assert list(zip(best.row_K.tolist(), best.score_K.tolist(), strict=True)) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_coarse_bounds_hold(family):
    rng = np.random.default_rng(7)
    vectors = FAMILIES[family](rng, (60, 32)).astype(np.float32)
    with np.errstate(over="ignore"):
        mean = vectors.astype(np.float64).mean(0).astype(np.float32)
    codes = encode(vectors, mean)
    for query in FAMILIES["mixed_scales"](rng, (5, 32)).astype(np.float32):
        fine, coarse = encode_query(query, mean), encode_query_coarsely(query)
        for row in range(60):
            upper, lower = (unpack(plane[row : row + 1], 32)[0] for plane in (codes.upper_NP, codes.lower_NP))
            code = 16 * upper.astype(np.int64) + lower - 128
            scale = float(codes.scale_N[row])
            residual = scale * int(codes.share_N[row]) * UNIT * math.sqrt(32)
            middle = fine.mean_score + scale * coarse.scale * int(code @ coarse.step_D.astype(np.int64))
            width = scale * math.sqrt(int(code @ code)) * coarse.error + residual * fine.norm + fine.slack
            exact = math.fsum(float(a) * float(b) for a, b in zip(query, vectors[row], strict=True))
            assert abs(exact - middle) <= width + scale * fine.scale_error * 2.0**-40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": np.ones(2, np.float32)}, r"expected float32\[B,D\]"),
        ({"queries": np.full((1, 2), np.nan, np.float32)}, "nan"),
        ({"groups": np.array([1])}, "groups 1 to 1 of 1 masks"),
        ({"groups": np.zeros(2, np.int64)}, "groups"),
        ({"masks": np.full((1, 1), 1 << 5, np.uint64)}, "past the last"),
        ({"k": 0}, "k = 0"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    vectors = np.ones((5, 2), np.float32)
    given_ = {"queries": vectors[:1], "masks": np.ones((1, 1), np.uint64), "groups": np.zeros(1, np.int64), "k": 1}
    given_ |= change
    with pytest.raises(ValueError, match=message):
        batched_topk(
            given_["queries"], vectors, encode(vectors), np.arange(5), given_["masks"], given_["groups"], given_["k"]
        )
