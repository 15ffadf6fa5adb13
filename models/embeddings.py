"""Embeddings of 64-bit hashes without a vocabulary."""

# n = hashes, W = places in a bag, D = embedding dimensions

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

_HALF_BITS = 16
_PART_ROWS = 1 << _HALF_BITS
NUM_PARTS = 4


def split_hashes(hashes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return int64[..., 4]: the table rows of each hash, two for either 32-bit half.

    A half becomes a quotient and a remainder by 2^16, and each of the four parts has its own 65,536 rows, so
    two hashes share all rows only if both of their halves are equal: only if they are the same hash.
    """
    bits = np.ascontiguousarray(hashes, dtype=np.int64).view(np.uint64)
    shifts = np.arange(NUM_PARTS, dtype=np.uint64) * np.uint64(_HALF_BITS)
    parts = (bits[..., None] >> shifts) & np.uint64(_PART_ROWS - 1)
    rows: NDArray[np.int64] = parts.astype(np.int64) + np.arange(NUM_PARTS, dtype=np.int64) * _PART_ROWS
    return rows


class HashEmbedding(nn.Module):
    """Quotient-remainder embedding of int64 hashes: the sum of four rows of one table.

    LiRank (arXiv 2402.06859), vocabulary compression: the 64-bit hash is cut in two uint32, each looked up in its
    own quotient and remainder tables, the rows summed (their product did not converge from a start near 0). We
    divide by 2^16, the cheapest pair of tables that still separates all 2^32 values of a half.
    Hash 0 means "nothing" in a bag. Gradients are sparse; train with `models.train.optimizers.RowAdaGrad`.
    """

    def __init__(self, dim: int, generator: torch.Generator, std: float = 0.05) -> None:
        super().__init__()
        self.dim = dim
        self.weight = nn.Parameter(torch.empty(NUM_PARTS * _PART_ROWS, dim).normal_(0.0, std, generator=generator))

    def forward(self, hashes: NDArray[np.int64]) -> Tensor:
        """Return float32[..., D] for hashes of any shape."""
        # Batches repeat their items: each distinct hash is summed once, and its gradient gathered once.
        distinct, places = np.unique(hashes, return_inverse=True)
        rows = torch.from_numpy(split_hashes(distinct))
        embedded = functional.embedding_bag(rows, self.weight, mode="sum", sparse=True)
        return functional.embedding(torch.from_numpy(places.reshape(hashes.shape)), embedded)

    def bag(self, hashes_NW: NDArray[np.int64]) -> Tensor:
        """Return float32[n, D]: the mean embedding of each row's hashes other than 0; zeros for an empty bag."""
        num_rows, width = hashes_NW.shape
        if width == 0:
            return self.weight.new_zeros(num_rows, self.dim)
        used = hashes_NW != 0
        counts = np.maximum(used.sum(axis=1), 1)
        rows = torch.from_numpy(split_hashes(hashes_NW[used]).reshape(-1))
        lengths = used.sum(axis=1) * NUM_PARTS
        offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64))
        sums = functional.embedding_bag(rows, self.weight, offsets, mode="sum", sparse=True)
        return sums / torch.from_numpy(counts.astype(np.float32))[:, None]
