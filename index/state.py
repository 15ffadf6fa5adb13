"""What an index holds and what of it is visible: writers change it, readers see one moment of it.

It does not know how rows are searched, and not what is written into them.
"""

# N = rows, M = keys in one call, W = mask words

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock, RLock

import numpy as np
from numpy.typing import ArrayLike, NDArray

from index.bits import Words, clear_bits, set_bits
from index.checks import check_keys
from index.config import IndexConfig
from index.key_map import KeyMap
from index.readers import Quarantine
from index.rows import RowArrays

NO_ROWS: NDArray[np.int64] = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class View:
    """What one reader sees from its first moment to its last."""

    arrays: RowArrays
    live_W: Words  # a copy: one publication is seen whole or not at all
    row_M: NDArray[np.int64]  # rows of the keys the reader asked about, -1 = not there

    @property
    def num_words(self) -> int:
        return self.live_W.size


class State:
    """The rows, where each key's row is, which rows are live, and who may still see those that are not."""

    def __init__(self, config: IndexConfig, arrays: RowArrays | None = None, num_rows: int = 0) -> None:
        """Empty, or with the first num_rows rows of `arrays` live."""
        self.config = config
        self.arrays = arrays or RowArrays(config, config.capacity)
        self.num_rows = num_rows  # rows in use: all live bits lie below
        self.written_rows = num_rows  # rows ever used; what those given up since still hold goes along in every copy
        set_bits(self.arrays.live_W, np.arange(num_rows))
        self.row_of = KeyMap(self.arrays.key_N[:num_rows])
        self.free: list[NDArray[np.int64]] = []  # rows below num_rows that no reader can see
        self.quarantine = Quarantine()
        self.publish_lock = Lock()  # held for moments: what is visible, and to whom
        self.write_lock = RLock()  # held by a writer for its whole call, by the upkeep for milliseconds
        self._touched: list[NDArray[np.int64]] | None = None

    @property
    def num_items(self) -> int:
        return self.row_of.num_keys

    def rows_of(self, key_M: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row of each key, -1 = not there. The caller holds one of the locks."""
        return self.row_of.find(key_M, self.arrays.key_N)

    @contextmanager
    def reading(self, keys: ArrayLike | None) -> Iterator[View]:
        """Everything of one moment, with the rows of `keys`; freed rows keep their content until the reader left."""
        key_M = None if keys is None else check_keys(keys)
        with self.publish_lock:
            arrays = self.arrays
            live_W = arrays.live_W[: (self.num_rows + 63) // 64].copy()
            row_M = NO_ROWS if key_M is None else self.rows_of(key_M)
            reader = self.quarantine.enter()
        try:
            yield View(arrays, live_W, row_M)
        finally:
            with self.publish_lock:
                self.quarantine.leave(reader)

    # For whoever holds write_lock

    def publish(self, rows: NDArray[np.int64], key_M: NDArray[np.int64], freed: NDArray[np.int64]) -> None:
        """Show the keys at new rows and the freed rows no more, both in one moment."""
        arrays = self.arrays
        self.row_of.make_room(key_M.size, arrays.key_N)
        with self.publish_lock:
            if freed.size:
                clear_bits(arrays.live_W, freed)
            set_bits(arrays.live_W, rows)
            self.row_of.put(key_M, rows, arrays.key_N)
            self.quarantine.publish(freed)
        self.touch(rows)
        self.touch(freed)

    def withdraw(self, key_M: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        """Show keys, and the rows where they are, no more."""
        with self.publish_lock:
            if rows.size:
                clear_bits(self.arrays.live_W, rows)
            self.row_of.remove(key_M, self.arrays.key_N)
            self.quarantine.publish(rows)
        self.touch(rows)

    def replace(self, arrays: RowArrays) -> None:
        """Show other arrays with the same rows."""
        with self.publish_lock:
            self.arrays = arrays

    def release(self) -> None:
        """Move the rows that no reader can see any more to the free ones."""
        with self.publish_lock:
            self.free.extend(self.quarantine.release())

    def allocate(self, count: int) -> NDArray[np.int64]:
        """Rows that no reader can see: freed ones first, then new ones, growing where there are too few."""
        self.release()
        taken: list[NDArray[np.int64]] = []
        missing = count
        while missing and self.free:
            block = self.free.pop()
            taken.append(block[:missing])
            if block.size > missing:
                self.free.append(block[missing:])
            missing -= taken[-1].size
        first, last = self.num_rows, self.num_rows + missing
        if last > self.arrays.capacity:  # faster than the upkeep, which grows ahead of need
            self.replace(self.arrays.grow(max(last, self.arrays.capacity * 3 // 2), self.written_rows))
        with self.publish_lock:
            self.num_rows = last
        self.written_rows = max(last, self.written_rows)
        return np.concatenate([*taken, np.arange(first, last, dtype=np.int64)])

    def watch(self) -> None:
        """From here on, note the rows that are written or freed."""
        self._touched = []

    def touch(self, rows: NDArray[np.int64]) -> None:
        if self._touched is not None and rows.size:
            self._touched.append(rows)

    def touched(self, *, last: bool = False) -> NDArray[np.int64]:
        """The rows noted since the last call; with `last`, note no more."""
        noted, self._touched = self._touched or [], None if last else []
        return np.unique(np.concatenate([NO_ROWS, *noted]))
