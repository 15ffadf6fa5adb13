"""The catalogue (items or users) as Arrow files, for training and for building an index from nothing.

`<folder>/<n>.arrow` holds changes in order of their stream: the last one of an id wins, a deletion is a row with
`deleted`. Each segment's metadata says up to which offset of the stream the catalogue is complete with it, so a
segment and its offset appear together. A base segment holds everything; what is numbered below it is ignored
and removed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from services.storage.documents import Change, DocumentStore
from services.storage.errors import ArchiveCorrupt, OffsetLost
from services.storage.files import remove_temporaries, write_atomically
from services.storage.streams import START, Streams, offset_tuple

logger = logging.getLogger(__name__)

CONSUMER = "catalogue"
MAX_SEGMENTS = 64
MIN_COMPACT_ROWS = 10_000

_COLUMNS: list[pa.Field[Any]] = [
    pa.field("id", pa.string()),
    pa.field("version", pa.int64()),
    pa.field("updated_ms", pa.int64()),
    pa.field("deleted", pa.bool_()),
    pa.field("attributes", pa.large_string()),
]
SEGMENT_SCHEMA = pa.schema(_COLUMNS)


@dataclass(frozen=True, slots=True)
class Segment:
    number: int
    path: Path
    num_rows: int
    offset: str
    base: bool


class Catalogue:
    """One store's catalogue. One writer per folder: the folder's owner; any number of readers."""

    def __init__(
        self,
        folder: Path,
        *,
        store: DocumentStore,
        streams: Streams,
        batch_changes: int = 20_000,
        max_age_ms: int = 60_000,
    ) -> None:
        """A segment is written once `batch_changes` wait or the first has waited `max_age_ms`."""
        self.folder = folder
        self._store = store
        self._streams = streams
        self._batch_changes = batch_changes
        self._max_age_ms = max_age_ms
        self._segments: list[Segment] | None = None
        self._waiting: list[Change] = []
        self._waiting_since = 0.0

    @property
    def offset(self) -> str:
        """The offset of the store's stream up to which the catalogue is complete."""
        segments = read_segments(self.folder) if self._segments is None else self._segments
        return segments[-1].offset if segments else START

    def step(self, block_ms: int | None = None, flush: bool = False) -> int:
        """Take in changes and write a segment when one is due, or `flush` asks for it. Returns the changes written."""
        if self._segments is None:
            self._resume()
        assert self._segments is not None
        room = self._batch_changes - len(self._waiting)
        while room > 0:
            after = self._waiting[-1].offset if self._waiting else self.offset
            fresh = self._store.changes(after, min(room, 2_000), block_ms)
            if not fresh:
                break
            if not self._waiting:
                self._waiting_since = time.monotonic()
            self._waiting += fresh
            room, block_ms = room - len(fresh), None
        age_ms = (time.monotonic() - self._waiting_since) * 1000
        if not self._waiting or not (flush or room <= 0 or age_ms >= self._max_age_ms):
            return 0
        self._write(_rows(self._waiting), self._waiting[-1].offset, base=False)
        written, self._waiting = len(self._waiting), []
        self._streams.advance(self._store.name, CONSUMER, self.offset)
        deltas = [segment for segment in self._segments if not segment.base]
        base_rows = sum(segment.num_rows for segment in self._segments if segment.base)
        if len(deltas) >= MAX_SEGMENTS or sum(s.num_rows for s in deltas) > max(base_rows, MIN_COMPACT_ROWS):
            self.compact()
        return written

    def compact(self) -> None:
        """Write one base segment with the newest state of every document, and remove the others."""
        if self._segments is None:
            self._resume()
        assert self._segments is not None
        if len(self._segments) < 2:
            return
        old = self._segments
        self._write(_newest(self.folder, old), old[-1].offset, base=True)
        self._segments = self._segments[-1:]
        for segment in old:
            segment.path.unlink(missing_ok=True)

    def load(self, attributes: pa.Schema | None = None) -> pa.Table:
        """Return the documents that are there: id, version, updated_ms, then the attributes.

        attributes: one typed column for each field, null where a document lacks it; what has no field is left out.
        Without it: one column `attributes` of JSON text. Rows are in order of their latest change.
        Raises ValueError for a value that is not of its field's type, ArchiveCorrupt for an unreadable segment.
        """
        # A compaction may remove segments under a reader's hands; what replaces them is there already.
        for attempt in range(5):
            try:
                table = _newest(self.folder, read_segments(self.folder))
                break
            except FileNotFoundError:
                if attempt == 4:
                    raise
        table = table.drop_columns(["deleted"])
        return table if attributes is None else _typed(table, attributes)

    def _resume(self) -> None:
        remove_temporaries(self.folder)
        self._segments = read_segments(self.folder)
        for path in _segment_paths(self.folder).values():
            if path not in [segment.path for segment in self._segments]:
                path.unlink()
        try:
            self._streams.register(self._store.name, CONSUMER, self.offset)
            ahead = offset_tuple(self.offset) > offset_tuple(self._streams.last_offset(self._store.name))
            reason = "it is ahead of the stream, which is another one or was lost" if ahead else None
        except OffsetLost as error:
            reason = str(error)
        if reason is None:
            self._streams.advance(self._store.name, CONSUMER, self.offset)
        else:
            logger.warning("catalogue %s is built anew from the store: %s", self.folder, reason)
            self._rebuild()

    def _rebuild(self) -> None:
        """Replace all segments by one made from the documents as they are."""
        assert self._segments is not None
        # Changes made during the scan come again from the stream; the last of each document wins.
        offset = self._streams.last_offset(self._store.name)
        self._streams.advance(self._store.name, CONSUMER, offset)
        documents = list(self._store.scan())
        table = pa.table(
            {
                "id": [document.id for document in documents],
                "version": [document.version for document in documents],
                "updated_ms": [document.updated_ms for document in documents],
                "deleted": [False] * len(documents),
                "attributes": [orjson.dumps(document.attributes).decode() for document in documents],
            },
            schema=SEGMENT_SCHEMA,
        )
        old = self._segments
        self._write(table, offset, base=True)
        self._segments = self._segments[-1:]
        for segment in old:
            segment.path.unlink(missing_ok=True)

    def _write(self, table: pa.Table, offset: str, base: bool) -> None:
        assert self._segments is not None
        number = self._segments[-1].number + 1 if self._segments else 1
        path = self.folder / f"{number}.arrow"
        table = table.replace_schema_metadata({"offset": offset, "base": "1" if base else "0"})

        def write(temporary: Path) -> None:
            with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)

        write_atomically(path, write)
        self._segments = [*self._segments, Segment(number, path, len(table), offset, base)]


