"""Rows in the order of a column's values, so that a rare value or a narrow range costs what it matches.

A sorted part, and the rows written since. Neither is ever corrected in place: a row that was written again is
found under both values, so whoever asks compares the column itself afterwards. Whoever keeps the columns sorts
the rest in when it is due, beside the writer; the writer does it only where that is far behind.
"""

# N = rows in the sorted part, F = fences = ceil(N / FENCE_ROWS), V = intervals asked for

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from index.bits import Rows

FENCE_ROWS = 64
MIN_RECENT_ROWS = 1024
RECENT_SHARE, MOST_RECENT_SHARE = 32, 2  # sort again past 1/32 of the sorted part; at once past 1/2

Values = NDArray[np.int64 | np.int32 | np.float64]
Pairs = Callable[[], tuple[Values, Rows]]  # the values of a column and the row of each, as they are now


class _Recent:
    """Rows written since the last sorting; entries below `used` do not change."""

    __slots__ = ("row_M", "used")

    def __init__(self, room: int) -> None:
        self.row_M = np.zeros(room, np.int32)
        self.used = 0


class Ordered(NamedTuple):
    """What one reader uses from first to last."""

    row_N: NDArray[np.int32]
    fence_F: Values  # the value of every FENCE_ROWS-th row when it was sorted
    recent: _Recent

    def near(self, low_V: Values, high_V: Values, most: int) -> Rows | None:
        """A superset of the rows with a value in one of the closed intervals; None where it exceeds `most` rows."""
        starts = np.maximum(np.searchsorted(self.fence_F, low_V, "left") - 1, 0) * FENCE_ROWS
        ends = np.minimum(np.searchsorted(self.fence_F, high_V, "right") * FENCE_ROWS, self.row_N.size)
        lengths = np.maximum(ends - starts, 0)
        total = int(lengths.sum())
        used = self.recent.used
        if total + used > most:
            return None
        if lengths.size == 1:
            old = self.row_N[starts[0] : starts[0] + total]
        else:
            firsts = np.cumsum(lengths) - lengths
            old = self.row_N[np.arange(total) + np.repeat(starts - firsts, lengths)]
        return np.concatenate([old, self.recent.row_M[:used]]).astype(np.int64)


class SortedRows:
    """The order of one column. One writer appends; any thread reads `ordered`."""

    def __init__(self, dtype: np.dtype[np.generic]) -> None:
        self.ordered = Ordered(np.zeros(0, np.int32), np.zeros(0, dtype), _Recent(MIN_RECENT_ROWS))
        self._lock = Lock()  # held for moments: appending, replacing

    def copy(self) -> SortedRows:
        """The same order, going its own way from here: what a grown column writes does not reach the old one."""
        copied = SortedRows(self.ordered.fence_F.dtype)
        with self._lock:
            row_N, fence_F, recent = self.ordered
            own = _Recent(recent.row_M.size)
            own.row_M[: recent.used] = recent.row_M[: recent.used]
            own.used = recent.used
        copied.ordered = Ordered(row_N, fence_F, own)
        return copied

    def append(self, rows: Rows, pairs: Pairs) -> None:
        """Note rows whose values were just written; `pairs` gives the whole column when it is time to sort again."""
        with self._lock:
            recent = self.ordered.recent
            end = recent.used + rows.size
            if end > recent.row_M.size:
                larger = _Recent(2 * end)
                larger.row_M[: recent.used] = recent.row_M[: recent.used]
                larger.used = recent.used
                recent = larger
            recent.row_M[recent.used : end] = rows
            recent.used = end
            if recent is not self.ordered.recent:
                self.ordered = self.ordered._replace(recent=recent)
            overdue = end > max(2 * MIN_RECENT_ROWS, self.ordered.row_N.size // MOST_RECENT_SHARE)
        if overdue:
            self.sort(pairs)

    @property
    def is_due(self) -> bool:
        """Whether so many rows are recent that sorting them in makes reading faster."""
        ordered = self.ordered
        return ordered.recent.used > max(MIN_RECENT_ROWS, ordered.row_N.size // RECENT_SHARE)

    def sort(self, pairs: Pairs) -> None:
        """Sort the whole column. Rows written meanwhile stay among the recent ones, whatever was read of them here."""
        with self._lock:
            before = self.ordered
            first = before.recent.used
        value_N, rows = pairs()
        fence_F: Values
        if value_N.dtype == np.int32:  # codes: value and row in one number sort several times faster than an argsort
            packed = value_N.astype(np.int64) << 32 | rows
            packed.sort()
            row_N, fence_F = (packed & 0xFFFFFFFF).astype(np.int32), (packed[::FENCE_ROWS] >> 32).astype(np.int32)
        else:
            order = np.argsort(value_N)
            row_N, fence_F = rows[order].astype(np.int32), value_N[order[::FENCE_ROWS]]
        with self._lock:
            now = self.ordered
            if now.row_N is not before.row_N:
                return  # another sorting overtook this one
            late = now.recent.row_M[first : now.recent.used]
            recent = _Recent(max(MIN_RECENT_ROWS, 2 * late.size, row_N.size // (RECENT_SHARE // 2)))
            recent.row_M[: late.size] = late
            recent.used = late.size
            self.ordered = Ordered(row_N, fence_F, recent)
