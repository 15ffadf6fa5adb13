"""int, float and timestamp values by row."""

# N = rows (capacity, a multiple of 64), W = words = N / 64

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from index.attributes import INT64_MAX, INT64_MIN, Attribute, Scalar, Stored
from index.bits import Rows, Words, have_bits, list_bits, pack_bits, plane_of, put_bits
from index.checks import check_array
from index.sorted_rows import SortedRows

FEW_VALUES = 8  # so many are compared one by one, more by sorting
SCAN_SHARE = 16  # past 1/16 of the rows, reading the whole column is faster than reading it row by row

Numbers = NDArray[np.float64 | np.int64]


class NumberColumn:
    """int, timestamp (int64) or float (float64) values, and which rows have one."""

    def __init__(self, attribute: Attribute, capacity: int) -> None:
        self.attribute = attribute
        dtype = np.dtype(np.float64 if attribute.type == "float" else np.int64)
        self.order = SortedRows(dtype)
        self._value_N: Numbers = np.zeros(capacity, dtype)
        self._present_W: Words = np.zeros(capacity // 64, np.uint64)

    @property
    def num_rows(self) -> int:
        return self._value_N.size

    wants_copy = False

    def begin_copy(self, capacity: int) -> NumberColumn:
        return NumberColumn(self.attribute, capacity)

    def copy_rows(self, source: NumberColumn, rows: Rows, words: Rows) -> None:
        self._value_N[rows] = source._value_N[rows]
        self._present_W[words] = source._present_W[words]

    def finish_copy(self, source: NumberColumn) -> None:
        self.order = source.order.copy()

    def sort(self) -> None:
        if self.order.is_due:
            self.order.sort(self._pairs)

    def write(self, rows: Rows, values: Sequence[Stored]) -> None:
        present = np.fromiter((value is not None for value in values), np.bool_, len(values))
        filled = [0 if value is None else value for value in values]
        self._put(rows, np.array(filled, self._value_N.dtype), present)

    def move(self, rows: Rows, to: Rows) -> None:
        """Write the values of `rows` at other rows, which no reader can see."""
        self._put(to, self._value_N[rows], have_bits(self._present_W, rows))

    def _put(self, rows: Rows, values: Numbers, present: NDArray[np.bool_]) -> None:
        self._value_N[rows] = values
        put_bits(self._present_W, rows, present)
        filled = rows[present]
        if filled.size:
            self.order.append(filled, self._pairs)

    def _pairs(self) -> tuple[Numbers, Rows]:
        rows = list_bits(self._present_W)
        return self._value_N[rows], rows

    def exists(self, num_words: int) -> Words:
        return self._present_W[:num_words]

    def any_of(self, values: Sequence[Scalar], num_words: int) -> Words:
        column = self._value_N[: num_words * 64]
        wanted = np.array(values, column.dtype)
        rows = self._near(wanted, wanted, num_words)
        if rows is not None:
            return self._plane(rows[_is_in(column[rows], wanted)], num_words)
        return pack_bits(_is_in(column, wanted)) & self._present_W[:num_words]

    def all_of(self, values: Sequence[Scalar], num_words: int) -> Words:
        return self.any_of(values, num_words) if len(values) == 1 else np.zeros(num_words, np.uint64)

    def between(self, bounds: Mapping[str, int | float], num_words: int) -> Words:
        column = self._value_N[: num_words * 64]
        compare = {"gte": np.greater_equal, "gt": np.greater, "lte": np.less_equal, "lt": np.less}
        limits = [(compare[operator], column.dtype.type(bound)) for operator, bound in bounds.items()]
        least, most = (-np.inf, np.inf) if column.dtype == np.float64 else (INT64_MIN, INT64_MAX)
        low = np.array([bounds.get("gte", bounds.get("gt", least))], column.dtype)
        high = np.array([bounds.get("lte", bounds.get("lt", most))], column.dtype)
        rows = self._near(low, high, num_words)
        if rows is not None:
            value = column[rows]
            hit = limits[0][0](value, limits[0][1])
            for operator, bound in limits[1:]:
                hit &= operator(value, bound)
            return self._plane(rows[hit], num_words)
        words: Words = self._present_W[:num_words]
        for operator, bound in limits:
            words = words & pack_bits(operator(column, bound))
        return words

    def _near(self, low: Numbers, high: Numbers, num_words: int) -> Rows | None:
        """Rows among which all with a value in one of the intervals are; None where reading all is faster."""
        rows = self.order.ordered.near(low, high, num_words * 64 // SCAN_SHARE)
        return None if rows is None else rows[rows < num_words * 64]  # not those newer than this reader

    def _plane(self, rows: Rows, num_words: int) -> Words:
        return plane_of(rows, num_words) & self._present_W[:num_words]

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
        if present.any():
            self.order.sort(self._pairs)


def _is_in(column: Numbers, wanted: Numbers) -> NDArray[np.bool_]:
    if wanted.size > FEW_VALUES:
        return np.isin(column, wanted)
    hit: NDArray[np.bool_] = column == wanted[0]
    for value in wanted[1:]:
        hit |= column == value
    return hit