def read_segments(folder: Path) -> list[Segment]:
    """Return the segments that count, oldest first: the newest base and what follows it."""
    segments: list[Segment] = []
    for number, path in sorted(_segment_paths(folder).items(), reverse=True):
        with _open(path) as reader:
            metadata = reader.schema.metadata or {}
            rows = sum(reader.get_batch(i).num_rows for i in range(reader.num_record_batches))
        base = metadata[b"base"] == b"1"
        segments.append(Segment(number, path, rows, metadata[b"offset"].decode(), base))
        if base:
            break
    return segments[::-1]


def _segment_paths(folder: Path) -> dict[int, Path]:
    return {int(path.stem): path for path in folder.glob("*.arrow") if path.stem.isdecimal()}


def _open(path: Path) -> pa.RecordBatchFileReader:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path)))
    except pa.ArrowInvalid as error:
        raise ArchiveCorrupt(path, str(error)) from error


def _newest(folder: Path, segments: Sequence[Segment]) -> pa.Table:
    tables = []
    for segment in segments:
        with _open(segment.path) as reader:
            tables.append(reader.read_all().replace_schema_metadata(None))
    if not tables:
        return SEGMENT_SCHEMA.empty_table()
    table = pa.concat_tables(tables)
    codes = table["id"].combine_chunks().dictionary_encode().indices.to_numpy()
    # The last row of each id: the first one seen from the end.
    from_end = np.unique(codes[::-1], return_index=True)[1]
    rows = np.sort(len(codes) - 1 - from_end)
    alive = ~table["deleted"].to_numpy()[rows]
    return table.take(rows[alive])


def _rows(changes: Sequence[Change]) -> pa.Table:
    return pa.table(
        {
            "id": [change.id for change in changes],
            "version": [change.version for change in changes],
            "updated_ms": [change.updated_ms for change in changes],
            "deleted": [change.deleted for change in changes],
            "attributes": [orjson.dumps(change.attributes).decode() for change in changes],
        },
        schema=SEGMENT_SCHEMA,
    )


def _typed(table: pa.Table, attributes: pa.Schema) -> pa.Table:
    records: list[Mapping[str, Any]] = [orjson.loads(str(text)) for text in table["attributes"].to_pylist()]
    typed = table.drop_columns(["attributes"])
    for field in attributes:
        values = [record.get(field.name) for record in records]
        try:
            column = pa.array(values, type=field.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, OverflowError):
            identifier, value = _misfit([str(i) for i in table["id"].to_pylist()], values, field)
            raise ValueError(
                f"attribute {field.name!r} of document {identifier!r} is {value!r}; expected {field.type}"
            ) from None
        typed = typed.append_column(field, column)
    return typed


def _misfit(ids: Sequence[str], values: Sequence[object], field: pa.Field[Any]) -> tuple[str, object]:
    for identifier, value in zip(ids, values, strict=True):
        try:
            pa.array([value], type=field.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, OverflowError):
            return identifier, value
    raise AssertionError("a column cannot be built although each of its values can")
