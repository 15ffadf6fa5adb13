import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.embedding_bag import QuantisedRows, embedding_bag

HASHES = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63), 2**32, 2**32 - 1])


def slow_mean(hashes, weight, quotient_rows, remainder_rows):
    """By the definition, one hash at a time, in whole numbers of any size."""
    total, count = np.zeros(weight.shape[1]), 0
    for value in hashes:
        if value == 0:
            continue
        count += 1
        bits = value % 2**64
        for place, half in enumerate((bits % 2**32, bits // 2**32)):
            first = place * (remainder_rows + quotient_rows)
            total += weight[first + half % remainder_rows]
            total += weight[first + remainder_rows + half // remainder_rows % quotient_rows]
    return total / max(count, 1)


@settings(deadline=None)  # the first call compiles
@given(
    st.lists(st.lists(HASHES, min_size=3, max_size=3), min_size=1, max_size=4),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 9),
)
def test_every_backend_equals_the_definition(hashes, quotient_rows, remainder_rows, dim):
    random = np.random.default_rng(quotient_rows * 41 + remainder_rows)
    weight = random.standard_normal((2 * (quotient_rows + remainder_rows), dim)).astype(np.float32)
    table = QuantisedRows.of(torch.from_numpy(weight))
    bags = torch.tensor(hashes)
    for rows, values in ((torch.from_numpy(weight), weight), (table, table.dequantised().numpy())):
        expected = [slow_mean(row, values.astype(np.float64), quotient_rows, remainder_rows) for row in hashes]
        for backend in ("cpu", "reference", "auto"):
            found = embedding_bag(bags, rows, quotient_rows, remainder_rows, backend=backend)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@given(
    st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=5, max_size=5), min_size=1, max_size=6),
)
def test_int8_rows_are_within_half_a_step(rows):
    weight = torch.tensor(rows, dtype=torch.float32)
    table = QuantisedRows.of(weight)
    error = (table.dequantised().double() - weight.double()).abs()
    rounding = 4e-7 * weight.abs().amax(1, keepdim=True) + 2**-149  # and a step among denormals
    assert (error <= table.scale_V[:, None] / 2 * (1 + 1e-5) + rounding).all()
    assert table.code_VD.dtype == torch.int8


def test_int8_rows_fill_the_range():
    table = QuantisedRows.of(torch.tensor([[-1.0, 0.0, 3.0], [7.0, 7.0, 7.0]]))
    assert table.code_VD[0, 0] == -128 and table.code_VD[0, 2] == 127
    assert torch.equal(table.dequantised()[1], torch.full((3,), 7.0))
    assert table.num_bytes == 6 + 2 * 8


def test_a_table_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        QuantisedRows.of(torch.tensor([[1.0, torch.nan]]))


def test_the_gradient_is_a_mean_over_the_bag_and_sparse():
    weight = torch.zeros(8, 2, requires_grad=True)
    embedding_bag(torch.tensor([[1, 1 << 32, 0]]), weight, 2, 2).sum().backward()
    grad = weight.grad.to_dense()[:, 0]
    # 1: low half 1 -> remainder 1, quotient 0; high half 0 -> remainder 0, quotient 0.  1 << 32: the same, swapped.
    assert grad.tolist() == [0.5, 0.5, 1.0, 0.0, 0.5, 0.5, 1.0, 0.0]
    with pytest.raises(ValueError, match="no gradient"):
        embedding_bag(torch.tensor([[1]]), weight, 2, 2, backend="cpu")


@pytest.mark.parametrize(
    ("hashes", "table", "rows", "message"),
    [
        (torch.zeros(2, 2), torch.zeros(8, 2), (2, 2), "hashes: torch.float32"),
        (torch.zeros(2, dtype=torch.int64), torch.zeros(8, 2), (2, 2), "hashes"),
        (torch.zeros(2, 2, dtype=torch.int64), torch.zeros(7, 2), (2, 2), r"table: \[7, 2\]"),
        (torch.zeros(2, 2, dtype=torch.int64), torch.zeros(8, 2).double(), (2, 2), "float64"),
        (torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 8).T, (2, 2), "contiguous"),
        (torch.zeros(2, 2, dtype=torch.int64), torch.zeros(8, 2), (0, 4), "tables of 0 and 4"),
        (
            torch.zeros(2, 2, dtype=torch.int64),
            QuantisedRows(torch.zeros(8, 2, dtype=torch.int8), torch.zeros(3), torch.zeros(8)),
            (2, 2),
            "scale_V",
        ),
    ],
)
def test_wrong_arguments_are_named(hashes, table, rows, message):
    with pytest.raises(ValueError, match=message):
        embedding_bag(hashes, table, *rows)


def test_an_unknown_backend_is_named():
    with pytest.raises(ValueError, match="backend 'tpu'"):
        embedding_bag(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(8, 2), 2, 2, backend="tpu")
