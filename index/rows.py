"""The arrays of an index: vectors, codes, keys, attributes, signals and liveness, row by row.

A row is written completely before its liveness bit is set, and not again until no reader can see it.
"""

# N = rows (capacity, a multiple of 64), M = rows written at once, D = dimensions, S = signals, W = N / 64

from __future__ import annotations

import copy
from typing import cast

import numpy as np
from numpy.typing import NDArray

from index.bits import Words, list_bits
from index.code_rows import CodeRows, Frame
from index.columns import Columns
from index.config import IndexConfig
from index.memory import Reserved
from kernels.codes import Codes

ROOM_SHARE, MIN_ROOM_ROWS = 8, 1 << 16  # reserved address space: so many times the capacity, at least so many rows
BLOCK_ROWS = 1 << 15  # copied at once


class RowArrays:
    """The row arrays of one capacity. Others replace them as a whole; readers keep those they hold.

    A larger one shares the memory of a smaller one while the reservation lasts, so growing copies only the columns.
    A replacement is made in three calls: `begin_...`, `copy_rows` for every row and again for those written meanwhile,
    `finish`. Only the last must not run beside a writer.
    """

    def __init__(self, config: IndexConfig, capacity: int, *, frame: Frame | None = None) -> None:
        self.config = config
        self.capacity = _round_up(capacity)
        self.has_mean = False
        self.populated_rows = 0  # memory is there for rows below, and was written or prepared
        self.columns = Columns(config.schema, self.capacity)
        self._reserve(Frame.draw(config) if frame is None else frame)

    def _reserve(self, frame: Frame) -> None:
        """Take new memory for everything but the columns."""
        rows, config = max(MIN_ROOM_ROWS, ROOM_SHARE * self.capacity), self.config
        self.room = {
            "vector": Reserved((rows if config.store_vectors else 0, config.dim), np.dtype(np.float32)),
            "key": Reserved((rows,), np.dtype(np.int64)),
            "live": Reserved((rows // 64,), np.dtype(np.uint64)),
            "signal": Reserved((len(config.signals), rows), np.dtype(np.float64)),
        }
        self.code_rows = CodeRows.reserve(config, rows, self.capacity, frame)
        self._show()

    def _show(self) -> None:
        """The arrays as views of the reserved memory."""
        room, capacity = {name: reserved.array for name, reserved in self.room.items()}, self.capacity
        for reserved in self.room.values():
            reserved.expect(reserved.array.nbytes * capacity // self.room_rows)
        self.vector_ND = cast(NDArray[np.float32], room["vector"][:capacity])
        self.key_N = cast(NDArray[np.int64], room["key"][:capacity])
        self.live_W = cast(Words, room["live"][: capacity // 64])
        self.signal_SN = cast(NDArray[np.float64], room["signal"][:, :capacity])

    @property
    def codes(self) -> Codes:
        return self.code_rows.codes

    @property
    def room_rows(self) -> int:
        """The largest capacity that the reservation has room for."""
        return int(self.room["key"].array.shape[0])

    def write_vectors(self, rows: NDArray[np.int64], vector_MD: NDArray[np.float32]) -> None:
        """Store vectors, where they are stored, and their codes."""
        if self.config.store_vectors:
            self.vector_ND[rows] = vector_MD
        self.code_rows.write(rows, vector_MD)

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """float32[M,D], a copy; what the codes stand for where vectors are not stored."""
        return self.vector_ND[rows] if self.config.store_vectors else self.code_rows.decode(rows)

    def move(self, rows: NDArray[np.int64], to: NDArray[np.int64]) -> None:
        """Write what `rows` hold at other rows, which no reader can see."""
        if self.config.store_vectors:
            self.vector_ND[to] = self.vector_ND[rows]
        self.key_N[to] = self.key_N[rows]
        self.signal_SN[:, to] = self.signal_SN[:, rows]
        self.code_rows.move(rows, to)
        self.columns.move(rows, to)

    def populate(self, last: int) -> None:
        """Have the memory of rows up to `last` ready: a page that a write has to wait for costs it milliseconds."""
        first = self.populated_rows
        for name in ("vector", "key"):
            self.room[name].populate(self.room[name].array[first:last])
        for signal_N in self.signal_SN:
            self.room["signal"].populate(signal_N[first:last])
        self.code_rows.populate(first, last)
        self.populated_rows = last

    # Replacements

    def begin_growth(self, capacity: int) -> RowArrays:
        """The same rows under the same numbers and the same mean, and room for more."""
        grown = copy.copy(self)
        grown.capacity = _round_up(capacity)
        grown.columns = self.columns.begin_copy(grown.capacity)
        if grown.capacity > self.room_rows:
            grown._reserve(self.code_rows.frame)
            grown.populated_rows = 0
        else:
            grown.code_rows = self.code_rows.resize(grown.capacity)
            grown._show()
        return grown

    def begin_centring(self) -> RowArrays:
        """The same rows with codes around the mean of the live ones; everything but the codes is shared."""
        live = list_bits(self.live_W)
        total_D = np.zeros(self.config.dim, np.float64)
        for first in range(0, live.size, BLOCK_ROWS):
            total_D += self.vectors(live[first : first + BLOCK_ROWS]).sum(axis=0, dtype=np.float64)
        return self._begin_codes((total_D / max(1, live.size)).astype(np.float32))

    def _begin_codes(self, mean_D: NDArray[np.float32]) -> RowArrays:
        centred = copy.copy(self)
        frame = self.code_rows.frame._replace(mean_D=mean_D)
        centred.code_rows = CodeRows.reserve(self.config, self.room_rows, self.capacity, frame)
        centred.has_mean = True
        centred.populated_rows = 0
        return centred

    def copy_rows(self, source: RowArrays, rows: NDArray[np.int64]) -> None:
        """Take over rows of everything that is not shared with the source; any thread, beside the source's writer."""
        for first in range(0, rows.size, BLOCK_ROWS):
            block = rows[first : first + BLOCK_ROWS]
            if self.room is not source.room:
                if self.config.store_vectors:
                    self.vector_ND[block] = source.vector_ND[block]
                self.key_N[block] = source.key_N[block]
                self.signal_SN[:, block] = source.signal_SN[:, block]
            if self.code_rows.frame is not source.code_rows.frame:
                self.code_rows.write(block, source.vectors(block))
            elif self.code_rows.room is not source.code_rows.room:
                self.code_rows.copy_rows(source.code_rows, block)
            if self.columns is not source.columns:
                self.columns.copy_rows(source.columns, block)

    def finish(self, source: RowArrays) -> None:
        """Take over what is not by row. The source's writer must stand still, with all its rows copied."""
        if self.room is not source.room:
            self.live_W[: source.live_W.size] = source.live_W
        if self.columns is not source.columns:
            self.columns.finish_copy(source.columns)

    def grow(self, capacity: int, num_rows: int) -> RowArrays:
        """All of a growth at once, with the first num_rows rows."""
        grown = self.begin_growth(capacity)
        grown.copy_rows(self, np.arange(num_rows))
        grown.finish(self)
        return grown

    def with_mean(self, mean_D: NDArray[np.float32], num_rows: int) -> RowArrays:
        """The same rows with codes around `mean_D`."""
        centred = self._begin_codes(mean_D.copy())
        centred.copy_rows(self, np.arange(num_rows))
        return centred

    def with_signals(self, factor_S: NDArray[np.float64], num_rows: int) -> RowArrays:
        """The same rows with signals multiplied by the factors; readers go on with the signals they hold."""
        changed = copy.copy(self)
        signal = Reserved((len(self.config.signals), self.room_rows), np.dtype(np.float64))
        changed.room = self.room | {"signal": signal}
        changed._show()
        changed.signal_SN[:, :num_rows] = self.signal_SN[:, :num_rows] * factor_S[:, None]
        return changed


def _round_up(capacity: int) -> int:
    return max(64, (capacity + 63) // 64 * 64)
