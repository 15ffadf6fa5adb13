import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.cpu.exact_dot import exact_dot

number = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.integers(-3, 3).map(float),
    st.integers(-120, 120).map(lambda power: 2.0**power),
)


def check(pairs):
    vectors = np.array([[a for a, _ in pairs]], np.float32)
    query = np.array([b for _, b in pairs], np.float32).astype(np.float64)
    expected = math.fsum(float(a) * float(b) for a, b in zip(vectors[0], query, strict=True))
    assert exact_dot(vectors, 0, query) == expected


@settings(max_examples=600, deadline=None)
@given(st.lists(st.tuples(number, number), min_size=1, max_size=40))
def test_rounds_the_exact_sum_once(pairs):
    check(pairs)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(number, number), min_size=1, max_size=15), st.tuples(number, number), st.randoms())
def test_survives_total_cancellation(pairs, rest, random):
    every = [*pairs, *((-a, b) for a, b in pairs), rest]
    random.shuffle(every)
    check(every)


def test_halfway_cases_look_at_every_part():
    half = 2.0**-27  # half * 2^-26 is half a unit of 1.0
    check([(1.0, 1.0), (half, 2.0**-26)])
    check([(1.0, 1.0), (half, 2.0**-26), (2.0**-100, 2.0**-100)])
    check([(1.0, 1.0), (half, 2.0**-26), (-(2.0**-100), 2.0**-100)])
    check([(1.0, 1.0), (1.0, 2.0**-52), (half, 2.0**-26), (-(2.0**-100), 2.0**-100)])
    check([(2.0**-140, 2.0**-140), (2.0**120, 2.0**120), (-(2.0**120), 2.0**120)])
