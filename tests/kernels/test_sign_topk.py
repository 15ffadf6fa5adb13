import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels.cpu.sign_topk as cpu
from kernels.codes import random_rotation
from kernels.sign_codes import QUERY_PLANES, SignCodes, draw_projection, encode_sign_query, encode_signs
from kernels.sign_topk import sign_topk
from tests.kernels.test_filtered_topk import pack

KINDS = list(QUERY_PLANES)


def encode(vectors, kind, num_bits=64, seed=0):
    projection = draw_projection(kind, vectors.shape[1], num_bits, seed)
    mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    bits, scales = encode_signs(vectors, kind, projection, mean)
    return SignCodes(bits, scales, projection, QUERY_PLANES[kind])


def both(query, codes, flags, num_kept):
    found = [
        sign_topk(query, codes, pack(flags), num_kept, backend=backend) for backend in ("reference", "serial", "cpu")
    ]
    assert found[0].tolist() == found[1].tolist() == found[2].tolist()
    return found[0]


@st.composite
def worlds(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    num_rows, dim = draw(st.integers(1, 900)), draw(st.integers(1, 70))
    scale = draw(st.sampled_from([1.0, 1e-42, 1e37]))
    vectors = (rng.integers(-2, 3, (num_rows, dim)) * scale).astype(np.float32)  # many equal estimates
    if draw(st.booleans()):
        vectors = (rng.standard_normal((num_rows, dim)) * scale).astype(np.float32)
    flags = rng.random(num_rows) < draw(st.sampled_from([0.0, 0.05, 0.7, 1.0]))
    query = (rng.standard_normal(dim) * draw(st.sampled_from([0.0, 1.0, 1e-40, 1e30]))).astype(np.float32)
    return vectors, flags, query, draw(st.integers(1, 1000)), draw(st.sampled_from([64, 128, 192]))


@settings(max_examples=60, deadline=None)
@given(worlds(), st.sampled_from(KINDS))
def test_compiled_rows_are_those_of_the_definition(world, kind):
    vectors, flags, query, num_kept, num_bits = world
    rows = both(query, encode(vectors, kind, num_bits), flags, num_kept)
    assert rows.size == min(num_kept, int(flags.sum())) and flags[rows].all() and (np.diff(rows) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["random", "ascending", "one block", "equal"])
def test_thresholds_from_samples_lose_nothing(kind, case, monkeypatch):
    """More rows than the sample needs, in orders that mislead it; room that has to be cleared many times."""
    monkeypatch.setattr(cpu, "PARALLEL_BYTES", 1 << 14)
    rng = np.random.default_rng(2)
    vectors, query = rng.standard_normal((80_000, 24)).astype(np.float32), np.ones(24, np.float32)
    if case == "ascending":
        vectors = vectors[np.argsort(vectors.sum(axis=1))]
    elif case == "one block":
        vectors[:] = -np.abs(vectors)
        vectors[64:128] *= -1
    elif case == "equal":
        vectors[:] = vectors[0]
    codes = encode(vectors, kind)
    for num_kept in (1, 30, 3000, 79_999):
        both(query, codes, rng.random(len(vectors)) < 0.9, num_kept)


def test_sign_oporp_with_a_bit_for_each_coordinate_is_plain_signs():
    """Permutation and random signs cancel: as many bits match as coordinates have the same sign."""
    rng = np.random.default_rng(0)
    vectors, query = rng.standard_normal((200, 64)).astype(np.float32), rng.standard_normal(64).astype(np.float32)
    codes = encode(vectors, "sign_oporp", 64)
    matching = 64 - np.bitwise_count(codes.bit_NW ^ encode_sign_query(query, codes).plane_PW[0]).sum(axis=1)
    assert matching.tolist() == ((vectors > 0) == (query > 0)).sum(axis=1).tolist()


@pytest.mark.parametrize(("dim", "num_bits"), [(128, 64), (128, 128), (128, 512), (10, 64), (1, 64)])
def test_oporp_bins_have_every_coordinate_once(dim, num_bits):
    projection = draw_projection("sign_oporp", dim, num_bits, 3)
    bins = min(num_bits, dim) if num_bits <= dim else max(1, dim // 2)
    for first in range(0, num_bits - bins + 1, bins):
        assert (np.abs(projection[first : first + bins]).sum(axis=0) == 1).all()


def test_rotations_keep_inner_products():
    rotation = random_rotation(50, np.random.default_rng(0))
    assert np.abs(rotation @ rotation.T - np.eye(50)).max() < 1e-14


def test_estimates_of_rotated_signs_are_near_inner_products():
    """Unbiased over rotations, so that their error falls with more bits."""
    rng = np.random.default_rng(1)
    vectors, query = rng.standard_normal((300, 64)).astype(np.float32), rng.standard_normal(64).astype(np.float32)
    codes = encode(vectors, "rotated_sign", 4096)
    planes = encode_sign_query(query, codes)
    differing = sum(
        np.bitwise_count(codes.bit_NW ^ plane).sum(axis=1).astype(int) << place
        for place, plane in enumerate(planes.plane_PW)
    )
    estimate = codes.scale_N * (planes.largest - 2 * differing)
    scores = (vectors - vectors.mean(axis=0)) @ query
    assert np.corrcoef(estimate, scores)[0, 1] > 0.98


def test_what_does_not_fit_is_refused():
    codes = encode(np.ones((70, 3), np.float32), "rotated_sign")
    query, mask = np.ones(3, np.float32), pack(np.ones(70, bool))
    for options, message in (
        ({"query_D": np.ones(4, np.float32)}, "expected finite float32"),
        ({"query_D": query * np.nan}, "expected finite float32"),
        ({"mask_W": mask[:1]}, "expected uint64"),
        ({"mask_W": ~np.zeros(2, np.uint64)}, "rows past the last of 70"),
        ({"num_kept": 0}, "expected at least 1"),
        ({"codes": codes._replace(bit_NW=codes.bit_NW[:, :0])}, "bits:"),
        ({"codes": codes._replace(scale_N=codes.scale_N[:9])}, "scales:"),
    ):
        with pytest.raises(ValueError, match=message):
            sign_topk(**({"query_D": query, "codes": codes, "mask_W": mask, "num_kept": 5} | options))
