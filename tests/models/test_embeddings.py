from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.embeddings import NUM_PARTS, HashEmbedding, split_hashes

HASH = st.integers(-(1 << 63), (1 << 63) - 1)
TABLE = HashEmbedding(3, torch.Generator().manual_seed(0))


@given(HASH, HASH)
def test_hashes_share_all_rows_only_if_both_halves_are_equal(a: int, b: int) -> None:
    rows = split_hashes(np.array([a, b]))
    same_low = (a & 0xFFFFFFFF) == (b & 0xFFFFFFFF)
    same_high = (a >> 32) == (b >> 32)
    assert (rows[0, :2] == rows[1, :2]).all() == same_low
    assert (rows[0, 2:] == rows[1, 2:]).all() == same_high


@given(HASH)
def test_every_part_has_rows_of_its_own(a: int) -> None:
    rows = split_hashes(np.array([a]))[0]
    assert (rows // 65_536).tolist() == list(range(NUM_PARTS))


def test_an_embedding_is_the_sum_of_its_rows() -> None:
    hashes = np.array([[5, -7], [5, 1 << 40]])
    embedded = TABLE(hashes)
    assert embedded.shape == (2, 2, 3)
    for place in np.ndindex(2, 2):
        rows = torch.from_numpy(split_hashes(hashes[place].reshape(1))[0])
        torch.testing.assert_close(embedded[place], TABLE.weight[rows].sum(dim=0))


def test_a_bag_is_the_mean_of_what_is_in_it() -> None:
    bags = np.array([[3, 9, 0], [0, 0, 0], [9, 0, 0]])
    embedded = TABLE.bag(bags)
    torch.testing.assert_close(embedded[0], TABLE(np.array([3, 9])).mean(dim=0))
    assert not embedded[1].any()
    torch.testing.assert_close(embedded[2], TABLE(np.array([9]))[0])
    assert TABLE.bag(np.zeros((2, 0), dtype=np.int64)).tolist() == [[0.0] * 3] * 2
