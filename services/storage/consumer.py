"""Turns events into state: histories, seen items, popularity; each event exactly once, whatever is killed when.

A batch's changes and the mark that says "taken in" are one transaction, begun only if nobody has moved the mark
since it was read. So a crash leaves a batch applied with its mark or not at all, and two consumers by mistake
never count an event twice.
"""

# n = events, S = signals

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.data.events import EventTable
from models.data.schema import FeatureSchema
from models.data.signals import decay_factors, forward_increments, next_landmark
from services.clock import Clock
from services.keys import pack_key
from services.storage.client import Client, Command
from services.storage.errors import StorageUnavailable
from services.storage.events import EventLog, event_table
from services.storage.names import Names
from services.storage.state import HISTORY_ENTRY, stored_sums
from services.storage.streams import START, Streams, offset_tuple

logger = logging.getLogger(__name__)

CONSUMER = "state"
BATCH_EVENTS = 1_000

MAX_AHEAD_MS = 86_400_000
"""An event's time counts towards popularity as at most this far past now: one wrong clock at a client must not
move the landmark so far ahead that everyone else's events vanish beside it."""

MIN_SUM = 1e-12
"""When the landmark moves, items whose decayed count at that moment is below this are forgotten."""


@dataclass(frozen=True, slots=True)
class StreamMark:
    """The batch comes from the events stream: after `after`, up to `last`."""

    after: str
    last: str


@dataclass(frozen=True, slots=True)
class ImportMark:
    """The batch is number `batch` (0, 1, ...) of a bulk import. An import started again skips what is in."""

    import_id: str
    batch: int

    @property
    def field(self) -> str:
        return f"import:{self.import_id}"


