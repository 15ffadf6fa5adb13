"""Events as columns, and what was known of a member at a past instant.

"At t" always means: from events strictly before t. An event at t itself is the outcome, never a feature.
"""

# n = events, L = history length

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data.schema import FeatureSchema
from models.data.signals import DecayedCounts
from models.data.state import History, UserState


@dataclass(frozen=True, slots=True)
class EventTable:
    """Events in order of time: seven columns of one length."""

    user_keys: NDArray[np.int64]
    item_keys: NDArray[np.int64]
    types: NDArray[np.object_]
    values: NDArray[np.float64]
    """nan where the event has no value."""
    ts_ms: NDArray[np.int64]
    action_masks: NDArray[np.uint32]
    """Bit i is the schema's i-th action; 0 for an event that is none of them."""

    @classmethod
    def from_columns(
        cls,
        schema: FeatureSchema,
        *,
        user_keys: NDArray[np.int64],
        item_keys: NDArray[np.int64],
        types: Sequence[str] | NDArray[Any],
        values: NDArray[np.float64] | None,
        ts_ms: NDArray[np.int64],
    ) -> EventTable:
        """Sort n events by time (stably) and work out their action masks; `values` None: no event has one."""
        lengths = {len(user_keys), len(item_keys), len(types), len(ts_ms)}
        if values is not None:
            lengths.add(len(values))
        if len(lengths) != 1:
            raise ValueError(f"event columns have lengths {sorted(lengths)}; expected one length")
        order = np.argsort(np.asarray(ts_ms, dtype=np.int64), kind="stable")
        type_column = np.asarray(types, dtype=object)[order]
        value_column = np.full(len(order), np.nan) if values is None else np.asarray(values, dtype=np.float64)[order]
        return cls(
            np.asarray(user_keys, dtype=np.int64)[order],
            np.asarray(item_keys, dtype=np.int64)[order],
            type_column,
            value_column,
            np.asarray(ts_ms, dtype=np.int64)[order],
            schema.action_masks(type_column, value_column),
        )

    def __len__(self) -> int:
        return len(self.ts_ms)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> EventTable:
        """Return the events at `rows`, which must keep the order of time."""
        return EventTable(
            self.user_keys[rows],
            self.item_keys[rows],
            self.types[rows],
            self.values[rows],
            self.ts_ms[rows],
            self.action_masks[rows],
        )

    def between(self, start_ms: int | None, stop_ms: int | None) -> EventTable:
        """Return events with start <= ts < stop; None leaves a side open."""
        start = 0 if start_ms is None else int(np.searchsorted(self.ts_ms, start_ms, side="left"))
        stop = len(self) if stop_ms is None else int(np.searchsorted(self.ts_ms, stop_ms, side="left"))
        return self.take(slice(start, max(start, stop)))

    def split(self, ts_ms: int) -> tuple[EventTable, EventTable]:
        """Return the events before `ts_ms` and those at or after it."""
        return self.between(None, ts_ms), self.between(ts_ms, None)

    def quantile_ms(self, share: float) -> int:
        """Return the time of the event that leaves `share` of all events before it (ties aside)."""
        if not len(self) or not 0.0 <= share <= 1.0:
            raise ValueError(f"share {share} of {len(self)} events; expected 0..1 of at least one")
        return int(self.ts_ms[min(len(self) - 1, int(len(self) * share))])


class HistoryBuilder:
    """Members' histories at any past instant.

    Only events that are some action of the schema enter a history.
    """

    def __init__(self, events: EventTable, length: int) -> None:
        if length < 1:
            raise ValueError(f"history length is {length}; expected at least 1")
        self._length = length
        events = events.take(events.action_masks != 0)
        order = np.argsort(events.user_keys, kind="stable")
        self._events = events.take(order)
        users, starts = np.unique(self._events.user_keys, return_index=True)
        stops = np.append(starts[1:], len(events))[: len(starts)]
        self._spans = dict(zip(users.tolist(), zip(starts.tolist(), stops.tolist(), strict=True), strict=True))
        self._values = self._events.values.astype(np.float32)

    def users(self) -> NDArray[np.int64]:
        """Return every member that ever acted."""
        return np.fromiter(self._spans, dtype=np.int64, count=len(self._spans))

    def history(self, user_key: int, now_ms: int) -> History:
        """Return the newest entries strictly before `now_ms`, oldest first."""
        start, stop = self._span(user_key, None, now_ms)
        rows = slice(max(start, stop - self._length), stop)
        return History(
            self._events.item_keys[rows],
            self._events.action_masks[rows],
            self._values[rows],
            self._events.ts_ms[rows],
        )

    def seen(self, user_key: int, now_ms: int) -> NDArray[np.int64]:
        """Return the distinct items acted on strictly before `now_ms`, however long ago."""
        return np.unique(self._events.item_keys[slice(*self._span(user_key, None, now_ms))])

    def outcome(self, user_key: int, start_ms: int, stop_ms: int) -> EventTable:
        """Return the member's events with start <= ts < stop: labels, never features."""
        return self._events.take(slice(*self._span(user_key, start_ms, stop_ms)))

    def _span(self, user_key: int, start_ms: int | None, stop_ms: int) -> tuple[int, int]:
        first, last = self._spans.get(user_key, (0, 0))
        times_ms = self._events.ts_ms[first:last]
        start = 0 if start_ms is None else int(np.searchsorted(times_ms, start_ms, side="left"))
        stop = int(np.searchsorted(times_ms, stop_ms, side="left"))
        return first + start, first + max(start, stop)


class EventCursor:
    """Walks events in order of time and answers what was known at the instant it has reached."""

    def __init__(self, schema: FeatureSchema, events: EventTable, users: Mapping[int, Mapping[str, object]]) -> None:
        self._events = events
        self._users = users
        self._histories = HistoryBuilder(events, schema.history_length)
        self._counts = DecayedCounts(schema.signals)
        self._position = 0
        self._now_ms = -(1 << 62)

    @property
    def now_ms(self) -> int:
        return self._now_ms

    def advance(self, now_ms: int) -> None:
        """Move to `now_ms`: events strictly before it become known. Raises ValueError if that is the past."""
        if now_ms < self._now_ms:
            raise ValueError(f"cannot go back from {self._now_ms} to {now_ms}")
        stop = int(np.searchsorted(self._events.ts_ms, now_ms, side="left"))
        new = slice(self._position, stop)
        self._counts.add(self._events.item_keys[new], self._events.action_masks[new], self._events.ts_ms[new])
        self._position, self._now_ms = stop, now_ms

    def user(self, user_key: int) -> UserState:
        """Return the member's state now; an unknown member has an empty one."""
        return UserState(self._users.get(user_key, {}), self._histories.history(user_key, self._now_ms))

    def seen(self, user_key: int) -> NDArray[np.int64]:
        """Return the distinct items the member has acted on."""
        return self._histories.seen(user_key, self._now_ms)

    def signals(self, keys: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return f64[n, S]: the keys' signals now."""
        return self._counts.at(keys, self._now_ms)

    def outcome(self, user_key: int, stop_ms: int) -> EventTable:
        """Return the member's events from now until `stop_ms`: labels, never features."""
        return self._histories.outcome(user_key, self._now_ms, stop_ms)
