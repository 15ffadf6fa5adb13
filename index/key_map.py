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
NEARLY_FULL, MIN_AHEAD_SLOTS = 0.8, 1 << 14  # a larger map is made ahead of need
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
        self._row_T, self._taken = _build(row_M, count, key_N), row_M.size

    # A larger map beside the writer: begin_larger, copy_slots, fill, follow

    @property
    def is_nearly_full(self) -> bool:
        """Whether room will soon have to be made, which takes the one writer long where there are many slots."""
        return self._row_T.size >= MIN_AHEAD_SLOTS and 2 * self._taken > NEARLY_FULL * self._row_T.size

    def begin_larger(self) -> KeyMap:
        """An empty map with memory for what this one holds."""
        larger = KeyMap()
        larger._row_T = np.full(self._row_T.size, EMPTY, np.int32)
        return larger

    def copy_slots(self, source: KeyMap) -> None:
        """Take over the slots as they are; a moment of memory traffic. The caller holds its lock."""
        if self._row_T.size != source._row_T.size:  # room was made since
            self._row_T = np.empty_like(source._row_T)
        self._row_T[:] = source._row_T

    def fill(self, key_N: Keys) -> None:
        """Put the rows that were copied where their keys belong; key_N must hold their keys until `follow`."""
        row_M = self._row_T[self._row_T >= 0].astype(np.int64)
        self._row_T, self._taken = _build(row_M, row_M.size // 4, key_N), row_M.size
        self.num_keys = row_M.size

    def follow(self, source: KeyMap, key_M: Keys, key_N: Keys) -> None:
        """Take over where distinct keys, all those that changed since copying, are now."""
        old_row_M, row_M = self.find(key_M, key_N), source.find(key_M, key_N)
        gone = (old_row_M >= 0) & (row_M < 0)
        self.remove(key_M[gone], key_N)
        here = row_M >= 0
        self.put(key_M[here], row_M[here], key_N)

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


def _build(row_M: Rows, count: int, key_N: Keys) -> NDArray[np.int32]:
    """Slots for the rows' keys, with room for `count` more."""
    slots = MIN_SLOTS
    while slots < 3 * (row_M.size + count):
        slots *= 2
    row_T = np.full(slots, EMPTY, np.int32)
    _insert(row_T, key_N[row_M], row_M)
    return row_T


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