class StateConsumer:
    """Applies events to the state. One at a time is enough; several do no harm."""

    def __init__(
        self, client: Client, names: Names, streams: Streams, events: EventLog, clock: Clock, schema: FeatureSchema
    ) -> None:
        self._client = client
        self._names = names
        self._streams = streams
        self._events = events
        self._clock = clock
        self._schema = schema
        self._registered = False
        self.num_events = 0
        """Events this object has applied."""
        self.num_clamped = 0
        """Of those, events whose time lay too far ahead of now to be believed."""

    @property
    def offset(self) -> str:
        """Offset of the last event in the state."""
        reply = self._client.call("HGET", self._names.state, "offset")
        return START if reply is None else str(reply.decode())

    def lag_ms(self) -> int:
        """Return by how much the newest event in the state is older than the newest event, by time of arrival."""
        newest_ms, _ = offset_tuple(self._streams.last_offset("events"))
        applied_ms, _ = offset_tuple(self.offset)
        first = self._streams.first_offset("events") if not applied_ms else None
        return newest_ms - (offset_tuple(first)[0] if first else applied_ms)

    def step(self, count: int = BATCH_EVENTS, block_ms: int | None = None) -> int:
        """Apply up to `count` events; wait up to `block_ms` while there are none. Returns how many were applied."""
        if not self._registered:
            self._streams.register("events", CONSUMER)
            self._registered = True
        after = self.offset
        logged = self._events.read(after, count, block_ms)
        if not logged:
            return 0
        table = event_table(self._schema, [entry.event for entry in logged])
        return len(logged) if self.apply(table, StreamMark(after, logged[-1].offset)) else 0

    def run(self, stop: threading.Event, block_ms: int = 1_000) -> None:
        """Apply events as they come until `stop` is set; wait while the server is away."""
        while not stop.is_set():
            try:
                self.step(block_ms=block_ms)
            except StorageUnavailable as error:
                logger.warning("the state consumer waits: %s", error)
                stop.wait(0.5)

    def import_progress(self, import_id: str) -> int:
        """Return the number of the import's last applied batch, -1 before the first."""
        reply = self._client.call("HGET", self._names.state, f"import:{import_id}")
        return -1 if reply is None else int(reply)

    def forget_import(self, import_id: str) -> None:
        """Drop the mark of an import that has ended, so that the same import may be applied again."""
        self._client.call("HDEL", self._names.state, f"import:{import_id}")

    def apply(self, events: EventTable, mark: StreamMark | ImportMark) -> bool:
        """Apply one batch and its mark as one transaction. Returns False, and changes nothing, if it is in already.

        Raises ValueError for an import batch that skips a number.
        """
        acted = events.take(events.action_masks != 0)
        item_keys, rows = np.unique(acted.item_keys, return_inverse=True)
        packed_items = [pack_key(key) for key in item_keys.tolist()]
        while True:
            with self._client.watching(self._names.state) as watch:
                fields = ("landmark_ms", "sequence", "offset" if isinstance(mark, StreamMark) else mark.field)
                reads: list[Command] = [("HMGET", self._names.state, *fields)]
                if packed_items:
                    reads += [("ZMSCORE", name, *packed_items) for name in self._popularity_names()]
                (landmark, sequence, current), *columns = watch.read(reads)
                if not _is_next(mark, None if current is None else current.decode()):
                    return False
                first = int(sequence or 0)
                commands = self._history_commands(acted, first)
                if packed_items:
                    sums = stored_sums(columns).reshape(len(packed_items), len(self._schema.signals))
                    stored_ms = None if landmark is None else int(landmark)
                    commands += self._popularity_commands(acted, rows, packed_items, sums, stored_ms)
                commands += self._mark_commands(mark, first + len(acted))
                if watch.commit(commands):
                    self.num_events += len(events)
                    return True

    def _popularity_names(self) -> list[str]:
        return [self._names.popularity(signal.name) for signal in self._schema.signals]

    def _history_commands(self, acted: EventTable, first: int) -> list[Command]:
        entries = np.empty(len(acted), dtype=HISTORY_ENTRY)
        entries["sequence"] = first + np.arange(len(acted))
        entries["key"] = acted.item_keys
        entries["actions"] = acted.action_masks
        entries["value"] = acted.values
        entries["ts_ms"] = acted.ts_ms
        order = np.argsort(acted.user_keys, kind="stable")
        users, starts = np.unique(acted.user_keys[order], return_index=True)
        bounds = [*starts.tolist(), len(acted)]
        size = HISTORY_ENTRY.itemsize
        packed = entries[order].tobytes()
        times = acted.ts_ms[order].tolist()
        items = acted.item_keys[order].astype("<i8").tobytes()
        commands: list[Command] = []
        for user, start, stop in zip(users.tolist(), bounds[:-1], bounds[1:], strict=True):
            name = self._names.history(user)
            scored: list[bytes | int] = []
            for row in range(max(start, stop - self._schema.history_length), stop):
                scored += [times[row], packed[row * size : (row + 1) * size]]
            commands.append(("ZADD", name, *scored))
            commands.append(("ZREMRANGEBYRANK", name, 0, -self._schema.history_length - 1))
            commands.append(("SADD", self._names.seen(user), *{items[8 * r : 8 * r + 8] for r in range(start, stop)}))
        return commands

    def _popularity_commands(
        self,
        acted: EventTable,
        rows: NDArray[np.int64],
        packed_items: Sequence[bytes],
        sums: NDArray[np.float64],
        landmark_ms: int | None,
    ) -> list[Command]:
        """sums: f64[items, S], stored against `landmark_ms` (None before the first event)."""
        signals = self._schema.signals
        latest_ms = self._clock.now_ms() + MAX_AHEAD_MS
        ts_ms = np.minimum(acted.ts_ms, latest_ms)
        self.num_clamped += int(np.count_nonzero(acted.ts_ms > latest_ms))
        newest_ms = int(ts_ms.max())
        commands: list[Command] = []
        if landmark_ms is None:
            landmark_ms = newest_ms
        moved_ms = next_landmark(signals, landmark_ms, newest_ms)
        if moved_ms != landmark_ms:
            factors = decay_factors(signals, landmark_ms, moved_ms)
            sums = sums * factors
            for name, factor in zip(self._popularity_names(), factors.tolist(), strict=True):
                if factor != 1.0:
                    commands.append(("ZUNIONSTORE", name, 1, name, "WEIGHTS", factor))
                    commands.append(("ZREMRANGEBYSCORE", name, "-inf", f"({MIN_SUM}"))
        increments = forward_increments(signals, acted.action_masks, ts_ms, moved_ms)
        sums = sums.copy()
        np.add.at(sums, rows, increments)
        for column, name in enumerate(self._popularity_names()):
            changed = np.unique(rows[increments[:, column] > 0])
            if len(changed):
                scored: list[bytes | float] = []
                for row, value in zip(changed.tolist(), sums[changed, column].tolist(), strict=True):
                    scored += [value, packed_items[row]]
                commands.append(("ZADD", name, *scored))
        commands.append(("HSET", self._names.state, "landmark_ms", moved_ms))
        return commands

    def _mark_commands(self, mark: StreamMark | ImportMark, sequence: int) -> list[Command]:
        if isinstance(mark, ImportMark):
            return [("HSET", self._names.state, "sequence", sequence, mark.field, mark.batch)]
        return [
            ("HSET", self._names.state, "sequence", sequence, "offset", mark.last),
            ("HSET", self._names.offsets("events"), CONSUMER, mark.last),
        ]


def _is_next(mark: StreamMark | ImportMark, current: str | None) -> bool:
    if isinstance(mark, StreamMark):
        return (current or START) == mark.after
    done = -1 if current is None else int(current)
    if mark.batch > done + 1:
        raise ValueError(f"import {mark.import_id!r}: batch {mark.batch} after {done}; expected {done + 1}")
    return mark.batch == done + 1
