"""Import files as batches of raw columns: Parquet, CSV and JSON Lines, the latter two also gzipped.

A reader keeps rows apart that have no columns at all (a broken JSON line, a CSV line with too many cells); what the
cells mean is decided elsewhere. Every batch knows the number of each of its rows.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from services.importing.report import ImportFileError, Reject, show_value

BATCH_ROWS = 65_536
SUFFIXES = (".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")

# A quote that is never closed would otherwise swallow the rest of the file; texts are at most 64 KiB anyway.
csv.field_size_limit(131_072)

Array: TypeAlias = "pa.Array[Any]"
Cells: TypeAlias = "Array | list[Any]"
"""One column of a batch: Arrow where the file has a type (CSV: text), a list where each row may have its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawBatch:
    """Some rows of a file."""

    rows: NDArray[np.int64]  # [n] 1-based row of data of each row
    untyped: bool  # every cell is text, to be parsed
    columns: dict[str, Cells]  # each of length n; a column that is absent is not in it
    broken: list[Reject] = field(default_factory=list)  # rows of this stretch of the file that have no cells
    unknown: Counter[str] = field(default_factory=Counter)  # other columns -> rows that have them


class Reader(Protocol):
    """One open file."""

    columns: tuple[str, ...] | None  # None: every row has its own
    num_rows: int | None  # None: known at the end only

    def batches(self, wanted: Sequence[str], batch_rows: int) -> Iterator[RawBatch]: ...

    def close(self) -> None: ...


def open_reader(path: Path) -> Reader:
    """The reader for a file, by its suffix; ImportFileError where it cannot be read."""
    name = path.name.lower()
    if not path.is_file():
        raise ImportFileError(f"{path}: no such file")
    if name.endswith(".parquet"):
        return ParquetReader(path)
    base = name.removesuffix(".gz")
    if base.endswith(".csv"):
        return CsvReader(path)
    if base.endswith((".jsonl", ".ndjson")):
        return JsonLinesReader(path)
    raise ImportFileError(f"{path}: unknown kind of file, expected one of {', '.join(SUFFIXES)}")


class ParquetReader:
    """Typed columns; every row has the same."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise ImportFileError(f"{path}: not a Parquet file: {error}") from error
        self.columns: tuple[str, ...] | None = tuple(self._file.schema_arrow.names)
        self.num_rows: int | None = self._file.metadata.num_rows
        twice = [name for name, count in Counter(self.columns).items() if count > 1]
        if twice:
            self._file.close()
            raise ImportFileError(f"{path}: column {twice[0]!r} stands twice in it")

    def batches(self, wanted: Sequence[str], batch_rows: int) -> Iterator[RawBatch]:
        assert self.columns is not None
        present = [name for name in wanted if name in self.columns]
        unknown = [name for name in self.columns if name not in wanted]
        first = 1
        try:
            for batch in self._file.iter_batches(batch_rows, columns=present):
                size = batch.num_rows
                yield RawBatch(
                    untyped=False,
                    rows=np.arange(first, first + size, dtype=np.int64),
                    columns={name: batch.column(name) for name in present},
                    unknown=Counter(dict.fromkeys(unknown, size)),
                )
                first += size
        except (pa.ArrowException, OSError) as error:
            raise ImportFileError(f"{self._path}: after row {first - 1}: {error}") from error

    def close(self) -> None:
        self._file.close()


class CsvReader:
    """RFC 4180 with a header, commas, UTF-8; every cell is text."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.num_rows: int | None = None
        # Bytes that are no UTF-8 become lone surrogates, which the cell's own check then refuses.
        self._text = io.TextIOWrapper(_open(path), encoding="utf-8-sig", errors="surrogateescape", newline="")
        self._cells = csv.reader(self._text, strict=True)
        try:
            self.columns: tuple[str, ...] | None = self._header()
        except BaseException:
            self._text.close()
            raise

    def batches(self, wanted: Sequence[str], batch_rows: int) -> Iterator[RawBatch]:
        assert self.columns is not None
        width = len(self.columns)
        places = {name: self.columns.index(name) for name in wanted if name in self.columns}
        unknown = [name for name in self.columns if name not in wanted]
        row = 0
        while True:
            lines, failure, ended = self._take(batch_rows)
            first, row = row + 1, row + len(lines)
            rows = np.arange(first, row + 1, dtype=np.int64)
            broken: list[Reject] = []
            if set(map(len, lines)) - {width}:
                rows, lines, broken = _keep_whole(rows, lines, width)
            if failure is not None:
                row += 1
                broken.append(Reject(row, None, "", f"not CSV: {failure}"))
            if lines or broken:
                cells = list(zip(*lines, strict=True))
                yield RawBatch(
                    untyped=True,
                    rows=rows,
                    columns={name: _text_cells(cells[place]) for name, place in places.items() if lines},
                    broken=broken,
                    unknown=Counter(dict.fromkeys(unknown, len(lines))),
                )
            if ended:
                return

    def _header(self) -> tuple[str, ...]:
        try:
            header = next(self._cells, None)
        except (csv.Error, *_READ_ERRORS) as error:
            raise ImportFileError(f"{self._path}: header cannot be read: {error}") from error
        if not header:
            raise ImportFileError(f"{self._path}: empty, expected a header line with the column names")
        if any("\ud800" <= letter <= "\udfff" for name in header for letter in name):
            raise ImportFileError(f"{self._path}: the header is not UTF-8: {show_value(header)}")
        twice = [name for name, count in Counter(header).items() if count > 1]
        if twice:
            raise ImportFileError(f"{self._path}: column {twice[0]!r} stands twice in the header")
        return tuple(header)

    def _take(self, num_rows: int) -> tuple[list[list[str]], str | None, bool]:
        """The next rows; why the row after them cannot be read, if so; whether the file ends."""
        lines: list[list[str]] = []
        try:
            # extend() keeps what came before an error.
            lines.extend(islice(self._cells, num_rows))
        except csv.Error as error:
            return lines, str(error), False
        except _READ_ERRORS as error:
            raise ImportFileError(f"{self._path}: line {self._cells.line_num}: {error}") from error
        return lines, None, len(lines) < num_rows

    def close(self) -> None:
        self._text.close()


