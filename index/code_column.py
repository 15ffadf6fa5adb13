"""keyword, keyword_list and bool values by row, and a bit-plane for each frequent value."""

# N = rows (capacity, a multiple of 64), W = words = N / 64, P = codes in the pool

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from index.attributes import INT64_MAX, Attribute, Scalar, Stored
from index.bits import Rows, Words, clear_bits, list_bits, plane_of, put_bits, set_bits
from index.checks import check_array
from index.sorted_rows import Ordered, SortedRows

MAX_PLANES = 256  # per attribute
MIN_PLANE_ROWS = 64  # a rarer value is not worth a plane
PAIR_ROWS = 1 << 13  # read at once: np.repeat lets no other thread run meanwhile
POOL_FULL, MIN_POOL_CODES = 0.85, 1 << 14  # lists are copied into a new pool ahead of need


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
    """keyword and bool values (one code a row) or keyword_list values (several): a plane for a frequent code, the
    column's order for the others. The codes of lists lie in one pool; what no row points at is dead.
    """

    def __init__(
        self, attribute: Attribute, capacity: int, table: ValueTable | None = None, pool_room: int = 0
    ) -> None:
        self.attribute = attribute
        self.table = table or ValueTable()
        self.order = SortedRows(np.dtype(np.int32))
        self.planes: dict[int, Words] = {}
        self._capacity = capacity
        self._is_list = attribute.type == "keyword_list"
        self._present_W: Words = np.zeros(capacity // 64, np.uint64)
        self._code_N: NDArray[np.int32] = np.zeros(0 if self._is_list else capacity, np.int32)
        list_rows = capacity if self._is_list else 0
        # The pool and each row's (start, length) in it: replaced together, so that readers hold a matching pair.
        self._lists: tuple[NDArray[np.int32], NDArray[np.int32]] = (
            np.zeros(pool_room or list_rows, np.int32),
            np.zeros((list_rows, 2), np.int32),
        )
        self._pool_used = 0

    @property
    def num_rows(self) -> int:
        return self._capacity

    @property
    def wants_copy(self) -> bool:
        """Whether the pool of lists is nearly full, most likely of dead codes."""
        size = self._lists[0].size
        return size > MIN_POOL_CODES and self._pool_used > POOL_FULL * size

    def begin_copy(self, capacity: int) -> CodeColumn:
        pool_room = _pool_room(int(self._lists[1][:, 1].sum())) if self._is_list else 0
        return CodeColumn(self.attribute, capacity, self.table, pool_room)

    def copy_rows(self, source: CodeColumn, rows: Rows, words: Rows) -> None:
        if self._is_list:
            self._write_pool(rows, *source._codes_of(rows))
        else:
            self._code_N[rows] = source._code_N[rows]
        self._present_W[words] = source._present_W[words]
        for code, plane in source.planes.items():
            if code in self.planes:
                self.planes[code][words] = plane[words]
            else:
                self._copy_plane(code, plane)

    def _copy_plane(self, code: int, plane: Words) -> None:
        self.planes[code] = np.zeros(self._capacity // 64, np.uint64)
        self.planes[code][: plane.size] = plane

    def finish_copy(self, source: CodeColumn) -> None:
        for code in source.planes.keys() - self.planes.keys():
            self._copy_plane(code, source.planes[code])
        self.order = source.order.copy()

    def sort(self) -> None:
        if self.order.is_due:
            self.order.sort(self._pairs)

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
            self._write_pool(rows, codes, lengths)
        else:
            self._code_N[rows] = 0
            self._code_N[owners] = codes
        put_bits(self._present_W, rows, lengths > 0)
        self._count(codes, owners)

    def move(self, rows: Rows, to: Rows) -> None:
        """Write the values of `rows` at other rows, which no reader can see."""
        self._write_codes(to, *self._codes_of(rows))

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
        starts, lengths = span_N[rows, 0].astype(np.int64), span_N[rows, 1].astype(np.int64)
        firsts = np.cumsum(lengths) - lengths
        places = np.arange(int(lengths.sum())) + np.repeat(starts - firsts, lengths)
        # A row that is being written may show a start without its length; nobody counts on what it shows.
        return pool[np.minimum(places, pool.size - 1)], lengths

    def _write_pool(self, rows: Rows, codes: NDArray[np.int32], lengths: NDArray[np.int64]) -> None:
        pool, span_N = self._lists
        span_N[rows, 1] = 0
        if self._pool_used + codes.size > pool.size:
            pool, span_N = self._compact_pool(codes.size)
        used = self._pool_used
        pool[used : used + codes.size] = codes
        span_N[rows, 0] = used + np.cumsum(lengths) - lengths
        span_N[rows, 1] = lengths
        self._pool_used = used + codes.size

    def _compact_pool(self, room: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """A larger pool without the dead codes, and the spans in it; readers keep the pair they hold."""
        _, old_span_N = self._lists
        rows = np.flatnonzero(old_span_N[:, 1])
        codes, lengths = self._codes_of(rows)
        pool = np.zeros(_pool_room(codes.size + room), np.int32)
        pool[: codes.size] = codes
        span_N = old_span_N.copy()
        span_N[rows, 0] = np.cumsum(lengths) - lengths
        self._lists, self._pool_used = (pool, span_N), int(codes.size)
        return self._lists

    def _count(self, codes: NDArray[np.int32], owners: Rows) -> None:
        """Count the new codes, set their bits, put the rest in order, and give frequent values a plane."""
        table = self.table
        if codes.size == 0:
            return
        distinct, counts = np.unique(codes, return_counts=True)
        table.counts[distinct] += counts
        planes = self.planes
        rare = codes > 0 if not planes else ~np.isin(codes, np.fromiter(planes, np.int32, len(planes)))
        for code in distinct.tolist() if len(planes) < distinct.size else planes:
            if code in planes:
                set_bits(planes[code], owners[codes == code])
        if not rare.any():
            return
        enough = max(MIN_PLANE_ROWS, self._capacity // 64)
        frequent = [code for code in distinct[table.counts[distinct] >= enough].tolist() if code not in planes][
            : MAX_PLANES - len(planes)
        ]
        self.order.append(owners[rare], self._pairs)
        for code in frequent:
            built = self._find([code], self.order.ordered, self._capacity // 64)
            self.planes = {**self.planes, code: built}

    def _pairs(self) -> tuple[NDArray[np.int32], Rows]:
        """The codes without a plane, and the row of each."""
        rows = list_bits(self._present_W)
        planes = np.fromiter(self.planes, np.int64, len(self.planes))
        parts: list[tuple[NDArray[np.int32], Rows]] = [(np.zeros(0, np.int32), np.zeros(0, np.int64))]
        for first in range(0, rows.size, PAIR_ROWS):
            codes, lengths = self._codes_of(rows[first : first + PAIR_ROWS])
            has_order = np.ones(int(codes.max(initial=0)) + 1, np.bool_)
            has_order[0] = False
            has_order[planes[planes < has_order.size]] = False
            kept = has_order[codes]
            parts.append((codes[kept], np.repeat(rows[first : first + PAIR_ROWS], lengths)[kept]))
        return np.concatenate([codes for codes, _ in parts]), np.concatenate([owners for _, owners in parts])

    def _find(self, codes: Sequence[int], ordered: Ordered, num_words: int) -> Words:
        """The rows that have any of the codes, none of which has a plane."""
        wanted = np.sort(np.array(codes, np.int32))
        rows = ordered.near(wanted, wanted, INT64_MAX)
        assert rows is not None
        rows = rows[rows < num_words * 64]  # rows newer than this reader
        found, lengths = self._codes_of(rows)
        owners = np.repeat(rows, lengths)
        hit = found == wanted[0] if wanted.size == 1 else np.isin(found, wanted)
        return plane_of(owners[hit], num_words)

    def exists(self, num_words: int) -> Words:
        return self._present_W[:num_words]

    def any_of(self, values: Sequence[Scalar], num_words: int) -> Words:
        codes = [code for value in values if (code := self.table.code_of.get(value)) is not None]  # type: ignore[arg-type]
        # The order before the planes: a code that left the order has its plane by then.
        ordered = self.order.ordered
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
            words |= self._find(rare, ordered, num_words)
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
            return tuple(str(self.table.values[code]) for code in pool[start : start + length]) or None
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
        self.order.sort(self._pairs)  # without the codes that got a plane


def _pool_room(num_codes: int) -> int:
    return max(64, num_codes * 7 // 4)


def _value_text(value: str | bool | None) -> str:
    return value if isinstance(value, str) else "true" if value else "false"
