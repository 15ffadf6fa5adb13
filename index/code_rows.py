"""The codes of all rows, in reserved memory, of one frame. Only this file and the kernels know what a code is."""

# N = rows, M = rows written at once, D = dimensions, L = bits of a 1-bit code

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from index.config import IndexConfig
from index.memory import Reserved
from kernels.codes import NO_ROTATION, NUM_ARRAYS, Codes, decode_rows, encode_rows, random_rotation
from kernels.sign_codes import QUERY_PLANES, SignCodes, draw_projection, encode_signs


class Frame(NamedTuple):
    """What codes are relative to; fixed for good but for the mean, which comes with the first items."""

    mean_D: NDArray[np.float32]
    rotation_DD: NDArray[np.float64]  # [0,0]: none
    projection_LD: NDArray[np.float64]  # [0,D]: no 1-bit codes

    @classmethod
    def draw(cls, config: IndexConfig) -> Frame:
        """By the seed of the settings, around zero."""
        dim = config.dim
        rotation_DD = random_rotation(dim, np.random.default_rng(config.seed)) if config.rotate else NO_ROTATION
        projection_LD = np.empty((0, dim))
        if config.signs is not None:
            projection_LD = draw_projection(config.signs, dim, config.num_sign_bits, config.seed + 1)
        return cls(np.zeros(dim, np.float32), rotation_DD, projection_LD)


class CodeRows:
    """One row of codes per row of the index. A larger one shares the memory while the reservation lasts."""

    def __init__(self, config: IndexConfig, room: tuple[Reserved, ...], capacity: int, frame: Frame) -> None:
        self.config = config
        self.room = room
        self.frame = frame
        for reserved in room:
            rows = reserved.array.shape[0]
            reserved.expect(reserved.array.nbytes * capacity // rows if rows else 0)
        self.arrays = tuple(reserved.array[:capacity] for reserved in room)
        self.codes = Codes._make((*self.arrays[:NUM_ARRAYS], frame.mean_D, frame.rotation_DD))
        self.signs: SignCodes | None = None
        if config.signs is not None:
            planes = QUERY_PLANES[config.signs]
            self.signs = SignCodes._make((*self.arrays[NUM_ARRAYS:], frame.projection_LD, planes))

    @classmethod
    def reserve(cls, config: IndexConfig, room_rows: int, capacity: int, frame: Frame) -> CodeRows:
        """Empty rows in memory of their own."""
        parts = _encode(config, np.zeros((1, config.dim), np.float32), frame)
        return cls(
            config,
            tuple(Reserved((room_rows if len(part) else 0, *part.shape[1:]), part.dtype) for part in parts),
            capacity,
            frame,
        )

    def resize(self, capacity: int) -> CodeRows:
        """The same memory with more of its rows shown."""
        return CodeRows(self.config, self.room, capacity, self.frame)

    def first(self, num_rows: int) -> Codes:
        """The codes of the first rows, for the kernels."""
        return self.codes.first(num_rows)

    def decode(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """float32[M,D]: the vectors that the codes of some rows stand for."""
        return decode_rows(self.codes, rows)

    def write(self, rows: NDArray[np.int64], vector_MD: NDArray[np.float32]) -> None:
        """Store the codes of vectors."""
        for array, part in zip(self.arrays, _encode(self.config, vector_MD, self.frame), strict=True):
            array[rows[: len(part)]] = part

    def move(self, rows: NDArray[np.int64], to: NDArray[np.int64]) -> None:
        """Write what `rows` hold at other rows."""
        self.copy_rows(self, rows, to)

    def copy_rows(self, source: CodeRows, rows: NDArray[np.int64], to: NDArray[np.int64] | None = None) -> None:
        """Take over rows of codes of the same frame."""
        to = rows if to is None else to
        for array, other in zip(self.arrays, source.arrays, strict=True):
            if len(array):
                array[to] = other[rows]

    def populate(self, first: int, last: int) -> None:
        """Have the memory of some rows ready before they are written."""
        for reserved in self.room:
            reserved.populate(reserved.array[first:last])


def _encode(config: IndexConfig, vector_MD: NDArray[np.float32], frame: Frame) -> tuple[NDArray[np.generic], ...]:
    fine, alone = config.codes == "int8", not config.store_vectors
    codes = encode_rows(vector_MD, frame.mean_D, fine=fine, alone=alone, rotation_DD=frame.rotation_DD)
    parts: tuple[NDArray[np.generic], ...] = codes[:NUM_ARRAYS]
    if config.signs is not None:
        parts = (*parts, *encode_signs(vector_MD, config.signs, frame.projection_LD, frame.mean_D))
    return parts
