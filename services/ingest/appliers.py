"""What followers do with the entries of a stream: to the state in storage, to the engines in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.data.schema import FeatureSchema
from services.clock import Clock
from services.ingest.follower import Apply
from services.keys import key_of
from services.llm.engine import LlmEngine
from services.ranking.engine import RankingEngine
from services.retrieval.engine import ItemChange, RetrievalEngine
from services.storage.consumer import MAX_AHEAD_MS, StateConsumer, StreamMark
from services.storage.documents import parse_change
from services.storage.events import IMPRESSION, Event, event_table, parse_event
from services.storage.storage import Storage
from services.storage.streams import Entry


def apply_to_state(consumer: StateConsumer, schema: FeatureSchema, after: str) -> Apply:
    """Histories, seen items and popularity; each event exactly once, whoever else applies beside us."""
    reached = after

    def apply(entries: Sequence[Entry]) -> str:
        nonlocal reached
        table = event_table(schema, [parse_event(entry).event for entry in entries])
        last = entries[-1].offset
        # Where another consumer was faster, go on from where it is.
        reached = last if consumer.apply(table, StreamMark(reached, last)) else consumer.offset
        return reached

    return apply


def apply_items_to_retrieval(engine: RetrievalEngine) -> Apply:
    """Embed and index what changed."""

    def apply(entries: Sequence[Entry]) -> str:
        engine.apply_items(_item_changes(entries), entries[-1].offset)
        return entries[-1].offset

    return apply


def apply_items_to_llm(engine: LlmEngine) -> Apply:
    """Take changed items into what the language model is told."""

    def apply(entries: Sequence[Entry]) -> str:
        engine.apply_items(_item_changes(entries))
        return entries[-1].offset

    return apply


def apply_items_to_ranking(engine: RankingEngine) -> Apply:
    """Take changed items into the ranker's table."""

    def apply(entries: Sequence[Entry]) -> str:
        engine.apply_items(_item_changes(entries))
        return entries[-1].offset

    return apply


def apply_events_to_retrieval(engine: RetrievalEngine, schema: FeatureSchema, clock: Clock) -> Apply:
    """Count events into the index's signals, an absurdly late clock of a client clamped as in the state."""

    def apply(entries: Sequence[Entry]) -> str:
        table = event_table(schema, [parse_event(entry).event for entry in entries])
        ts_ms = np.minimum(table.ts_ms, clock.now_ms() + MAX_AHEAD_MS)
        engine.apply_events(table.item_keys, table.action_masks, ts_ms, entries[-1].offset)
        return entries[-1].offset

    return apply


def apply_events_to_popularity(engine: RankingEngine, schema: FeatureSchema, storage: Storage) -> Apply:
    """Keep the ranker's popularity offsets: what was shown, and what was done in answer to that.

    Only events of a recommendation count: other actions do not say what the ranker missed. Members are read as they are
    now, shortly after they were shown their slate.
    """

    def apply(entries: Sequence[Entry]) -> str:
        events = [parse_event(entry).event for entry in entries]
        events = [event for event in events if event.recommendation_id is not None]
        if engine.model.popularity is not None and events:
            latest_ms = storage.clock.now_ms() + MAX_AHEAD_MS
            shown: dict[str, list[Event]] = {}
            for event in events:
                if event.type == IMPRESSION:
                    shown.setdefault(event.user_id, []).append(event)
            for member, slate in zip(storage.state.hydrate_many(list(shown)), shown.values(), strict=True):
                keys = np.array([key_of(event.item_id) for event in slate], np.int64)
                ts_ms = np.minimum(np.array([event.ts_ms for event in slate], np.int64), latest_ms)
                signals = storage.popularity.values(schema.signals, keys, int(ts_ms.max()))
                engine.observe(member.state, keys, signals, ts_ms)
            table = event_table(schema, [event for event in events if event.type != IMPRESSION])
            engine.credit(table.item_keys, table.action_masks, np.minimum(table.ts_ms, latest_ms))
        return entries[-1].offset

    return apply


def _item_changes(entries: Sequence[Entry]) -> list[ItemChange]:
    changes = [parse_change(entry) for entry in entries]
    return [ItemChange(change.key, None if change.deleted else change.attributes) for change in changes]
