"""Embeddings of 64-bit hashes without a vocabulary."""

# n = hashes, U = distinct hashes, W = places in a bag, P = rows of one hash, D = embedding dimensions

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

_HALF = 0xFFFFFFFF


class RowMap(Protocol):
    """Which rows of a table a hash is the sum of."""

    @property
    def num_rows(self) -> int: ...

    def __call__(self, hashes: Tensor) -> Tensor:
        """Return int64[..., P] for int64 hashes of any shape."""
        ...


@dataclass(frozen=True, slots=True)
class QuotientRemainder:
    """Two 32-bit halves of a hash, each a quotient and a remainder with tables of their own: four rows.

    LiRank (arXiv 2402.06859), vocabulary compression: the 64-bit hash is bit-cast to two uint32. A half u becomes
    (u mod remainder_rows, u div remainder_rows mod quotient_rows). With quotient_rows x remainder_rows >= 2^32, as at
    2^16 each, the cheapest such pair, two hashes share all rows only if they are the same hash; with less, halves that
    agree modulo the product collide. The hashes are xxh3's (models/data/attributes.py), mixed well enough to be cut.
    """

    quotient_rows: int = 1 << 16
    remainder_rows: int = 1 << 16

    def __post_init__(self) -> None:
        if min(self.quotient_rows, self.remainder_rows) < 1:
            raise ValueError(f"tables of {self.quotient_rows} and {self.remainder_rows} rows; expected at least 1 each")

    @property
    def num_rows(self) -> int:
        """Rows of the four tables, which lie one after another in one weight."""
        return 2 * (self.quotient_rows + self.remainder_rows)

    def __call__(self, hashes: Tensor) -> Tensor:
        """Return int64[..., 4]: remainder and quotient row of the low half, then of the high one."""
        per_half = self.quotient_rows + self.remainder_rows
        rows = []
        for place, half in enumerate((hashes & _HALF, (hashes >> 32) & _HALF)):
            rows.append(half % self.remainder_rows + place * per_half)
            quotients = torch.div(half, self.remainder_rows, rounding_mode="floor") % self.quotient_rows
            rows.append(quotients + (place * per_half + self.remainder_rows))
        return torch.stack(rows, dim=-1)


@dataclass(frozen=True, slots=True)
class Modulo:
    """The hashing trick: one row, the hash modulo the table. Hashes that meet share everything."""

    num_rows: int

    def __post_init__(self) -> None:
        if self.num_rows < 1:
            raise ValueError(f"a table of {self.num_rows} rows; expected at least 1")

    def __call__(self, hashes: Tensor) -> Tensor:
        """Return int64[..., 1]."""
        return (hashes % self.num_rows)[..., None]


class HashEmbedding(nn.Module):
    """Embeddings of int64 hashes: the sum of the rows that `rows` maps a hash to.

    The rows of a quotient-remainder table are summed and not multiplied: LiRank's product did not converge from a
    start near 0. Hash 0 means "nothing" in a bag. Gradients are sparse; train with
    `models.train.optimizers.RowAdaGrad`.
    """

    def __init__(self, dim: int, generator: torch.Generator, std: float = 0.05, rows: RowMap | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.rows = rows or QuotientRemainder()
        self.weight = nn.Parameter(torch.empty(self.rows.num_rows, dim).normal_(0.0, std, generator=generator))
        self._held: tuple[Tensor, Tensor] | None = None
        """Ascending hashes and their embeddings, inside `hold`."""

    @contextmanager
    def hold(self, hashes: Sequence[Tensor]) -> Iterator[None]:
        """Look the hashes up now, each distinct one once, and answer every look-up inside from that.

        A step that reads the table in many places sums each hash's rows, and gathers their gradient, once instead of
        in every place. Inside, a look-up of another hash raises ValueError.
        """
        distinct_U = torch.unique(torch.cat([part.reshape(-1) for part in hashes]))
        self._held = distinct_U, self._sum(distinct_U)
        try:
            yield
        finally:
            self._held = None

    def forward(self, hashes: Tensor) -> Tensor:
        """Return float32[..., D] for int64 hashes of any shape."""
        if self._held is not None:
            return functional.embedding(self._places(hashes), self._held[1])
        if not self.training:
            return self._sum(hashes.reshape(-1)).reshape(*hashes.shape, self.dim)
        # Batches repeat their items: each distinct hash is summed once, and its gradient gathered once.
        distinct, places = torch.unique(hashes, return_inverse=True)
        return functional.embedding(places, self._sum(distinct))

    def bag(self, hashes_NW: Tensor) -> Tensor:
        """Return float32[n, D]: the mean embedding of each row's hashes other than 0; zeros for an empty bag."""
        num_rows, width = hashes_NW.shape
        if width == 0:
            return self.weight.new_zeros(num_rows, self.dim)
        used_NW = hashes_NW != 0
        share_NW = used_NW / used_NW.sum(dim=1, keepdim=True).clamp(min=1)
        if self._held is not None:
            held_UD = self._held[1]
            return functional.embedding_bag(
                self._places(hashes_NW), held_UD, mode="sum", per_sample_weights=share_NW.to(held_UD.dtype)
            )
        rows_NWP = self.rows(hashes_NW)
        shares_NWP = share_NW.to(self.weight.dtype)[:, :, None].expand(rows_NWP.shape)
        return functional.embedding_bag(
            rows_NWP.flatten(1), self.weight, mode="sum", sparse=True, per_sample_weights=shares_NWP.flatten(1)
        )

    def _places(self, hashes: Tensor) -> Tensor:
        assert self._held is not None
        distinct_U, _ = self._held
        places = torch.searchsorted(distinct_U, hashes.contiguous()).clamp(max=len(distinct_U) - 1)
        if not torch.equal(distinct_U[places], hashes):
            raise ValueError("a hash is looked up that is not among those held; expected all of a step's")
        return places

    def _sum(self, hashes_N: Tensor) -> Tensor:
        return functional.embedding_bag(self.rows(hashes_N), self.weight, mode="sum", sparse=True)
