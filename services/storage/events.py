"""What members did, as an append-only log. An event is known by its event_id: appending it again changes nothing.

Ids are remembered for at least `window_ms` after they arrive, in sets of one period each that expire as a whole, so
the memory this takes is bounded by two periods of traffic. The archive drops repetitions that come later still.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from xxhash import xxh3_128_digest

from models.data.events import EventTable
from models.data.schema import FeatureSchema
from services.clock import Clock
from services.keys import keys_of
from services.storage.client import Argument, Client, Script
from services.storage.names import Names
from services.storage.streams import START, Entry, Streams

IMPRESSION = "impression"
"""The type of an event that says that an item was shown."""

DEFAULT_WINDOW_MS = 7 * 86_400_000
MAX_SCRIPT_EVENTS = 500

# KEYS: stream, ids of this period, of the one before, of the one after (another process's clock may be ahead).
# ARGV: time to live of this period's ids in ms, then digest and event for each.  Returns the offset or nil for each.
_APPEND = Script("""
local results = {}
for i = 2, #ARGV, 2 do
  if redis.call('SISMEMBER', KEYS[3], ARGV[i]) == 1 or redis.call('SISMEMBER', KEYS[4], ARGV[i]) == 1
      or redis.call('SADD', KEYS[2], ARGV[i]) == 0 then
    results[#results + 1] = false
  else
    results[#results + 1] = redis.call('XADD', KEYS[1], '*', 'event', ARGV[i + 1])
  end
end
redis.call('PEXPIRE', KEYS[2], ARGV[1])
return results
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    event_id: str
    user_id: str
    item_id: str
    type: str
    ts_ms: int
    value: float | None = None
    recommendation_id: str | None = None
    """The answer in which the item was shown, with its place there and the probability of showing it."""
    position: int | None = None
    propensity: float | None = None

    def __post_init__(self) -> None:
        for name in ("event_id", "user_id", "item_id", "type"):
            if not getattr(self, name):
                raise ValueError(f"event {self.event_id!r}: {name} is empty")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"event {self.event_id!r}: value is {self.value}; expected a finite number or None")


@dataclass(frozen=True, slots=True)
class Append:
    event_id: str
    offset: str | None
    """None: the event is a repetition and was not appended."""

    @property
    def duplicate(self) -> bool:
        return self.offset is None


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    offset: str
    event: Event


class EventLog:
    """The events stream."""

    def __init__(
        self,
        client: Client,
        names: Names,
        streams: Streams,
        clock: Clock,
        window_ms: int = DEFAULT_WINDOW_MS,
    ) -> None:
        self._client = client
        self._names = names
        self._streams = streams
        self._clock = clock
        self._window_ms = window_ms

    def append(self, events: Sequence[Event]) -> list[Append]:
        """Append events in order and say for each where, or that it is a repetition (also within `events`).

        Up to 500 events are one atomic step; more are appended in several, in order. After StorageUnavailable,
        append the same events again: those that arrived are recognised.
        """
        bucket = self._clock.arrival_ms() // self._window_ms
        keys = [self._names.stream("events"), *(self._names.event_ids(bucket + step) for step in (0, -1, 1))]
        appends: list[Append] = []
        for start in range(0, len(events), MAX_SCRIPT_EVENTS):
            batch = events[start : start + MAX_SCRIPT_EVENTS]
            arguments: list[Argument] = [3 * self._window_ms]
            for event in batch:
                arguments += [xxh3_128_digest(event.event_id.encode()), _encode(event)]
            offsets = self._client.run(_APPEND, keys, arguments)
            appends += [
                Append(event.event_id, None if offset is None else offset.decode())
                for event, offset in zip(batch, offsets, strict=True)
            ]
        return appends

    def read(self, after: str = START, count: int = 1_000, block_ms: int | None = None) -> list[LoggedEvent]:
        """Return events after an offset, oldest arrival first; wait up to `block_ms` while there are none."""
        return [parse_event(entry) for entry in self._streams.read("events", after, count, block_ms)]

    def between(self, first: str, last: str) -> list[LoggedEvent]:
        """Return the events from offset `first` to `last`, both included."""
        return [parse_event(entry) for entry in self._streams.between("events", first, last)]


def event_table(schema: FeatureSchema, events: Sequence[Event]) -> EventTable:
    """Return events as columns in order of time; those of one time keep their order."""
    return EventTable.from_columns(
        schema,
        user_keys=keys_of(event.user_id for event in events),
        item_keys=keys_of(event.item_id for event in events),
        types=[event.type for event in events],
        values=np.array([math.nan if e.value is None else e.value for e in events], dtype=np.float64),
        ts_ms=np.array([event.ts_ms for event in events], dtype=np.int64),
    )


def parse_event(entry: Entry) -> LoggedEvent:
    return LoggedEvent(entry.offset, Event(**orjson.loads(entry.fields[b"event"])))


def _encode(event: Event) -> bytes:
    record: dict[str, Any] = {
        "event_id": event.event_id,
        "user_id": event.user_id,
        "item_id": event.item_id,
        "type": event.type,
        "ts_ms": event.ts_ms,
    }
    for name in ("value", "recommendation_id", "position", "propensity"):
        value = getattr(event, name)
        if value is not None:
            record[name] = value
    return orjson.dumps(record)
