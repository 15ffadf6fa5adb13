import math
import threading
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels.cpu.filtered_topk as cpu
from kernels.batched_topk import batched_topk
from kernels.codes import UNIT, UPPER_MIDDLE, UPPER_UNIT, encode_query, encode_rows, random_rotation, unpack
from kernels.filtered_topk import filtered_topk

BACKENDS = ["cpu", "serial", "reference"]


def pack(flags):
    padded = np.zeros((len(flags) + 63) // 64 * 64, bool)
    padded[: len(flags)] = flags
    return np.packbits(padded, bitorder="little").view(np.uint64)


def encode(vectors, mean=None):
    mean = np.zeros(vectors.shape[1], np.float32) if mean is None else mean
    return encode_rows(vectors, mean)


def search(query, vectors, keys, flags, k, mean=None, **options):
    """Keys and scores; the same whether a scan reads upper nibbles first or whole codes."""
    found = []
    for whole_rows in (0, cpu.WHOLE_ROWS):
        with patch.object(cpu, "WHOLE_ROWS", whole_rows):
            best = filtered_topk(query, vectors, encode(vectors, mean), keys, pack(flags), k, **options)
        found.append(list(zip(keys[best.row_K].tolist(), best.score_K.tolist(), strict=True)))
    assert found[0] == found[1]
    return found[0]


def oracle(query, vectors, keys, flags, k):
    scored = [
        (-math.fsum(float(a) * float(b) for a, b in zip(query, vector, strict=True)), int(key))
        for vector, key, flag in zip(vectors, keys, flags, strict=True)
        if flag
    ]
    return [(key, -score) for score, key in sorted(scored)[:k]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("strategy", ["stream", "compact", "gather"])
@pytest.mark.parametrize(
    ("num_rows", "dim", "k"),
    [(1, 1, 1), (63, 3, 5), (64, 1, 64), (65, 17, 100), (130, 5, 1), (500, 33, 20), (1000, 128, 10), (200, 700, 7)],
)
def test_equals_the_oracle_at_odd_shapes(backend, strategy, num_rows, dim, k):
    rng = np.random.default_rng(num_rows * dim)
    vectors = rng.standard_normal((num_rows, dim)).astype(np.float32)
    keys = rng.permutation(np.arange(num_rows, dtype=np.int64) - num_rows // 2)
    flags = rng.random(num_rows) < 0.6
    query = rng.standard_normal(dim).astype(np.float32)
    found = search(query, vectors, keys, flags, k, vectors.mean(0), strategy=strategy, backend=backend)
    assert found == oracle(query, vectors, keys, flags, k)


def one_hot(rng, shape):
    vectors = np.zeros(shape, np.float32)
    vectors[np.arange(shape[0]), rng.integers(shape[1], size=shape[0])] = 1
    return vectors


FAMILIES = {
    "duplicates": lambda rng, s: np.repeat(rng.standard_normal((1, s[1])), s[0], 0),
    "near_duplicates": lambda rng, s: np.nextafter(
        np.repeat(rng.standard_normal((1, s[1])), s[0], 0).astype(np.float32),
        rng.choice([-np.inf, np.inf], s).astype(np.float32),
    ),
    "zeros": lambda rng, s: np.zeros(s),
    "one_hot": one_hot,
    "far_mean": lambda rng, s: 1e6 + rng.standard_normal(s),
    "denormal": lambda rng, s: rng.integers(-5, 5, s) * 1.4e-45,
    "huge": lambda rng, s: rng.uniform(-1, 1, s) * 3.4e38,
    "mixed_scales": lambda rng, s: rng.standard_normal(s) * 10.0 ** rng.integers(-30, 30, s),
    "cancelling": lambda rng, s: np.concatenate([a := rng.standard_normal(s) * 1e20, -a], 1)[:, : s[1]],
    "integers": lambda rng, s: rng.integers(-2, 3, s),
    "one_outlier": lambda rng, s: np.where(rng.random(s) < 0.02, 1e5, 1) * rng.standard_normal(s),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("query_family", ["normal", *FAMILIES])
def test_equals_the_oracle_on_adversarial_vectors(family, query_family):
    rng = np.random.default_rng(5)
    vectors = FAMILIES[family](rng, (150, 16)).astype(np.float32)
    queries = FAMILIES.get(query_family, lambda rng, s: rng.standard_normal(s))(rng, (2, 16)).astype(np.float32)
    keys = rng.permutation(150).astype(np.int64)
    flags = rng.random(150) < 0.7
    with np.errstate(over="ignore"):
        means = [None, vectors.astype(np.float64).mean(0).astype(np.float32)]
    for query in queries:
        expected = oracle(query, vectors, keys, flags, 12)
        for mean in means:
            for strategy in ("stream", "compact", "gather"):
                assert search(query, vectors, keys, flags, 12, mean, strategy=strategy) == expected


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_equals_the_oracle_on_any_floats(data):
    dim = data.draw(st.integers(1, 6))
    number = st.one_of(
        st.floats(width=32, allow_nan=False, allow_infinity=False), st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.1])
    )
    pool = data.draw(st.lists(st.lists(number, min_size=dim, max_size=dim), min_size=1, max_size=8))
    picks = data.draw(st.lists(st.integers(0, len(pool) - 1), min_size=1, max_size=90))
    vectors = np.array([pool[pick] for pick in picks], np.float32)
    keys = np.array(data.draw(st.permutations(range(len(picks)))), np.int64)
    flags = np.array(data.draw(st.lists(st.booleans(), min_size=len(picks), max_size=len(picks))))
    query = np.array(data.draw(st.lists(number, min_size=dim, max_size=dim)), np.float32)
    k = data.draw(st.integers(1, 12))
    mean = vectors[0]
    for backend, strategy in [
        (each, way) for each in ("serial", "reference") for way in ("stream", "compact", "gather")
    ]:
        found = search(query, vectors, keys, flags, k, mean, backend=backend, strategy=strategy)
        assert found == oracle(query, vectors, keys, flags, k)


def test_threads_give_the_hits_of_one_thread(monkeypatch):
    monkeypatch.setattr(cpu, "PARALLEL_BYTES", 256)
    rng = np.random.default_rng(1)
    vectors = rng.integers(-3, 4, (5000, 8)).astype(np.float32)
    keys = rng.permutation(5000).astype(np.int64)
    for part in (1.0, 0.3, 0.001):
        flags = rng.random(5000) < part
        query = rng.standard_normal(8).astype(np.float32)
        parts = search(query, vectors, keys, flags, 40, num_threads=7)
        assert parts == search(query, vectors, keys, flags, 40, backend="serial")


def test_concurrent_callers_share_the_pool(monkeypatch):
    monkeypatch.setattr(cpu, "PARALLEL_BYTES", 256)
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((3000, 8)).astype(np.float32)
    keys = np.arange(3000)
    queries = rng.standard_normal((8, 8)).astype(np.float32)
    every = np.ones(3000, bool)
    expected = [search(query, vectors, keys, every, 10, backend="serial") for query in queries]
    found = [None] * 8

    def run(place):
        for _ in range(10):
            found[place] = search(queries[place], vectors, keys, every, 10, num_threads=4)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_candidates_outgrow_their_first_room(monkeypatch):
    monkeypatch.setattr(cpu, "_FIRST_CANDIDATES", 130)
    vectors = np.ones((4000, 3), np.float32)  # every row ties: none can be dropped
    keys = np.arange(4000)[::-1].copy()
    found = search(np.ones(3, np.float32), vectors, keys, np.ones(4000, bool), 3, backend="serial")
    assert found == [(0, 3.0), (1, 3.0), (2, 3.0)]


def test_a_zero_query_keeps_every_tie(monkeypatch):
    monkeypatch.setattr(cpu, "_FIRST_CANDIDATES", 130)
    keys = np.arange(1000)[::-1].copy()
    vectors = np.random.default_rng(0).standard_normal((1000, 3)).astype(np.float32)
    found = search(np.zeros(3, np.float32), vectors, keys, np.ones(1000, bool), 3, backend="serial")
    assert found == [(0, 0.0), (1, 0.0), (2, 0.0)]


def test_ascending_scores_compact_the_candidates(monkeypatch):
    monkeypatch.setattr(cpu, "_FIRST_CANDIDATES", 130)
    vectors = np.arange(1, 6001, dtype=np.float32)[:, None]
    best = filtered_topk(
        np.ones(1, np.float32),
        vectors,
        encode(vectors),
        np.arange(6000),
        pack(np.ones(6000, bool)),
        2,
        backend="serial",
    )
    assert best.score_K.tolist() == [6000.0, 5999.0]


def test_masked_rows_are_never_candidates():
    vectors = -np.ones((100, 4), np.float32)
    vectors[10:] = 5
    flags = np.arange(100) < 10
    found = search(np.ones(4, np.float32), vectors, np.arange(100), flags, 50)
    assert found == [(key, -4.0) for key in range(10)]


def test_most_rows_are_settled_by_their_codes():
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((20_000, 64)).astype(np.float32)
    query = rng.standard_normal(64).astype(np.float32)
    best = filtered_topk(query, vectors, encode(vectors), np.arange(20_000), pack(np.ones(20_000, bool)), 100)
    assert best.num_scanned == 20_000
    assert best.num_rescored < 1000


@pytest.mark.parametrize("family", FAMILIES)
def test_code_bounds_hold(family):
    rng = np.random.default_rng(7)
    vectors = FAMILIES[family](rng, (60, 32)).astype(np.float32)
    with np.errstate(over="ignore"):
        mean = vectors.astype(np.float64).mean(0).astype(np.float32)
    codes = encode(vectors, mean)
    for query in FAMILIES["mixed_scales"](rng, (5, 32)).astype(np.float32):
        code = encode_query(query, mean)
        for row in range(60):
            scale = float(codes.scale_N[row])
            upper = unpack(codes.upper_NP[row : row + 1], 32)[0].astype(np.int64)
            lower = unpack(codes.lower_NP[row : row + 1], 32)[0].astype(np.int64)
            step = code.steps(32).astype(np.int64)
            exact = math.fsum(float(a) * float(b) for a, b in zip(query, vectors[row], strict=True))
            for steps, share, unit in (
                (int((16 * upper + lower - 128) @ step), codes.share_N[row], UNIT),
                (16 * int(upper @ step) - UPPER_MIDDLE * code.sum_steps, codes.upper_share_N[row], UPPER_UNIT),
            ):
                middle = code.mean_score + scale * code.scale * steps
                width = scale * (code.scale_error + int(share) * unit * math.sqrt(32) * code.norm) + code.slack
                assert abs(exact - middle) <= width


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": np.ones(3, np.float32)}, "query"),
        ({"query": np.array([np.nan, 1], np.float32)}, "nan"),
        ({"query": np.ones(2)}, "float64"),
        ({"vectors": np.ones((5, 2))}, "vectors"),
        ({"keys": np.arange(4)}, "keys"),
        ({"mask": np.ones(2, np.uint64)}, "mask"),
        ({"mask": np.full(1, 1 << 5, np.uint64)}, "past the last"),
        ({"k": 0}, "k = 0"),
        ({"backend": "gpu"}, "backend"),
        ({"strategy": "guess"}, "strategy"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    vectors = np.ones((5, 2), np.float32)
    given = {"query": vectors[0], "vectors": vectors, "keys": np.arange(5), "mask": np.ones(1, np.uint64), "k": 1}
    given |= change
    options = {name: given.pop(name) for name in ("backend", "strategy") if name in given}
    with pytest.raises(ValueError, match=message):
        filtered_topk(
            given["query"], given["vectors"], encode(vectors), given["keys"], given["mask"], given["k"], **options
        )


def test_nothing_admitted_finds_nothing():
    vectors = np.ones((5, 2), np.float32)
    for backend in BACKENDS:
        assert search(vectors[0], vectors, np.arange(5), np.zeros(5, bool), 3, backend=backend) == []


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_rotated_codes_leave_every_answer_as_it_is(data):
    """Duplicates and ties, a dimension that dwarfs the others, a shared mean, the smallest and the largest values."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    num_rows, dim = data.draw(st.sampled_from([1, 65, 300])), data.draw(st.sampled_from([1, 7, 64]))
    vectors = rng.integers(-2, 3, (num_rows, dim)).astype(np.float32)
    vectors[:, 0] *= data.draw(st.sampled_from([1.0, 1e4]))
    vectors = (
        vectors * data.draw(st.sampled_from([1.0, 1e-42, 1e30])) + data.draw(st.sampled_from([0.0, 100.0]))
    ).astype(np.float32)
    query = rng.standard_normal(dim).astype(np.float32)
    keys, flags, k = rng.permutation(num_rows).astype(np.int64), rng.random(num_rows) < 0.7, 20
    fine = data.draw(st.booleans())
    mean, rotation = vectors.mean(axis=0), random_rotation(dim, rng)
    codes = encode_rows(vectors, mean, fine=fine, rotation_DD=rotation)
    alone = encode_rows(vectors, mean, fine=fine, alone=True, rotation_DD=rotation)
    expected = oracle(query, vectors, keys, flags, k)
    by_codes = filtered_topk(query, vectors[:0], alone, keys, pack(flags), k, backend="reference")
    for strategy in ("stream", "compact", "gather"):
        best = filtered_topk(query, vectors, codes, keys, pack(flags), k, strategy=strategy)
        assert list(zip(keys[best.row_K].tolist(), best.score_K.tolist(), strict=True)) == expected
        best = filtered_topk(query, vectors[:0], alone, keys, pack(flags), k, strategy=strategy)
        assert best.row_K.tolist() == by_codes.row_K.tolist() and best.score_K.tolist() == by_codes.score_K.tolist()
    queries = np.stack([query, -query, query])
    together = batched_topk(queries, vectors, codes, keys, pack(flags)[None], np.zeros(3, np.int64), k)
    assert together[0].score_K.tolist() == together[2].score_K.tolist() == [score for _, score in expected]
