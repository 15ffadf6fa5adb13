"""Cases of the GPU kernels of the ranker, `cross` and `embedding_bag`: run by test_ranking_gpu.py in its own process.

pytest does not collect this file by itself. Under TRITON_INTERPRET=1 the kernels run on CPU tensors; without it
they run natively and need a card.
"""

import os

import pytest
import torch

from kernels.cross import low_rank_cross
from kernels.embedding_bag import QuantisedRows, embedding_bag

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
# The interpreter multiplies bfloat16 as the whole numbers that its bits spell.
DTYPES = {torch.float32: 3e-6, torch.float16: 2e-3} | ({} if INTERPRETED else {torch.bfloat16: 1.6e-2})


def cross_inputs(num_rows, dim, rank, dtype, seed=0):
    random = torch.Generator().manual_seed(seed)

    def draw(*shape, scale=1.0):
        return (torch.randn(*shape, generator=random) * scale).to(DEVICE, dtype)

    return [
        draw(num_rows, dim), draw(num_rows, dim), draw(rank, dim, scale=dim**-0.5),
        draw(dim, rank, scale=rank**-0.5), draw(dim),
    ]  # fmt: skip


def near(found, expected, tolerance):
    largest = expected.float().abs().max().clamp(min=1e-9) if expected.numel() else 1.0
    assert found.dtype == expected.dtype and found.shape == expected.shape
    torch.testing.assert_close(found.float() / largest, expected.float() / largest, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("num_rows", "dim", "rank"), [(1, 1, 1), (7, 5, 3), (64, 64, 16), (130, 257, 20), (300, 96, 64), (600, 33, 5)]
)
def test_cross_equals_the_reference(num_rows, dim, rank, dtype):
    inputs = cross_inputs(num_rows, dim, rank, dtype)
    grad = torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)
    outcomes = []
    for backend in ("gpu", "reference"):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        out = low_rank_cross(*leaves, backend=backend)
        out.backward(grad)
        outcomes.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for found, expected in zip(*outcomes, strict=True):
        near(found, expected, DTYPES[dtype] * 2)


def test_cross_of_one_input_in_both_places():
    """The first layer of a stack: x_0 is x, and its gradient is the sum of both."""
    x, _, down, up, bias = cross_inputs(20, 30, 8, torch.float32)
    grads = []
    for backend in ("gpu", "reference"):
        leaf = x.clone().requires_grad_()
        low_rank_cross(leaf, leaf, down, up, bias, backend=backend).square().sum().backward()
        grads.append(leaf.grad)
    near(*grads, 5e-6)


def test_cross_of_no_rows_and_of_strided_rows():
    inputs = cross_inputs(0, 4, 2, torch.float32)
    leaves = [tensor.requires_grad_() for tensor in inputs]
    low_rank_cross(*leaves, backend="gpu").sum().backward()
    assert all(leaf.grad.abs().sum() == 0 for leaf in leaves)
    x0, x, down, up, bias = cross_inputs(6, 10, 3, torch.float32)
    views = [x0.T.contiguous().T, x.T.contiguous().T, down.T.contiguous().T, up, bias]
    near(low_rank_cross(*views, backend="gpu"), low_rank_cross(*views, backend="reference"), 1e-6)


def test_two_backward_passes_give_the_same_bits():
    inputs = cross_inputs(700, 70, 9, torch.float32)
    grads = []
    for _ in range(2):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        low_rank_cross(*leaves, backend="gpu").square().sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def bags(num_bags, width, seed=0):
    """Hashes of either sign, every kind of bag: empty, full, one hash often."""
    random = torch.Generator().manual_seed(seed)
    hashes = torch.randint(-(2**63), 2**63 - 1, (num_bags, width), generator=random)
    hashes[torch.rand(num_bags, width, generator=random) < 0.4] = 0
    if num_bags > 2 and width:
        hashes[0] = 0
        hashes[1] = 2**63 - 1
        hashes[2] = -1
    return hashes.to(DEVICE)


BAG_SHAPES = [
    (1, 1, 1, (3, 5)),
    (40, 6, 16, (7, 11)),
    (65, 3, 33, (1 << 8, 1 << 9)),
    (5, 0, 4, (2, 2)),
    (0, 3, 4, (2, 2)),
]


@pytest.mark.parametrize(("num_bags", "width", "dim", "rows"), BAG_SHAPES)
def test_bags_equal_the_reference(num_bags, width, dim, rows):
    random = torch.Generator().manual_seed(3)
    weight = torch.randn(2 * sum(rows), dim, generator=random).to(DEVICE)
    hashes = bags(num_bags, width)
    grad = torch.randn(num_bags, dim, generator=random).to(DEVICE)
    outcomes = []
    for backend in ("gpu", "reference"):
        leaf = weight.clone().requires_grad_()
        out = embedding_bag(hashes, leaf, *rows, backend=backend)
        out.backward(grad)
        outcomes.append((out.detach(), leaf.grad))
    (out, found), (expected_out, expected) = outcomes
    near(out, expected_out, 1e-6)
    assert found.is_sparse
    row = found._indices()[0]
    assert len(torch.unique(row)) == len(row), "an optimizer by rows would take two steps"
    near(found.to_dense(), expected.to_dense(), 2e-6)


@pytest.mark.parametrize(("num_bags", "width", "dim", "rows"), BAG_SHAPES)
def test_bags_of_int8_rows_equal_the_reference(num_bags, width, dim, rows):
    weight = torch.randn(2 * sum(rows), dim, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    table = QuantisedRows.of(weight)
    hashes = bags(num_bags, width)
    found = embedding_bag(hashes, table, *rows, backend="gpu")
    near(found, embedding_bag(hashes, table, *rows, backend="reference"), 1e-6)
