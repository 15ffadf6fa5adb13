import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from kernels.dense_topk import DenseRows, dense_topk, encode_queries


def make_rows(seed, num_rows, dim, *, codes, vectors=True):
    random = np.random.default_rng(seed)
    vector = random.standard_normal((num_rows, dim)).astype(np.float32)
    keys = torch.from_numpy(random.permutation(num_rows).astype(np.int64) - num_rows // 2)
    if not codes:
        return DenseRows(key_N=keys, vector_ND=torch.from_numpy(vector).half())
    mean = vector.mean(0)
    scale = np.abs(vector - mean).max(1) / np.float32(127)
    return DenseRows(
        key_N=keys,
        code_ND=torch.from_numpy(np.rint((vector - mean) / scale[:, None]).astype(np.int8)),
        scale_N=torch.from_numpy(scale),
        mean_D=torch.from_numpy(mean),
        vector_ND=torch.from_numpy(vector) if vectors else None,
    )


def pack(flags):
    padded = np.zeros((*flags.shape[:-1], (flags.shape[-1] + 63) // 64 * 64), bool)
    padded[..., : flags.shape[-1]] = flags
    return torch.from_numpy(np.packbits(padded, axis=-1, bitorder="little").view(np.int64))


def best(score_of, keys, flags, k):
    scored = sorted((-score_of(row), int(keys[row]), row) for row in np.flatnonzero(flags))[:k]
    return [key for _, key, _ in scored], [row for _, _, row in scored], [-score for score, _, _ in scored]


@pytest.mark.parametrize("own_masks", [False, True])
@pytest.mark.parametrize(("num_rows", "dim", "batch", "k"), [(1, 4, 1, 1), (130, 17, 3, 9), (64, 8, 2, 70)])
def test_float16_equals_a_plain_sort(num_rows, dim, batch, k, own_masks):
    rows = make_rows(num_rows, num_rows, dim, codes=False)
    random = np.random.default_rng(1)
    query = torch.from_numpy(random.standard_normal((batch, dim)).astype(np.float32))
    flags = random.random((batch, num_rows) if own_masks else (num_rows,)) < 0.6
    found = dense_topk(query, rows, pack(flags), k)
    vector = rows.vector_ND.double().numpy()
    for place in range(batch):
        rounded = query[place].half().double().numpy()
        own = flags[place] if own_masks else flags
        keys, listed, scores = best(lambda row, q=rounded: math.fsum(vector[row] * q), rows.key_N, own, k)
        assert found.key_BK[place, : len(keys)].tolist() == keys
        assert found.row_BK[place, : len(keys)].tolist() == listed
        np.testing.assert_allclose(found.score_BK[place, : len(keys)], scores, atol=1e-5)
        assert (found.key_BK[place, len(keys) :] == -1).all()
        assert (found.score_BK[place, len(keys) :] == -torch.inf).all()


def test_rescored_codes_find_the_exact_best():
    rows = make_rows(3, 2000, 32, codes=True)
    query = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    flags = np.random.default_rng(2).random(2000) < 0.5
    found = dense_topk(query, rows, pack(flags), 20, rescore=8)
    vector = rows.vector_ND.double().numpy()
    for place in range(4):
        exact = query[place].double().numpy()
        keys, _, scores = best(lambda row, q=exact: math.fsum(vector[row] * q), rows.key_N, flags, 20)
        assert found.key_BK[place].tolist() == keys
        np.testing.assert_array_equal(found.score_BK[place].numpy(), np.array(scores, np.float32))


def test_codes_alone_score_the_decoded_rows():
    rows = make_rows(4, 300, 16, codes=True, vectors=False)
    query = torch.randn(2, 16, generator=torch.Generator().manual_seed(5))
    found = dense_topk(query, rows, pack(np.ones(300, bool)), 300)
    decoded = rows.mean_D.double() + rows.scale_N.double()[:, None] * rows.code_ND.double()
    codes = encode_queries(query, rows.mean_D)
    for place in range(2):
        centred = decoded[found.row_BK[place].long()] - rows.mean_D.double()
        rounded = codes.code_BD[place].double() * codes.scale_B[place].double()
        expected = centred @ rounded + query[place].double() @ rows.mean_D.double()
        torch.testing.assert_close(found.score_BK[place].double(), expected, atol=1e-5, rtol=0)


def test_a_zero_query_has_codes():
    codes = encode_queries(torch.zeros(1, 8), torch.ones(8))
    assert codes.code_BD.tolist() == [[0] * 8] and codes.scale_B.tolist() == [1] and codes.mean_score_B.tolist() == [0]


def test_equal_scores_go_to_the_lower_key():
    rows = DenseRows(key_N=torch.tensor([5, -3, 9, 1]), vector_ND=torch.ones(4, 2, dtype=torch.float16))
    assert dense_topk(torch.ones(1, 2), rows, torch.tensor([0b1111]), 3).key_BK.tolist() == [[-3, 1, 5]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_BD": torch.ones(2)}, "queries"),
        ({"query_BD": torch.ones(1, 3)}, "queries"),
        ({"query_BD": torch.ones(1, 2).double()}, "float64"),
        ({"mask": torch.ones(2, dtype=torch.int64)}, "mask"),
        ({"mask": torch.ones(2, 1, dtype=torch.int64)}, "mask"),
        ({"mask": torch.ones(1, dtype=torch.int32)}, "mask"),
        ({"k": 0}, "k = 0"),
        ({"rescore": 0}, "rescore = 0"),
        ({"backend": "cpu"}, "backend"),
    ],
)
def test_wrong_requests_are_named(change, message):
    rows = DenseRows(key_N=torch.arange(5), vector_ND=torch.ones(5, 2, dtype=torch.float16))
    request = {"query_BD": torch.ones(1, 2), "rows": rows, "mask": torch.ones(1, dtype=torch.int64), "k": 1} | change
    with pytest.raises(ValueError, match=message):
        dense_topk(**request)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key_N": torch.arange(4)}, "keys"),
        ({"code_ND": torch.ones(5, 2000, dtype=torch.int8)}, "rows"),
        ({"code_ND": torch.ones(5, 2)}, "codes"),
        ({"scale_N": None}, "scales: absent"),
        ({"mean_D": torch.ones(3)}, "mean"),
        ({"vector_ND": torch.ones(5, 2).double()}, "float16 or torch.float32"),
        ({"vector_ND": torch.ones(2, 5).T}, "contiguous"),
        ({"code_ND": None, "vector_ND": torch.ones(5, 2)}, "vectors"),
        ({"code_ND": None, "vector_ND": None}, "neither"),
    ],
)
def test_wrong_rows_are_named(change, message):
    rows = DenseRows(
        key_N=torch.arange(5),
        code_ND=torch.ones(5, 2, dtype=torch.int8),
        scale_N=torch.ones(5),
        mean_D=torch.ones(2),
        vector_ND=torch.ones(5, 2),
    )
    with pytest.raises(ValueError, match=message):
        replace(rows, **change)
