"""The arrays of an index: vectors, codes, keys, attributes, signals and liveness, row by row.

A row is written completely before its liveness bit is set, and not again until no reader can see it.
"""

# N = rows (capacity, a multiple of 64), M = rows written at once, D = dimensions, S = signals, W = N / 64

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import cast

import numpy as np
from numpy.typing import NDArray

from index.bits import Words, list_bits
from index.columns import Columns
from index.config import IndexConfig
from index.memory import Reserved
from kernels.codes import Codes, encode_rows

MEAN_ROWS = 256  # the first time so many rows are alive, their mean centres the codes for good


ROOM_SHARE, MIN_ROOM_ROWS = 8, 1 << 16  # reserved address space: so many times the capacity, at least so many rows


class RowArrays:
    """The row arrays of one capacity. Others replace them as a whole; readers keep those they hold.

    A larger one shares the memory of a smaller one while the reservation lasts, so growing copies only the columns.
    """

    def __init__(
        self,
        config: IndexConfig,
        capacity: int,
        columns: Columns | None = None,
        room: Mapping[str, Reserved] | None = None,
        mean_D: NDArray[np.float32] | None = None,
    ) -> None:
        self.config = config
        self.capacity = capacity = max(64, (capacity + 63) // 64 * 64)
        self.columns = columns or Columns(config.schema, capacity)
        self.has_mean = False
        self.room = dict(room or _reserve(config, max(MIN_ROOM_ROWS, ROOM_SHARE * capacity), _ALL))
        self._show(np.zeros(config.dim, np.float32) if mean_D is None else mean_D)

    def _show(self, mean_D: NDArray[np.float32]) -> None:
        """The arrays as views of the reserved memory."""
        room = {name: reserved.array for name, reserved in self.room.items()}
        capacity = self.capacity
        for name, reserved in self.room.items():
            each = room[name]
            reserved.expect(each.nbytes * capacity // self.room_rows)
        self.vector_ND = cast(NDArray[np.float32], room["vector"][:capacity])
        self.key_N = cast(NDArray[np.int64], room["key"][:capacity])
        self.live_W = cast(Words, room["live"][: capacity // 64])
        self.signal_SN = cast(NDArray[np.float64], room["signal"][:, :capacity])
        self.codes = Codes(
            cast(NDArray[np.int8], room["code"][:capacity]),
            cast(NDArray[np.float32], room["scale"][:capacity]),
            cast(NDArray[np.float32], room["residual"][:capacity]),
            mean_D,
        )

    @property
    def room_rows(self) -> int:
        """The largest capacity that the reservation has room for."""
        return int(self.room["key"].array.shape[0])

    def write_vectors(self, rows: NDArray[np.int64], vector_MD: NDArray[np.float32]) -> None:
        """Store vectors and their codes."""
        self.vector_ND[rows] = vector_MD
        code, scale, residual = encode_rows(vector_MD, self.codes.mean_D)
        self.codes.code_ND[rows] = code
        self.codes.scale_N[rows] = scale
        self.codes.residual_N[rows] = residual

    def move(self, rows: NDArray[np.int64], to: NDArray[np.int64]) -> None:
        """Write what `rows` hold at other rows, which no reader can see."""
        for array in (self.vector_ND, self.key_N, self.codes.code_ND, self.codes.scale_N, self.codes.residual_N):
            array[to] = array[rows]
        self.signal_SN[:, to] = self.signal_SN[:, rows]
        self.columns.move(rows, to)

    def grow(self, capacity: int, num_rows: int) -> RowArrays:
        """The first num_rows rows and room for more, under the same row numbers and the same mean."""
        capacity = (capacity + 63) // 64 * 64
        shared = self.room if capacity <= self.room_rows else None
        grown = RowArrays(self.config, capacity, self.columns.grow(capacity), shared, self.codes.mean_D)
        grown.has_mean = self.has_mean
        if shared is None:
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
        centred.room = self.room | _reserve(self.config, self.room_rows, ("code", "scale", "residual"))
        centred._show(mean_D)
        centred.has_mean = True
        code, scale, residual = encode_rows(self.vector_ND[:num_rows], mean_D)
        centred.codes.code_ND[:num_rows] = code
        centred.codes.scale_N[:num_rows] = scale
        centred.codes.residual_N[:num_rows] = residual
        return centred

    def with_signals(self, factor_S: NDArray[np.float64], num_rows: int) -> RowArrays:
        """The same rows with signals multiplied by the factors; readers go on with the signals they hold."""
        changed = copy.copy(self)
        changed.room = self.room | _reserve(self.config, self.room_rows, ("signal",))
        changed._show(self.codes.mean_D)
        changed.signal_SN[:, :num_rows] = self.signal_SN[:, :num_rows] * factor_S[:, None]
        return changed


_ALL = ("vector", "key", "live", "signal", "code", "scale", "residual")


def _reserve(config: IndexConfig, rows: int, names: Iterable[str]) -> dict[str, Reserved]:
    shapes: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
        "vector": ((rows, config.dim), np.float32),
        "key": ((rows,), np.int64),
        "live": ((rows // 64,), np.uint64),
        "signal": ((len(config.signals), rows), np.float64),
        "code": ((rows, config.dim), np.int8),
        "scale": ((rows,), np.float32),
        "residual": ((rows,), np.float32),
    }
    return {name: Reserved(shapes[name][0], np.dtype(shapes[name][1])) for name in names}
