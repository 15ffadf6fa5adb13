"""Where imported rows go: documents for items and users; archive and state for events."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from models.data.schema import FeatureSchema
from services.storage.archive import EventArchive
from services.storage.consumer import ImportMark, StateConsumer
from services.storage.documents import DocumentStore
from services.storage.events import Event, event_table

PUT_ROWS = 2_000
PARTS = 8
"""A batch is archived as a whole, so that files are few, and applied to the state in as many transactions, because
each of them holds up everyone else at the server. Marks in the store count parts: not to be changed."""


class DocumentSink:
    """Items or users into their store, replacing documents of the same id. The catalogue follows from the stream.

    Writing a document twice changes nothing but its version, so an import cut short simply begins again.
    """

    def __init__(self, store: DocumentStore) -> None:
        self._store = store

    def next_batch(self, import_id: str) -> int:
        return 0

    def write(self, import_id: str, batch: int, table: pa.RecordBatch) -> None:
        for start in range(0, table.num_rows, PUT_ROWS):
            self._store.put_many(documents_of(table.slice(start, PUT_ROWS)))


class EventSink:
    """Events into the archive, then into histories and popularity; each batch once, whatever is killed when.

    The archive is first: a batch that is marked as applied is archived, and one archived twice replaces itself.
    """

    def __init__(self, archive: EventArchive, consumer: StateConsumer, schema: FeatureSchema) -> None:
        self._archive = archive
        self._consumer = consumer
        self._schema = schema

    def next_batch(self, import_id: str) -> int:
        return (self._consumer.import_progress(import_id) + 1) // PARTS

    def write(self, import_id: str, batch: int, table: pa.RecordBatch) -> None:
        events = events_of(table)
        self._archive.write_import(import_id, batch, events)
        size = -(-len(events) // PARTS)
        for part in range(PARTS):
            # Always all of them, be they empty: marks must follow one another. Those that are in are not applied.
            taken = event_table(self._schema, events[part * size : (part + 1) * size])
            self._consumer.apply(taken, ImportMark(import_id, batch * PARTS + part))


def documents_of(table: pa.RecordBatch) -> list[tuple[str, dict[str, Any]]]:
    """The rows as ids and attributes: plain Python, integer milliseconds for times, absent where null."""
    names = table.schema.names[1:]
    ids: list[Any] = table.column(0).to_pylist()
    columns = [_plain(table.column(name)) for name in names]
    return [
        (
            identifier,
            {name: value for name, value in zip(names, values, strict=True) if value is not None},
        )
        for identifier, values in zip(ids, zip(*columns, strict=True) if columns else [()] * len(ids), strict=True)
    ]


def events_of(table: pa.RecordBatch) -> list[Event]:
    """The rows as events."""
    columns = [_plain(table.column(name)) for name in table.schema.names]
    return [
        Event(
            event_id=event_id,
            user_id=user_id,
            item_id=item_id,
            type=type_,
            value=value,
            ts_ms=ts_ms,
            recommendation_id=recommendation_id,
            position=position,
            propensity=propensity,
        )
        for (
            event_id,
            user_id,
            item_id,
            type_,
            value,
            ts_ms,
            recommendation_id,
            position,
            propensity,
        ) in zip(*columns, strict=True)
    ]


def _plain(column: Any) -> list[Any]:
    values: list[Any] = (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()
    return values
