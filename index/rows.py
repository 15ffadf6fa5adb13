"""The arrays of an index: vectors, codes, keys, attributes, signals and liveness, row by row.

A row is written completely before its liveness bit is set, and not again until no reader can see it.
"""

# N = rows (capacity, a multiple of 64), M = rows written at once, D = dimensions, S = signals, W = N / 64

from __future__ import annotations

import copy

import numpy as np
from numpy.typing import NDArray

from index.bits import Words, list_bits
from index.columns import Columns
from index.config import IndexConfig
from kernels.codes import Codes, encode_rows

MEAN_ROWS = 256  # the first time so many rows are alive, their mean centres the codes for good


class RowArrays:
    """One allocation of row arrays. Another one replaces it as a whole; readers keep the one they hold."""

    def __init__(self, config: IndexConfig, capacity: int, columns: Columns | None = None) -> None:
        capacity = max(64, (capacity + 63) // 64 * 64)
        self.config = config
        self.capacity = capacity
        self.vector_ND = np.zeros((capacity, config.dim), np.float32)
        self.key_N = np.full(capacity, -1, np.int64)
        self.live_W: Words = np.zeros(capacity // 64, np.uint64)
        self.signal_SN = np.zeros((len(config.signals), capacity), np.float64)
        self.columns = columns or Columns(config.schema, capacity)
        self.has_mean = False
        self.codes = _allocate_codes(capacity, np.zeros(config.dim, np.float32))

    def write_vectors(self, rows: NDArray[np.int64], vector_MD: NDArray[np.float32]) -> None:
        """Store vectors and their codes."""
        self.vector_ND[rows] = vector_MD
        code, scale, residual = encode_rows(vector_MD, self.codes.mean_D)
        self.codes.code_ND[rows] = code
        self.codes.scale_N[rows] = scale
        self.codes.residual_N[rows] = residual

    def grow(self, capacity: int, num_rows: int) -> RowArrays:
        """A larger copy of the first num_rows rows, under the same row numbers and the same mean."""
        capacity = (capacity + 63) // 64 * 64
        grown = RowArrays(self.config, capacity, self.columns.grow(capacity))
        grown.has_mean = self.has_mean
        grown.codes = _allocate_codes(capacity, self.codes.mean_D)
        grown.vector_ND[:num_rows] = self.vector_ND[:num_rows]
        grown.key_N[:num_rows] = self.key_N[:num_rows]
        grown.live_W[: self.live_W.size] = self.live_W
        grown.signal_SN[:, :num_rows] = self.signal_SN[:, :num_rows]
        grown.codes.code_ND[:num_rows] = self.codes.code_ND[:num_rows]
        grown.codes.scale_N[:num_rows] = self.codes.scale_N[:num_rows]
        grown.codes.residual_N[:num_rows] = self.codes.residual_N[:num_rows]
        return grown

    def centre(self, num_rows: int) -> RowArrays:
        """The same rows with codes around the mean of the live ones; everything but the codes is shared."""
        live = list_bits(self.live_W)
        mean_D = self.vector_ND[live].mean(axis=0, dtype=np.float64).astype(np.float32)
        return self.with_mean(mean_D, num_rows)

    def with_mean(self, mean_D: NDArray[np.float32], num_rows: int) -> RowArrays:
        """The same rows with codes around `mean_D`."""
        centred = copy.copy(self)
        centred.codes = _allocate_codes(self.capacity, mean_D)
        centred.has_mean = True
        code, scale, residual = encode_rows(self.vector_ND[:num_rows], mean_D)
        centred.codes.code_ND[:num_rows] = code
        centred.codes.scale_N[:num_rows] = scale
        centred.codes.residual_N[:num_rows] = residual
        return centred

    def with_signals(self, signal_SN: NDArray[np.float64]) -> RowArrays:
        """The same rows with other signals; readers go on with the signals they hold."""
        changed = copy.copy(self)
        changed.signal_SN = signal_SN
        return changed


def _allocate_codes(capacity: int, mean_D: NDArray[np.float32]) -> Codes:
    return Codes(
        np.zeros((capacity, mean_D.size), np.int8),
        np.zeros(capacity, np.float32),
        np.zeros(capacity, np.float32),
        mean_D,
    )
