"""Everything training reads, loaded from the archive: items, users and events up to one offset of the log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from models.data.events import EventTable
from models.data.items import ItemTable
from models.data.schema import FeatureSchema
from services.keys import keys_of
from services.storage.archive import archived_events
from services.storage.events import IMPRESSION
from services.storage.storage import Storage
from services.storage.streams import offset_tuple


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """The world as the archive tells it. Nothing in it is newer than the two offsets."""

    schema: FeatureSchema
    item_keys: NDArray[np.int64]
    item_attributes: list[Mapping[str, object]]
    """One per key, as stored."""
    items: ItemTable
    users: Mapping[int, Mapping[str, object]]
    events: EventTable
    """Actions only."""
    impressions: EventTable
    """What members who have acted were shown by serving, acted on or not."""
    items_offset: str
    """Place in the items stream up to which the items are complete."""
    events_offset: str
    """Place in the events stream up to which the events are complete."""

    @property
    def window_ms(self) -> tuple[int, int] | None:
        """First and last time of an event."""
        return (int(self.events.ts_ms[0]), int(self.events.ts_ms[-1])) if len(self.events) else None


class NothingToTrainOn(ValueError):
    """The archive lacks what a job needs; the message says what and how to import it."""


def load_training_data(storage: Storage, schema: FeatureSchema) -> TrainingData:
    """Read the archive.

    Where this process owns the data folder, what waits in the streams is written to the archive first; beside a
    running server that is the server's work, and the archive is read as it stands.

    Raises NothingToTrainOn where there are no items or no events.
    """
    if storage.owner:
        for catalogue in storage.catalogue.values():
            while catalogue.step(flush=True):
                pass
        while storage.archive.step(flush=True):
            pass
    items_offset = storage.catalogue["items"].offset
    item_keys, item_attributes = _documents(storage.catalogue["items"].load())
    user_keys, user_attributes = _documents(storage.catalogue["users"].load())
    events_offset = storage.archive.offset
    table = storage.archive.load()
    # Parts written since the offset was read would be counted again from the stream.
    limit_ms, limit_sequence = offset_tuple(events_offset)
    arrival_ms, arrival_sequence = table["arrival_ms"].to_numpy(), table["arrival_sequence"].to_numpy()
    known = (arrival_ms < limit_ms) | ((arrival_ms == limit_ms) & (arrival_sequence <= limit_sequence))
    table = table.filter(pa.array(known | (arrival_ms == 0)))
    events = archived_events(schema, table)
    # Impressions are logged by serving: counted in, they would move every split and window that is a share of events.
    acted = events.action_masks != 0
    impressions, events = events.take(~acted), events.take(acted)
    impressions = impressions.take((impressions.types == IMPRESSION) & np.isin(impressions.user_keys, events.user_keys))
    if not len(item_keys) or not len(events):
        raise NothingToTrainOn(
            f"the archive in {storage.data_dir} holds {len(item_keys)} items and {len(events)} events "
            "that are actions; "
            "import both first: shortlist import items FILE, shortlist import events FILE"
        )
    items = ItemTable(schema)
    items.upsert(item_keys, item_attributes)
    return TrainingData(
        schema=schema,
        item_keys=item_keys,
        item_attributes=item_attributes,
        items=items,
        users=dict(zip(user_keys.tolist(), user_attributes, strict=True)),
        events=events,
        impressions=impressions,
        items_offset=items_offset,
        events_offset=events_offset,
    )


def _documents(table: pa.Table) -> tuple[NDArray[np.int64], list[Mapping[str, object]]]:
    keys = keys_of([str(identifier) for identifier in table["id"].to_pylist()])
    return keys, [orjson.loads(str(text)) for text in table["attributes"].to_pylist()]
