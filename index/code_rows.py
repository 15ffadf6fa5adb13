"""The codes of all rows, in reserved memory, around one mean. Only this file and the kernels know what a code is."""

# N = rows, M = rows written at once, D = dimensions

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from index.config import IndexConfig
from index.memory import Reserved
from kernels.codes import Codes, decode_rows, encode_rows


class CodeRows:
    """One row of codes per row of the index. A larger one shares the memory while the reservation lasts."""

    def __init__(
        self, config: IndexConfig, room: tuple[Reserved, ...], capacity: int, mean_D: NDArray[np.float32]
    ) -> None:
        self.config = config
        self.room = room
        self.mean_D = mean_D
        for reserved in room:
            rows = reserved.array.shape[0]
            reserved.expect(reserved.array.nbytes * capacity // rows if rows else 0)
        self.codes = Codes._make((*(reserved.array[:capacity] for reserved in room), mean_D))

    @classmethod
    def reserve(cls, config: IndexConfig, room_rows: int, capacity: int, mean_D: NDArray[np.float32]) -> CodeRows:
        """Empty rows in memory of their own."""
        parts = _encode(config, np.zeros((1, mean_D.size), np.float32), mean_D)
        return cls(
            config,
            tuple(Reserved((room_rows if len(part) else 0, *part.shape[1:]), part.dtype) for part in parts),
            capacity,
            mean_D,
        )

    def resize(self, capacity: int) -> CodeRows:
        """The same memory with more of its rows shown."""
        return CodeRows(self.config, self.room, capacity, self.mean_D)

    def first(self, num_rows: int) -> Codes:
        """The codes of the first rows, for the kernels."""
        return Codes._make((*(array[:num_rows] for array in self._arrays()), self.mean_D))

    def decode(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """float32[M,D]: the vectors that the codes of some rows stand for."""
        return decode_rows(self.codes, rows)

    def write(self, rows: NDArray[np.int64], vector_MD: NDArray[np.float32]) -> None:
        """Store the codes of vectors."""
        for array, part in zip(self._arrays(), _encode(self.config, vector_MD, self.mean_D), strict=True):
            array[rows[: len(part)]] = part

    def move(self, rows: NDArray[np.int64], to: NDArray[np.int64]) -> None:
        """Write what `rows` hold at other rows."""
        self.copy_rows(self, rows, to)

    def copy_rows(self, source: CodeRows, rows: NDArray[np.int64], to: NDArray[np.int64] | None = None) -> None:
        """Take over rows of codes around the same mean."""
        to = rows if to is None else to
        for array, other in zip(self._arrays(), source._arrays(), strict=True):
            if len(array):
                array[to] = other[rows]

    def populate(self, first: int, last: int) -> None:
        """Have the memory of some rows ready before they are written."""
        for reserved in self.room:
            reserved.populate(reserved.array[first:last])

    def _arrays(self) -> tuple[NDArray[np.generic], ...]:
        return tuple(self.codes[:-1])


def _encode(
    config: IndexConfig, vector_MD: NDArray[np.float32], mean_D: NDArray[np.float32]
) -> tuple[NDArray[np.generic], ...]:
    codes = encode_rows(vector_MD, mean_D, fine=config.codes == "int8", alone=not config.store_vectors)
    parts: tuple[NDArray[np.generic], ...] = tuple(codes)
    return parts[: len(Codes._fields) - 1]
