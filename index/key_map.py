"""Where the keys are: an open-addressing hash of row numbers, four bytes a slot.

The keys themselves stay in the index's own column; a slot names the row where the key stands. It does not
know what a row holds besides. The caller holds its own lock around every call but `make_room`.
"""

# M = keys in one call, T = slots (a power of two), N = rows

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.int64]
Rows = NDArray[np.int64]

MIN_SLOTS = 64
BLOCK_KEYS = 1 << 16  # what a block needs beside the table stays in the cache
EMPTY, GONE = -1, -2
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: neighbouring keys land far from one another


class KeyMap:
    """key -> row, for distinct keys. At most half of the slots are ever taken, so chains stay short."""

    def __init__(self, key_N: Keys | None = None) -> None:
        """Empty, or with the keys of rows 0, 1, ..., which must differ from one another (ValueError)."""
        self.num_keys = 0
        self._taken = 0  # slots that are not EMPTY
        self._row_T: NDArray[np.int32] = np.full(MIN_SLOTS, EMPTY, np.int32)
        if key_N is not None and key_N.size:
            self.make_room(key_N.size, key_N)
            self._insert(key_N, np.arange(key_N.size, dtype=np.int64))

    def find(self, key_M: Keys, key_N: Keys) -> Rows:
        """The row of each key, -1 where it is not there."""
        return self._find(key_M, key_N)[0]

    def put(self, key_M: Keys, row_M: Rows, key_N: Keys) -> None:
        """Point distinct keys at rows, wherever they pointed before; key_N holds the keys at both."""
        old_row_M, slot_M = self._find(key_M, key_N)
        known = old_row_M >= 0
        self._row_T[slot_M[known]] = row_M[known]
        self.make_room(key_M.size - int(known.sum()), key_N)
        self._insert(key_M[~known], row_M[~known])

    def make_room(self, count: int, key_N: Keys) -> None:
        """Make the next `count` new keys fit. The one writer may call it beside readers."""
        if 2 * (self._taken + count) <= self._row_T.size:
            return
        row_M = self._row_T[self._row_T >= 0].astype(np.int64)
        slots = MIN_SLOTS
        while slots < 3 * (row_M.size + count):
            slots *= 2
        row_T = np.full(slots, EMPTY, np.int32)
        _insert(row_T, key_N[row_M], row_M)
        self._row_T, self._taken = row_T, row_M.size

    def remove(self, key_M: Keys, key_N: Keys) -> None:
        """Forget keys, all of which are there."""
        _, slot_M = self._find(key_M, key_N)
        self._row_T[slot_M] = GONE
        self.num_keys -= key_M.size

    def _find(self, key_M: Keys, key_N: Keys) -> tuple[Rows, NDArray[np.int64]]:
        """The row of each key or -1, and the slot that holds it."""
        row_T = self._row_T
        row_M = np.full(key_M.size, -1, np.int64)
        slot_M = _first_slots(row_T, key_M)
        seeking = np.arange(key_M.size)
        while seeking.size:
            row = row_T[slot_M[seeking]]
            here = (row >= 0) & (key_N[np.maximum(row, 0)] == key_M[seeking])
            row_M[seeking[here]] = row[here]
            seeking = seeking[~here & (row != EMPTY)]
            slot_M[seeking] = (slot_M[seeking] + 1) & (row_T.size - 1)
        return row_M, slot_M

    def _insert(self, key_M: Keys, row_M: Rows) -> None:
        _insert(self._row_T, key_M, row_M)
        self._taken += key_M.size
        self.num_keys += key_M.size


def _first_slots(row_T: NDArray[np.int32], key_M: Keys) -> NDArray[np.int64]:
    shift = np.uint64(64 - (row_T.size.bit_length() - 1))
    return ((np.ascontiguousarray(key_M).view(np.uint64) * _SPREAD) >> shift).astype(np.int64)


def _insert(row_T: NDArray[np.int32], key_M: Keys, row_M: Rows) -> None:
    """Keys that are not there, a block at a time. Of several that want one slot, the last written has it."""
    for first in range(0, key_M.size, BLOCK_KEYS):
        rows = row_M[first : first + BLOCK_KEYS]
        slot_M = _first_slots(row_T, key_M[first : first + BLOCK_KEYS])
        waiting = np.arange(rows.size)
        while waiting.size:
            slot = slot_M[waiting]
            free = row_T[slot] == EMPTY
            row_T[slot[free]] = rows[waiting[free]]
            waiting = waiting[row_T[slot] != rows[waiting]]
            slot_M[waiting] = (slot_M[waiting] + 1) & (row_T.size - 1)
