"""Every event, for training and replay, as Parquet files by day of the event (UTC).

`<folder>/day=YYYY-MM-DD/part-<first offset>-<last offset>.parquet`; bulk imports: `part-import-<id>-<batch>.parquet`.
A batch's range is noted in the store before its files are written, so that a batch cut short by a crash is written
again as the same files; no event is then in two files of the log. Repetitions that came after the log's own
memory of event ids are dropped when the archive is read.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray

from models.data.events import EventTable
from models.data.schema import FeatureSchema
from services.keys import keys_of
from services.storage.client import Client
from services.storage.errors import ArchiveCorrupt
from services.storage.events import Event, EventLog, LoggedEvent
from services.storage.files import remove_temporaries, write_atomically
from services.storage.names import Names
from services.storage.streams import START, Streams, offset_tuple

CONSUMER = "archive"
DAY_MS = 86_400_000

_COLUMNS: list[pa.Field[Any]] = [
    pa.field("event_id", pa.string()),
    pa.field("user_id", pa.string()),
    pa.field("item_id", pa.string()),
    pa.field("type", pa.string()),
    pa.field("value", pa.float64()),
    pa.field("ts_ms", pa.int64()),
    pa.field("recommendation_id", pa.string()),
    pa.field("position", pa.int64()),
    pa.field("propensity", pa.float64()),
    # Order of arrival: the two halves of the stream offset; for imports 0 and a running number.
    pa.field("arrival_ms", pa.int64()),
    pa.field("arrival_sequence", pa.int64()),
]
EVENT_SCHEMA = pa.schema(_COLUMNS)


class EventArchive:
    """Writes the archive from the events stream, and reads it. One writer per folder: the folder's owner."""

    def __init__(
        self,
        folder: Path,
        *,
        client: Client,
        names: Names,
        streams: Streams,
        events: EventLog,
        batch_events: int = 50_000,
        max_age_ms: int = 60_000,
    ) -> None:
        """A part is written once `batch_events` wait or the first has waited `max_age_ms`."""
        self.folder = folder
        self._client = client
        self._names = names
        self._streams = streams
        self._events = events
        self._batch_events = batch_events
        self._max_age_ms = max_age_ms
        self._waiting: list[LoggedEvent] = []
        self._waiting_since = 0.0
        self._cursor: str | None = None

    @property
    def offset(self) -> str:
        """Offset of the last event in the archive."""
        return self._streams.offset_of("events", CONSUMER) or START

    def step(self, block_ms: int | None = None, flush: bool = False) -> list[Path]:
        """Take in new events and write a part when one is due, or `flush` asks for it. Returns the files written."""
        if self._cursor is None:
            written = self._resume()
            if written:
                return written
        assert self._cursor is not None
        room = self._batch_events - len(self._waiting)
        while room > 0:
            fresh = self._events.read(self._cursor, min(room, 5_000), block_ms)
            if not fresh:
                break
            if not self._waiting:
                self._waiting_since = time.monotonic()
            self._waiting += fresh
            self._cursor, room, block_ms = fresh[-1].offset, room - len(fresh), None
        age_ms = (time.monotonic() - self._waiting_since) * 1000
        if self._waiting and (flush or room <= 0 or age_ms >= self._max_age_ms):
            batch, self._waiting = self._waiting, []
            try:
                return self._commit(batch)
            except BaseException:
                self._waiting = batch
                raise
        return []

    def write_import(self, import_id: str, batch: int, events: Sequence[Event]) -> list[Path]:
        """Write a bulk import's batch; the same batch again replaces its own files. Returns the files."""
        if not re.fullmatch(r"[A-Za-z0-9_.]+", import_id):
            raise ValueError(f"import id {import_id!r} is not usable; expected letters, digits, '_' and '.'")
        arrivals = [(0, (batch << 32) + row) for row in range(len(events))]
        return self._write(f"part-import-{import_id}-{batch:06d}", _table(events, arrivals))

    def load(self, start_ms: int | None = None, stop_ms: int | None = None) -> pa.Table:
        """Return events with start <= ts < stop, each event_id once (its first arrival), sorted by ts and arrival.

        Columns as in EVENT_SCHEMA. Raises ArchiveCorrupt for a file that cannot be read.
        """
        files = [str(path) for path in self.files(start_ms, stop_ms)]
        if not files:
            return EVENT_SCHEMA.empty_table()
        condition = pc.scalar(True)
        if start_ms is not None:
            condition &= ds.field("ts_ms") >= start_ms
        if stop_ms is not None:
            condition &= ds.field("ts_ms") < stop_ms
        try:
            table = ds.dataset(files, schema=EVENT_SCHEMA, format="parquet").to_table(filter=condition)
        except (pa.ArrowException, OSError) as error:
            raise ArchiveCorrupt(self.folder, str(error)) from error
        arrival = np.lexsort((table["arrival_sequence"].to_numpy(), table["arrival_ms"].to_numpy()))
        codes = table["event_id"].combine_chunks().dictionary_encode().indices.to_numpy()[arrival]
        first = arrival[np.sort(np.unique(codes, return_index=True)[1])]
        order = first[np.argsort(table["ts_ms"].to_numpy()[first], kind="stable")]
        return table.take(order)

    def files(self, start_ms: int | None = None, stop_ms: int | None = None) -> list[Path]:
        """Return the files that may hold events with start <= ts < stop."""
        first = "" if start_ms is None else _day(start_ms)
        last = "9999-99-99" if stop_ms is None else _day(stop_ms - 1)
        return sorted(
            path
            for folder in self.folder.glob("day=*")
            if first <= folder.name.removeprefix("day=") <= last
            for path in folder.glob("part-*.parquet")
        )

    def _resume(self) -> list[Path]:
        self._streams.register("events", CONSUMER)
        remove_temporaries(self.folder)
        self._cursor = self.offset
        pending = self._client.call("HGET", self._names.archive, "pending")
        if pending is None:
            return []
        first, last = pending.decode().split(" ")
        if offset_tuple(last) <= offset_tuple(self._cursor):
            return []
        batch = self._events.between(first, last)
        self._cursor = last
        return self._commit(batch)

    def _commit(self, batch: Sequence[LoggedEvent]) -> list[Path]:
        first, last = batch[0].offset, batch[-1].offset
        self._client.call("HSET", self._names.archive, "pending", f"{first} {last}")
        arrivals = [offset_tuple(logged.offset) for logged in batch]
        paths = self._write(f"part-{first}-{last}", _table([logged.event for logged in batch], arrivals))
        self._client.atomically(
            [
                ("HSET", self._names.offsets("events"), CONSUMER, last),
                ("HDEL", self._names.archive, "pending"),
            ]
        )
        return paths

    def _write(self, stem: str, table: pa.Table) -> list[Path]:
        days = table["ts_ms"].to_numpy() // DAY_MS
        paths = []
        for number in np.unique(days).tolist():
            part = table.take(np.flatnonzero(days == number)).sort_by("ts_ms")
            path = self.folder / f"day={_day(number * DAY_MS)}" / f"{stem}.parquet"
            write_atomically(path, partial(pq.write_table, part, compression="zstd"))
            paths.append(path)
        return paths


