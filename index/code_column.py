"""keyword, keyword_list and bool values by row, and a bit-plane for each frequent value."""

# N = rows (capacity, a multiple of 64), W = words = N / 64, P = pairs of the pool

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from index.attributes import Attribute, Scalar, Stored
from index.bits import Rows, Words, clear_bits, pack_bits, put_bits, set_bits
from index.checks import check_array

MAX_PLANES = 256  # per attribute
MIN_PLANE_ROWS = 64  # a rarer value is not worth a plane
FEW_VALUES = 8  # so many are compared one by one, more through a table


class ValueTable:
    """The distinct values of a keyword column: value -> code (1, 2, ...), code 0 = no value. Only ever grows."""

    def __init__(self) -> None:
        self.code_of: dict[str | bool, int] = {}
        self.values: list[str | bool | None] = [None]
        self.counts = np.zeros(16, np.int64)  # rows ever written with this code, by code

    def code(self, value: str | bool) -> int:
        """The value's code, a new one for a new value."""
        code = self.code_of.get(value)
        if code is None:
            code = len(self.values)
            self.values.append(value)
            if code >= self.counts.size:
                self.counts = np.concatenate([self.counts, np.zeros_like(self.counts)])
            self.code_of[value] = code
        return code


class CodeColumn:
    """keyword and bool values (one code a row) or keyword_list values (several), with planes for frequent codes.

    The codes of lists lie in one pool of (row, code) pairs, so that a rare value is found in one pass over it;
    a pair of code 0 is dead.
    """

    def __init__(self, attribute: Attribute, capacity: int, table: ValueTable | None = None) -> None:
        self.attribute = attribute
        self.table = table or ValueTable()
        self.planes: dict[int, Words] = {}
        self._capacity = capacity
        self._is_list = attribute.type == "keyword_list"
        self._present_W: Words = np.zeros(capacity // 64, np.uint64)
        self._code_N: NDArray[np.int32] = np.zeros(0 if self._is_list else capacity, np.int32)
        list_rows = capacity if self._is_list else 0
        # The pool and each row's (start, length) in it: replaced together, so that readers hold a matching pair.
        self._lists: tuple[NDArray[np.int32], NDArray[np.int64]] = (
            np.zeros((2, list_rows), np.int32),
            np.zeros((list_rows, 2), np.int64),
        )
        self._pool_used = 0

    def grow(self, capacity: int) -> CodeColumn:
        grown = CodeColumn(self.attribute, capacity, self.table)
        grown._present_W[: self._present_W.size] = self._present_W
        grown._code_N[: self._code_N.size] = self._code_N
        pool, span_N = self._lists
        grown._lists[1][: span_N.shape[0]] = span_N
        grown._lists, grown._pool_used = (pool.copy(), grown._lists[1]), self._pool_used
        for code, plane in list(self.planes.items()):
            grown.planes[code] = np.zeros(capacity // 64, np.uint64)
            grown.planes[code][: plane.size] = plane
        return grown

    def write(self, rows: Rows, values: Sequence[Stored]) -> None:
        code = self.table.code
        sets = [() if value is None else value if isinstance(value, tuple) else (value,) for value in values]
        lengths = np.fromiter(map(len, sets), np.int64, len(sets))
        codes = np.fromiter((code(value) for each in sets for value in each), np.int32, int(lengths.sum()))  # type: ignore[arg-type]
        self._write_codes(rows, codes, lengths)

    def _write_codes(self, rows: Rows, codes: NDArray[np.int32], lengths: NDArray[np.int64]) -> None:
        """codes: of all rows, one after another; lengths: how many each row has."""
        owners = np.repeat(rows, lengths)
        self._clear_planes(rows)
        if self._is_list:
            self._write_pool(rows, codes, lengths, owners)
        else:
            self._code_N[rows] = 0
            self._code_N[owners] = codes
        put_bits(self._present_W, rows, lengths > 0)
        self._count(codes, owners)

    def _clear_planes(self, rows: Rows) -> None:
        """Take the rows out of the planes of the values they had."""
        old_codes, lengths = self._codes_of(rows)
        old_owners = np.repeat(rows, lengths)
        for code in np.unique(old_codes).tolist():
            plane = self.planes.get(code)
            if plane is not None:
                clear_bits(plane, old_owners[old_codes == code])

    def _codes_of(self, rows: Rows) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The codes of the rows, one after another, and how many each row has."""
        if not self._is_list:
            codes = self._code_N[rows]
            return codes[codes > 0], (codes > 0).astype(np.int64)
        pool, span_N = self._lists
        starts, lengths = span_N[rows, 0], span_N[rows, 1]
        firsts = np.cumsum(lengths) - lengths
        return pool[1, np.arange(int(lengths.sum())) + np.repeat(starts - firsts, lengths)], lengths

    def _write_pool(self, rows: Rows, codes: NDArray[np.int32], lengths: NDArray[np.int64], owners: Rows) -> None:
        pool, span_N = self._lists
        for start, length in span_N[rows][span_N[rows, 1] > 0].tolist():
            pool[1, start : start + length] = 0
        if self._pool_used + codes.size > pool.shape[1]:
            pool, span_N = self._compact_pool(codes.size)
        used = self._pool_used
        pool[0, used : used + codes.size] = owners
        pool[1, used : used + codes.size] = codes
        span_N[rows, 0] = used + np.cumsum(lengths) - lengths
        span_N[rows, 1] = lengths
        self._pool_used = used + codes.size

    def _compact_pool(self, room: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """A larger pool without the dead pairs, and the spans in it; readers keep the pair they hold."""
        old_pool, old_span_N = self._lists
        alive = np.flatnonzero(old_pool[1, : self._pool_used])
        pool = np.zeros((2, max(64, 2 * (alive.size + room))), np.int32)
        pool[:, : alive.size] = old_pool[:, alive]
        moved_to = np.zeros(self._pool_used + 1, np.int64)
        moved_to[alive] = np.arange(alive.size)
        span_N = old_span_N.copy()
        kept = span_N[:, 1] > 0
        span_N[kept, 0] = moved_to[span_N[kept, 0]]
        self._lists, self._pool_used = (pool, span_N), int(alive.size)
        return self._lists

    def _count(self, codes: NDArray[np.int32], owners: Rows) -> None:
        """Count the new codes, set their bits, and give a plane to a value that became frequent."""
        table = self.table
        if codes.size == 0:
            return
        distinct = np.unique(codes) if codes.size > 1 else codes
        np.add.at(table.counts, codes, 1)
        enough = max(MIN_PLANE_ROWS, self._capacity // 64)
        for code in distinct.tolist():
            plane = self.planes.get(code)
            if plane is not None:
                set_bits(plane, owners[codes == code])
            elif len(self.planes) < MAX_PLANES and table.counts[code] >= enough:
                built = self._compare([code], self._capacity // 64)
                self.planes = {**self.planes, code: built}

    def _compare(self, codes: Sequence[int], num_words: int) -> Words:
        """The rows that have any of the codes, from the column itself."""
        num_rows = num_words * 64
        if self._is_list:
            row_P, code_P = self._lists[0]
            if len(codes) <= FEW_VALUES:
                hit_P = code_P == codes[0]
                for code in codes[1:]:
                    hit_P |= code_P == code
            else:
                hit_P = np.isin(code_P, np.array(codes, np.int32))
            hit = np.zeros(num_rows, np.bool_)
            rows = row_P[hit_P]
            hit[rows[rows < num_rows]] = True
            return pack_bits(hit)
        column = self._code_N[:num_rows]
        if len(codes) <= FEW_VALUES:
            hit = column == codes[0]
            for code in codes[1:]:
                hit |= column == code
        else:
            wanted = np.zeros(len(self.table.values) + 1, np.bool_)
            wanted[codes] = True
            hit = wanted[np.minimum(column, wanted.size - 1)]  # codes past the table are newer than this reader
        return pack_bits(hit)

    def exists(self, num_words: int) -> Words:
        return self._present_W[:num_words]

    def any_of(self, values: Sequence[Scalar], num_words: int) -> Words:
        codes = [code for value in values if (code := self.table.code_of.get(value)) is not None]  # type: ignore[arg-type]
        planes = self.planes
        words = np.zeros(num_words, np.uint64)
        rare = []
        for code in codes:
            plane = planes.get(code)
            if plane is None:
                rare.append(code)
            else:
                words |= plane[:num_words]
        if rare:
            words |= self._compare(rare, num_words)
        return words

    def all_of(self, values: Sequence[Scalar], num_words: int) -> Words:
        words = self.any_of(values[:1], num_words)
        for value in values[1:]:
            words &= self.any_of([value], num_words)
        return words

    def between(self, bounds: Mapping[str, int | float], num_words: int) -> Words:
        raise ValueError(f"attribute {self.attribute.name!r} is a {self.attribute.type}: it has no ranges")

    def read(self, row: int) -> Stored:
        if self._is_list:
            pool, span_N = self._lists
            start, length = span_N[row].tolist()
            return tuple(str(self.table.values[code]) for code in pool[1, start : start + length]) or None
        return self.table.values[int(self._code_N[row])]

    def export(self, rows: Rows) -> dict[str, NDArray[np.generic]]:
        """codes, lengths (codes per row), and the table as utf-8 bytes with their lengths (bools as "true")."""
        codes, lengths = self._codes_of(rows)
        used, places = np.unique(codes, return_inverse=True)
        texts = [_value_text(self.table.values[code]).encode() for code in used.tolist()]
        return {
            "codes": places.astype(np.int32),
            "lengths": lengths.astype(np.int32),
            "table": np.frombuffer(b"".join(texts), np.uint8),
            "table_lengths": np.array([len(text) for text in texts], np.int64),
        }

    def load(self, arrays: Mapping[str, NDArray[np.generic]], num_rows: int) -> None:
        """Fill rows 0 to num_rows of an empty column from what `export` gave; ValueError where it does not fit."""
        check_array("lengths", arrays, np.dtype(np.int32), num_rows)
        lengths = arrays["lengths"].astype(np.int64)
        check_array("codes", arrays, np.dtype(np.int32), int(lengths.sum()))
        check_array("table_lengths", arrays, np.dtype(np.int64), None)
        ends = np.cumsum(arrays["table_lengths"].astype(np.int64)).tolist()
        check_array("table", arrays, np.dtype(np.uint8), ends[-1] if ends else 0)
        blob = arrays["table"].tobytes()
        places = []
        for start, end in zip([0, *ends], ends, strict=False):
            text = blob[start:end].decode()
            places.append(self.table.code(text == "true" if self.attribute.type == "bool" else text))
        stored = arrays["codes"].astype(np.int64)
        if stored.size and not 0 <= stored.min() <= stored.max() < len(places):
            raise ValueError(f"column {self.attribute.name!r}: a code past its table of {len(places)}")
        codes = np.array(places, np.int32)[stored] if stored.size else np.zeros(0, np.int32)
        self._write_codes(np.arange(num_rows, dtype=np.int64), codes, lengths)


def _value_text(value: str | bool | None) -> str:
    return value if isinstance(value, str) else "true" if value else "false"
