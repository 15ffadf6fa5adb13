from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.embeddings import HashEmbedding, Modulo, QuotientRemainder

HASH = st.integers(-(1 << 63), (1 << 63) - 1)
ROWS = st.integers(1, 3000)
TABLE = HashEmbedding(3, torch.Generator().manual_seed(0))


@given(HASH, HASH)
def test_hashes_share_all_rows_only_if_both_halves_are_equal(a: int, b: int) -> None:
    rows = QuotientRemainder()(torch.tensor([a, b]))
    same_low = (a & 0xFFFFFFFF) == (b & 0xFFFFFFFF)
    same_high = (a >> 32) == (b >> 32)
    assert bool((rows[0, :2] == rows[1, :2]).all()) == same_low
    assert bool((rows[0, 2:] == rows[1, 2:]).all()) == same_high


@given(HASH, ROWS, ROWS)
def test_rows_are_quotient_and_remainder_of_each_half_in_tables_of_their_own(
    hashed: int, quotient_rows: int, remainder_rows: int
) -> None:
    rows = QuotientRemainder(quotient_rows, remainder_rows)
    expected = []
    start = 0
    for half in (hashed & 0xFFFFFFFF, (hashed >> 32) & 0xFFFFFFFF):
        expected += [start + half % remainder_rows, start + remainder_rows + half // remainder_rows % quotient_rows]
        start += quotient_rows + remainder_rows
    assert rows(torch.tensor(hashed)).tolist() == expected
    assert rows.num_rows == start


@given(HASH, ROWS)
def test_the_hashing_trick_is_the_hash_modulo_the_table(hashed: int, num_rows: int) -> None:
    assert Modulo(num_rows)(torch.tensor([hashed])).tolist() == [[hashed % num_rows]]


def test_an_embedding_is_the_sum_of_its_rows() -> None:
    hashes = torch.tensor([[5, -7], [5, 1 << 40]])
    embedded = TABLE(hashes)
    assert embedded.shape == (2, 2, 3)
    for place in np.ndindex(2, 2):
        torch.testing.assert_close(embedded[place], TABLE.weight[TABLE.rows(hashes[place])].sum(dim=0))


def test_an_embedding_is_the_same_in_training_and_in_service() -> None:
    hashes = torch.tensor([[5, -7, 0], [5, 1 << 40, 5]])
    trained, served = HashEmbedding(3, torch.Generator().manual_seed(0)), TABLE
    torch.testing.assert_close(trained.train()(hashes), served.eval()(hashes))


def test_a_bag_is_the_mean_of_what_is_in_it() -> None:
    bags = torch.tensor([[3, 9, 0], [0, 0, 0], [9, 0, 0]])
    embedded = TABLE.bag(bags)
    torch.testing.assert_close(embedded[0], TABLE(torch.tensor([3, 9])).mean(dim=0))
    assert not embedded[1].any()
    torch.testing.assert_close(embedded[2], TABLE(torch.tensor([9]))[0])
    assert TABLE.bag(torch.zeros((2, 0), dtype=torch.int64)).tolist() == [[0.0] * 3] * 2


def test_what_is_held_is_looked_up_once_and_is_the_same_with_its_gradient() -> None:
    keys, bags = torch.tensor([[5, -7, 0], [5, 1 << 40, 5]]), torch.tensor([[3, 9, 0], [0, 0, 0], [9, 5, -7]])
    weights = torch.tensor([0.5, -1.0, 2.0])
    found = []
    for held in (False, True):
        table = HashEmbedding(3, torch.Generator().manual_seed(0)).train()
        with table.hold([keys, bags]) if held else nullcontext():
            embedded, pooled = table(keys), table.bag(bags)
            nothing = table.bag(torch.zeros((2, 0), dtype=torch.int64))
        ((embedded * weights).sum() + (pooled * weights.flip(0)).square().sum()).backward()
        assert table.weight.grad is not None and table.weight.grad.is_sparse and not nothing.any()
        found.append((embedded, pooled, table.weight.grad.to_dense()))
    for once, each in zip(*found, strict=True):
        torch.testing.assert_close(once, each)


def test_a_hash_that_is_not_held_is_refused_inside_and_found_after() -> None:
    table = HashEmbedding(3, torch.Generator().manual_seed(0)).train()
    with table.hold([torch.tensor([4, 9])]):
        for stranger in (1, 5, 10):
            with pytest.raises(ValueError, match="not among those held"):
                table(torch.tensor([9, stranger]))
    torch.testing.assert_close(table(torch.tensor([5])), TABLE(torch.tensor([5])))


def test_tables_without_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="a table of 0 rows"):
        Modulo(0)
    with pytest.raises(ValueError, match="tables of 5 and 0 rows"):
        QuotientRemainder(5, 0)