def archived_events(schema: FeatureSchema, table: pa.Table) -> EventTable:
    """Return rows of the archive as the columns that training and replay work with."""
    return EventTable.from_columns(
        schema,
        user_keys=_keys(table["user_id"]),
        item_keys=_keys(table["item_id"]),
        types=np.array(table["type"].to_pylist(), dtype=object),
        values=table["value"].to_numpy(zero_copy_only=False).astype(np.float64),
        ts_ms=table["ts_ms"].to_numpy(),
    )


def _keys(column: pa.ChunkedArray[Any]) -> NDArray[np.int64]:
    encoded = column.combine_chunks().dictionary_encode()
    distinct: list[Any] = encoded.dictionary.to_pylist()
    keys: NDArray[np.int64] = keys_of(distinct)[encoded.indices.to_numpy()]
    return keys


def _table(events: Sequence[Event], arrivals: Sequence[tuple[int, int]]) -> pa.Table:
    columns = {name: [getattr(event, name) for event in events] for name in EVENT_SCHEMA.names[:9]}
    columns["arrival_ms"] = [arrival[0] for arrival in arrivals]
    columns["arrival_sequence"] = [arrival[1] for arrival in arrivals]
    return pa.table(columns, schema=EVENT_SCHEMA)


def _day(ts_ms: int) -> str:
    return (date(1970, 1, 1) + timedelta(days=ts_ms // DAY_MS)).isoformat()
