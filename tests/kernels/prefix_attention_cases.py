"""Cases of prefix attention on a GPU: run by test_prefix_attention_gpu.py in its own process.

pytest does not collect this file by itself. Under TRITON_INTERPRET=1 the kernel runs on CPU tensors; without it it
runs natively and needs a card.
"""

import os

import pytest
import torch

from kernels.prefix_attention import Sight, prefix_attention
from tests.kernels.prefix_attention_inputs import branches, draw_inputs

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
# The interpreter multiplies bfloat16 as the whole numbers that its bits spell.
DTYPES = {torch.float32: 1e-5, torch.float16: 2e-3} | ({} if INTERPRETED else {torch.bfloat16: 1.6e-2})
SHAPES = [(2, 2, 16), (6, 2, 24), (9, 3, 64), (4, 1, 130)]
"""Heads, key-value heads, head size."""


def near(found, expected, tolerance):
    assert found.dtype == expected.dtype and found.shape == expected.shape
    torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_prefix", [0, 1, 150])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_reference(shape, num_prefix, dtype):
    sight = branches([(5, [3]), (0, [1, 70, 2]), (33, [1, 1]), (1, [4])])
    inputs = draw_inputs(len(sight), num_prefix, *shape, dtype, DEVICE)
    found = prefix_attention(*inputs, sight, backend="gpu")
    near(found, prefix_attention(*inputs, sight, backend="reference"), DTYPES[dtype])


def test_some_rows_are_those_rows_of_all():
    sight = branches([(20, [3, 5]), (9, [1, 2]), (31, [4, 4])])
    query, *rest = draw_inputs(len(sight), 40, 6, 2, 32, torch.float32, DEVICE)
    rows = torch.tensor([0, 22, 27, 50, len(sight) - 1])
    whole = prefix_attention(query, *rest, sight, backend="gpu")
    near(prefix_attention(query[rows.to(DEVICE)], *rest, sight.take(rows), backend="gpu"), whole[rows], 1e-5)


def test_strides_of_a_joined_product_and_of_a_cut_prefix():
    sight = Sight.causal(50)
    query, key, value, prefix_key, prefix_value = draw_inputs(50, 60, 4, 2, 16, torch.float32, DEVICE)
    joined = torch.cat([query, key, value], 1)
    views = [*joined.split([4, 2, 2], 1), prefix_key[:, :37], prefix_value[:, :37]]
    near(
        prefix_attention(*views, sight, backend="gpu"),
        prefix_attention(*(view.contiguous() for view in views), sight, backend="reference"),
        1e-5,
    )


def test_no_queries():
    query, *rest = draw_inputs(3, 4, 2, 1, 8, torch.float32, DEVICE)
    nothing = Sight.causal(3).take(torch.zeros(0, dtype=torch.int64))
    assert prefix_attention(query[:0], *rest, nothing, backend="gpu").shape == (0, 2, 8)
