"""A small dataset description, events, and the state they must lead to, worked out the slow way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from models.data.schema import Action, FeatureSchema, Signal
from models.data.signals import DecayedCounts
from services.keys import key_of
from services.storage import Event, Storage
from services.storage.state import Hydrated

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
NOW_MS = 1_750_000_000_000

SCHEMA = FeatureSchema(
    item=(),
    user=(),
    actions=(Action("watch", "rating"), Action("like", "rating", 4.0), Action("click", "click")),
    signals=(
        Signal("like.1h", "like", HOUR_MS),
        Signal("watch.7d", "watch", 7 * DAY_MS),
        Signal("click.all", "click", None),
    ),
    positive="like",
    tasks=("watch", "like"),
    history_length=10,
)


def event(number: int, *, user: str = "u", item: str = "i", ts_ms: int = NOW_MS, **fields: object) -> Event:
    merged: dict[str, object] = {"type": "rating", "value": 5.0, **fields}
    return Event(event_id=f"e{number}", user_id=user, item_id=item, ts_ms=ts_ms, **merged)  # type: ignore[arg-type]


def random_events(count: int, seed: int, span_ms: int = 30 * DAY_MS, until_ms: int = NOW_MS) -> list[Event]:
    """Return events of few members and items, out of order and with equal times among them."""
    rng = np.random.default_rng(seed)
    kinds = [("rating", 5.0), ("rating", 4.0), ("rating", 2.0), ("click", None), ("impression", None)]
    events = []
    for number in range(count):
        kind, value = kinds[int(rng.integers(len(kinds)))]
        ts_ms = until_ms - int(rng.integers(span_ms // HOUR_MS)) * HOUR_MS
        user, item = f"u{rng.integers(7)}", f"i{rng.integers(25)}"
        events.append(event(number, user=user, item=item, ts_ms=ts_ms, type=kind, value=value))
    return events


@dataclass
class Oracle:
    """State by definition: each batch in order of time, batches in order of arrival."""

    schema: FeatureSchema = SCHEMA
    entries: dict[str, list[tuple[int, int, int, int, float]]] = field(default_factory=dict)
    seen: dict[str, set[int]] = field(default_factory=dict)
    sequence: int = 0

    def __post_init__(self) -> None:
        self.counts = DecayedCounts(self.schema.signals)

    def apply(self, batch: Sequence[Event]) -> None:
        for e in sorted(batch, key=lambda e: e.ts_ms):
            value = np.nan if e.value is None else e.value
            mask = int(self.schema.action_masks([e.type], np.array([value]))[0])
            if not mask:
                continue
            key = key_of(e.item_id)
            self.entries.setdefault(e.user_id, []).append((e.ts_ms, self.sequence, key, mask, value))
            self.seen.setdefault(e.user_id, set()).add(key)
            self.counts.add(np.array([key]), np.array([mask], dtype=np.uint32), np.array([e.ts_ms]))
            self.sequence += 1

    def check_user(self, hydrated: Hydrated) -> None:
        entries = sorted(self.entries.get(hydrated.user_id, []))[-self.schema.history_length :]
        history = hydrated.history
        assert history.ts_ms.tolist() == [entry[0] for entry in entries]
        assert history.keys.tolist() == [entry[2] for entry in entries]
        assert history.actions.tolist() == [entry[3] for entry in entries]
        np.testing.assert_array_equal(history.values, np.array([e[4] for e in entries], dtype=np.float32))
        assert hydrated.seen.tolist() == sorted(self.seen.get(hydrated.user_id, set()))

    def check(self, storage: Storage, now_ms: int) -> None:
        """Compare every member's and every item's state."""
        for hydrated in storage.state.hydrate_many(sorted(self.entries)):
            self.check_user(hydrated)
        keys = self.counts.keys()
        expected = self.counts.at(keys, now_ms)
        actual = storage.popularity.values(self.schema.signals, keys, now_ms)
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)
        for column, signal in enumerate(self.schema.signals):
            top = storage.popularity.top(signal, 5, now_ms)
            best = np.sort(expected[:, column])[::-1][: len(top.keys)]
            np.testing.assert_allclose(top.values, best, rtol=1e-9, atol=1e-9)
