import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.cpu.prefix_attention import SHORT
from kernels.prefix_attention import Sight, prefix_attention
from tests.kernels.prefix_attention_inputs import branches, draw_inputs

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 4e-3}


def near(found, expected, tolerance=1e-5):
    assert found.dtype == expected.dtype and found.shape == expected.shape
    torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=tolerance)


def test_one_query_is_the_formula_written_out():
    query, key, value, prefix_key, prefix_value = draw_inputs(1, 2, 1, 1, 4)
    scores = torch.cat([prefix_key[0], key[:, 0]]) @ query[0, 0] / 2
    expected = scores.softmax(0) @ torch.cat([prefix_value[0], value[:, 0]])
    for backend in ("reference", "cpu"):
        out = prefix_attention(query, key, value, prefix_key, prefix_value, Sight.causal(1), backend=backend)
        near(out[0, 0], expected, 1e-6)


def test_every_sequence_is_attended_as_if_alone():
    """By torch's own attention over the prefix and one sequence at a time."""
    query, key, value, prefix_key, prefix_value = draw_inputs(45, 30, 6, 2, 16)
    out = prefix_attention(query, key, value, prefix_key, prefix_value, branches([(20, [5]), (0, [1]), (17, [2])]))
    start = 0
    for length in (25, 1, 19):
        rows = slice(start, start + length)
        keys = torch.cat([prefix_key, key[rows].transpose(0, 1)], 1)[None]
        values = torch.cat([prefix_value, value[rows].transpose(0, 1)], 1)[None]
        mask = torch.ones(length, 30 + length, dtype=torch.bool).tril(30)
        expected = torch.nn.functional.scaled_dot_product_attention(
            query[rows].transpose(0, 1)[None], keys, values, attn_mask=mask, enable_gqa=True
        )
        near(out[rows], expected[0].transpose(0, 1))
        start += length


@settings(max_examples=40, deadline=None)
@given(
    sequences=st.lists(
        st.tuples(st.integers(0, 40), st.lists(st.integers(1, 20), min_size=1, max_size=3)), min_size=1, max_size=5
    ),
    num_prefix=st.sampled_from([0, 1, 7, 64, 130]),
    shape=st.sampled_from([(2, 2, 16), (6, 2, 10), (9, 3, 64), (4, 1, 7)]),
    dtype=st.sampled_from(list(TOLERANCES)),
)
def test_the_cpu_equals_the_reference(sequences, num_prefix, shape, dtype):
    sight = branches(sequences)
    inputs = draw_inputs(len(sight), num_prefix, *shape, dtype)
    found = prefix_attention(*inputs, sight, backend="cpu")
    near(found, prefix_attention(*inputs, sight, backend="reference"), TOLERANCES[dtype])


@pytest.mark.parametrize("num_prefix", [0, 40])
@pytest.mark.parametrize("length", [SHORT, SHORT + 1, 2 * SHORT + 3])
def test_long_sequences_equal_the_reference(length, num_prefix):
    sight = branches([(length - 9, [9, 4]), (3, [2])])
    inputs = draw_inputs(len(sight), num_prefix, 2, 1, 8)
    near(prefix_attention(*inputs, sight), prefix_attention(*inputs, sight, backend="reference"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_scores_neither_overflow_nor_vanish(dtype):
    sight = branches([(3, [2]), (9, [1])])
    query, *rest = draw_inputs(len(sight), 20, 4, 2, 16, dtype)
    query = query * 60
    found = prefix_attention(query, *rest, sight)
    assert found.isfinite().all()
    near(found, prefix_attention(query, *rest, sight, backend="reference"), 5e-2 if dtype == torch.bfloat16 else 1e-4)


def test_some_rows_are_those_rows_of_all_on_any_number_of_threads():
    sight = branches([(20, [3, 5]), (9, [1, 2]), (31, [4, 4])] * 9)
    query, *rest = draw_inputs(len(sight), 200, 6, 2, 32)
    rows = torch.tensor([0, 22, 27, 50, len(sight) - 1])
    whole = prefix_attention(query, *rest, sight)
    near(prefix_attention(query[rows], *rest, sight.take(rows)), whole[rows])
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    try:
        near(prefix_attention(query, *rest, sight), whole)
    finally:
        torch.set_num_threads(threads)


def test_strides_of_a_joined_product_and_of_a_cut_prefix():
    sight = Sight.causal(50)
    query, key, value, prefix_key, prefix_value = draw_inputs(50, 60, 4, 2, 16)
    views = [*torch.cat([query, key, value], 1).split([4, 2, 2], 1), prefix_key[:, :37], prefix_value[:, :37]]
    near(
        prefix_attention(*views, sight),
        prefix_attention(*(view.contiguous() for view in views), sight, backend="reference"),
    )


def test_no_queries():
    query, *rest = draw_inputs(3, 4, 2, 1, 8)
    nothing = Sight.causal(3).take(torch.zeros(0, dtype=torch.int64))
    for backend in ("cpu", "reference"):
        assert prefix_attention(query[:0], *rest, nothing, backend=backend).shape == (0, 2, 8)


@pytest.mark.parametrize(
    ("place", "tensor", "message"),
    [
        (0, torch.zeros(3, 4, 8).double(), "queries: torch.float64"),
        (0, torch.zeros(3, 32), r"queries: torch.float32\[3, 32\]"),
        (0, torch.zeros(3, 3, 8), "keys: 2 heads, expected a divisor of 3"),
        (1, torch.zeros(3, 2, 9), r"keys: torch.float32\[3, 2, 9\], expected torch.float32\[3, 2, 8\]"),
        (1, torch.zeros(3, 16), r"keys: \[3, 16\]"),
        (2, torch.zeros(2, 2, 8), "values"),
        (3, torch.zeros(2, 5, 8).half(), "prefix keys: torch.float16"),
        (4, torch.zeros(2, 4, 8), r"prefix values: torch.float32\[2, 4, 8\], expected torch.float32\[2, 5, 8\]"),
        (4, torch.zeros(2, 5, 8, device="meta"), "prefix values: on meta"),
        (5, Sight.causal(2), "sight: of 2 queries over 2 keys, expected 3 over 3"),
        (5, Sight(torch.tensor([[0, 0, 0, 4]] * 3, dtype=torch.int32)), "over 4 keys, expected 3 over 3"),
    ],
)
def test_wrong_arguments_are_named(place, tensor, message):
    arguments = [*draw_inputs(3, 5, 4, 2, 8), Sight.causal(3)]
    arguments[place] = tensor
    with pytest.raises(ValueError, match=message):
        prefix_attention(*arguments)


@pytest.mark.parametrize("bounds", [[0, 1, 0, 2], [-1, 0, 0, 1], [2, 1, 3, 4], [0, 0, 2, 2]])
def test_bounds_that_are_none_are_refused(bounds):
    with pytest.raises(ValueError, match="expected 0 <= first"):
        Sight(torch.tensor([bounds], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"bounds: torch.int64\[1, 4\]"):
        Sight(torch.tensor([bounds]))


def test_an_unknown_backend_is_named():
    with pytest.raises(ValueError, match="backend 'cuda'"):
        prefix_attention(*draw_inputs(3, 5, 4, 2, 8), Sight.causal(3), backend="cuda")
