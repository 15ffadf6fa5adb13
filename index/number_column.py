"""int, float and timestamp values by row."""

# N = rows (capacity, a multiple of 64), W = words = N / 64

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from index.attributes import Attribute, Scalar, Stored
from index.bits import Rows, Words, have_bits, pack_bits, put_bits
from index.checks import check_array

FEW_VALUES = 8  # so many are compared one by one, more by sorting


class NumberColumn:
    """int, timestamp (int64) or float (float64) values, and which rows have one."""

    def __init__(self, attribute: Attribute, capacity: int) -> None:
        self.attribute = attribute
        dtype = np.float64 if attribute.type == "float" else np.int64
        self._value_N: NDArray[np.float64 | np.int64] = np.zeros(capacity, dtype)
        self._present_W: Words = np.zeros(capacity // 64, np.uint64)

    def grow(self, capacity: int) -> NumberColumn:
        grown = NumberColumn(self.attribute, capacity)
        grown._value_N[: self._value_N.size] = self._value_N
        grown._present_W[: self._present_W.size] = self._present_W
        return grown

    def write(self, rows: Rows, values: Sequence[Stored]) -> None:
        present = np.fromiter((value is not None for value in values), np.bool_, len(values))
        filled = [0 if value is None else value for value in values]
        self._value_N[rows] = np.array(filled, self._value_N.dtype)
        put_bits(self._present_W, rows, present)

    def exists(self, num_words: int) -> Words:
        return self._present_W[:num_words]

    def any_of(self, values: Sequence[Scalar], num_words: int) -> Words:
        column = self._value_N[: num_words * 64]
        wanted = np.array(values, column.dtype)
        if wanted.size <= FEW_VALUES:
            hit = column == wanted[0]
            for value in wanted[1:]:
                hit |= column == value
        else:
            hit = np.isin(column, wanted)
        return pack_bits(hit) & self._present_W[:num_words]

    def all_of(self, values: Sequence[Scalar], num_words: int) -> Words:
        return self.any_of(values, num_words) if len(values) == 1 else np.zeros(num_words, np.uint64)

    def between(self, bounds: Mapping[str, int | float], num_words: int) -> Words:
        column = self._value_N[: num_words * 64]
        compare = {"gte": np.greater_equal, "gt": np.greater, "lte": np.less_equal, "lt": np.less}
        words: Words = self._present_W[:num_words]
        for operator, bound in bounds.items():
            words = words & pack_bits(compare[operator](column, column.dtype.type(bound)))
        return words

    def read(self, row: int) -> Stored:
        if not self._present_W[row >> 6] >> np.uint64(row & 63) & np.uint64(1):
            return None
        value: Scalar = self._value_N[row].item()
        return value

    def export(self, rows: Rows) -> dict[str, NDArray[np.generic]]:
        return {"values": self._value_N[rows], "present": have_bits(self._present_W, rows)}

    def load(self, arrays: Mapping[str, NDArray[np.generic]], num_rows: int) -> None:
        """Fill rows 0 to num_rows from what `export` gave; ValueError where the arrays do not fit."""
        check_array("values", arrays, self._value_N.dtype, num_rows)
        check_array("present", arrays, np.dtype(np.bool_), num_rows)
        self._value_N[:num_rows] = arrays["values"]
        present = np.zeros(self._value_N.size, np.bool_)
        present[:num_rows] = arrays["present"]
        self._present_W[:] = pack_bits(present)
