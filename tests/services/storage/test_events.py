from __future__ import annotations

import numpy as np
import pytest

from services.clock import Clock
from services.storage import Event, Storage, event_table

from .conftest import OpenStorage
from .world import DAY_MS, NOW_MS, SCHEMA, event


def test_append_and_read_back(storage: Storage) -> None:
    full = Event(
        event_id="é",
        user_id="u",
        item_id="i",
        type="click",
        ts_ms=NOW_MS,
        value=0.1,
        recommendation_id="r",
        position=3,
        propensity=0.25,
    )
    events = [full, event(1), event(2, value=None)]
    appends = storage.events.append(events)
    logged = storage.events.read()
    assert [entry.event for entry in logged] == events
    assert [entry.offset for entry in logged] == [append.offset for append in appends]
    assert storage.events.read(after=logged[0].offset, count=1) == logged[1:2]
    assert storage.events.between(logged[1].offset, logged[2].offset) == logged[1:]
    assert storage.events.append([]) == []


def test_repetitions_are_reported_and_change_nothing(storage: Storage) -> None:
    first = storage.events.append([event(1), event(2), event(1, item="other")])
    assert [append.duplicate for append in first] == [False, False, True]
    again = storage.events.append([event(2), event(3)])
    assert [(a.event_id, a.duplicate) for a in again] == [("e2", True), ("e3", False)]
    assert [entry.event.event_id for entry in storage.events.read()] == ["e1", "e2", "e3"]


def test_more_events_than_one_script_takes(storage: Storage) -> None:
    events = [event(number) for number in range(1_203)]
    assert not any(append.duplicate for append in storage.events.append(events))
    assert all(append.duplicate for append in storage.events.append(events))
    assert [entry.event.event_id for entry in storage.events.read(count=2_000)] == [e.event_id for e in events]


def test_event_ids_are_remembered_for_a_window_across_clocks(open_storage: OpenStorage) -> None:
    now = [NOW_MS - NOW_MS % (7 * DAY_MS) + 7 * DAY_MS - 1]  # the last ms of a period
    storage = open_storage(Clock(source=lambda: now[0]))
    storage.events.append([event(1)])
    now[0] += 2
    storage.events.append([event(2)])
    now[0] -= 2  # a process whose clock is behind
    assert storage.events.append([event(2)])[0].duplicate
    now[0] += 7 * DAY_MS
    assert storage.events.append([event(1)])[0].duplicate
    now[0] += 7 * DAY_MS
    assert not storage.events.append([event(1)])[0].duplicate


def test_ids_expire(storage: Storage) -> None:
    storage.events.append([event(1)])
    names = storage.client.call("KEYS", "*" + storage.names.dataset_key + "*event-ids*")
    assert len(names) == 1 and 0 < storage.client.call("PTTL", names[0]) <= 21 * DAY_MS


@pytest.mark.parametrize(
    ("field", "value"), [("event_id", ""), ("user_id", ""), ("item_id", ""), ("type", ""), ("value", float("nan"))]
)
def test_unusable_events_are_refused(field: str, value: object) -> None:
    fields = {"event_id": "e", "user_id": "u", "item_id": "i", "type": "t", "ts_ms": 1, field: value}
    with pytest.raises(ValueError, match=field):
        Event(**fields)  # type: ignore[arg-type]


def test_event_table_is_in_order_of_time() -> None:
    table = event_table(SCHEMA, [event(1, ts_ms=5), event(2, ts_ms=3, type="click", value=None), event(3, ts_ms=5)])
    assert table.ts_ms.tolist() == [3, 5, 5]
    assert table.action_masks.tolist() == [4, 3, 3]
    assert np.isnan(table.values[0])