class JsonLinesReader:
    """One JSON object a line; every row has its own columns and types."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _open(path)
        self.columns: tuple[str, ...] | None = None
        self.num_rows: int | None = None

    def batches(self, wanted: Sequence[str], batch_rows: int) -> Iterator[RawBatch]:
        known = set(wanted)
        row = 0
        while True:
            try:
                lines = list(islice(self._file, batch_rows))
            except _READ_ERRORS as error:
                raise ImportFileError(f"{self._path}: after line {row}: {error}") from error
            if not lines:
                return
            rows, objects, broken = _parse_lines(lines, first=row + 1)
            row += len(lines)
            keys = Counter(chain.from_iterable(objects))
            yield RawBatch(
                untyped=False,
                rows=np.array(rows, dtype=np.int64),
                columns={name: [each.get(name) for each in objects] for name in wanted if name in keys},
                broken=broken,
                unknown=Counter({name: count for name, count in keys.items() if name not in known}),
            )

    def close(self) -> None:
        self._file.close()


_READ_ERRORS = (OSError, EOFError, zlib.error)


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def _keep_whole(
    rows: NDArray[np.int64], lines: list[list[str]], width: int
) -> tuple[NDArray[np.int64], list[list[str]], list[Reject]]:
    """Only the lines with as many cells as the header; blank lines go silently, others as rejects."""
    whole = np.array([len(line) == width for line in lines], dtype=bool)
    broken = [
        Reject(row, None, show_value(line), f"{len(line)} cells, the header has {width}")
        for row, line in zip(rows.tolist(), lines, strict=True)
        if line and len(line) != width
    ]
    return rows[whole], [line for line in lines if len(line) == width], broken


def _text_cells(cells: Sequence[str]) -> Cells:
    try:
        return pa.array(cells, pa.string())
    except UnicodeEncodeError:
        return list(cells)


def _parse_lines(lines: list[bytes], first: int) -> tuple[list[int], list[dict[str, Any]], list[Reject]]:
    rows, objects, broken = [], [], []
    for row, line in enumerate(lines, start=first):
        try:
            parsed = orjson.loads(line)
        except json.JSONDecodeError as error:
            if line.strip():
                broken.append(Reject(row, None, show_value(line.rstrip(b"\r\n")), f"not JSON: {error}"))
            continue
        if isinstance(parsed, dict):
            rows.append(row)
            objects.append(parsed)
        else:
            broken.append(Reject(row, None, show_value(parsed), "expected a JSON object"))
    return rows, objects, broken
