"""Bit-planes: uint64 words, bit r % 64 of word r // 64 belongs to row r."""

# N = rows, W = words = ceil(N / 64)

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Rows = NDArray[np.int64]

_ONE = np.uint64(1)


def pack_bits(flag_N: NDArray[np.bool_]) -> Words:
    """The plane of a bool array whose length is a multiple of 64."""
    return np.packbits(flag_N, bitorder="little").view("<u8").astype(np.uint64, copy=False)


def list_bits(words: Words) -> Rows:
    """The rows whose bit is set, ascending. A writer may change other bits meanwhile."""
    words = words.copy()  # `nonzero` counts, then lists, and refuses what changed in between
    (full,) = np.nonzero(words)
    bits = np.unpackbits(words[full].astype("<u8").view(np.uint8), bitorder="little")
    (place,) = np.nonzero(bits.view(np.bool_))
    rows: Rows = full[place >> 6] * 64 + (place & 63)
    return rows


def set_bits(words: Words, rows: Rows) -> None:
    """Set the bit of each row; every other bit of a word keeps its value. One writer at a time."""
    if rows.size == 1:
        row = int(rows[0])
        words[row >> 6] |= _ONE << np.uint64(row & 63)
        return
    np.bitwise_or.at(words, rows >> 6, _ONE << (rows & 63).astype(np.uint64))


def plane_of(rows: Rows, num_words: int) -> Words:
    """A new plane with the bit of each row set; rows may repeat."""
    if rows.size * 16 > num_words:
        flag_N = np.zeros(num_words * 64, np.bool_)
        flag_N[rows] = True
        return pack_bits(flag_N)
    words: Words = np.zeros(num_words, np.uint64)
    set_bits(words, rows)
    return words


def clear_bits(words: Words, rows: Rows) -> None:
    """Clear the bit of each row."""
    if rows.size == 1:
        row = int(rows[0])
        words[row >> 6] &= ~(_ONE << np.uint64(row & 63))
        return
    np.bitwise_and.at(words, rows >> 6, ~(_ONE << (rows & 63).astype(np.uint64)))


def have_bits(words: Words, rows: Rows) -> NDArray[np.bool_]:
    """Whether each row's bit is set."""
    flags: NDArray[np.bool_] = (words[rows >> 6] >> (rows & 63).astype(np.uint64) & _ONE).astype(np.bool_)
    return flags


def count_bits(words: Words) -> int:
    return int(np.bitwise_count(words).sum())


def put_bits(words: Words, rows: Rows, flags: NDArray[np.bool_]) -> None:
    """Give the bit of each row the value of its flag."""
    clear_bits(words, rows)
    set_bits(words, rows[flags])
