from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.events import EventCursor, EventTable, HistoryBuilder
from models.data.items import ItemTable
from models.ranking.features import FeatureAssembler
from tests.models.world import DAY_MS, SCHEMA

HOUR_MS = 3_600_000
EVENT = st.tuples(st.integers(0, 3), st.integers(0, 5), st.sampled_from([1.0, 4.0, np.nan]), st.integers(0, 40))
ITEMS = ItemTable(SCHEMA)
ITEMS.upsert(np.arange(5), [{"genre": [str(key % 2)], "year": key, "released": key * DAY_MS} for key in range(5)])
ASSEMBLER = FeatureAssembler(SCHEMA, np.zeros(2), np.ones(2))


def table_of(events: list[tuple[int, int, float, int]]) -> EventTable:
    users, items, values, hours = [list(column) for column in zip(*events, strict=True)] if events else [[], [], [], []]
    return EventTable.from_columns(
        SCHEMA,
        user_keys=np.array(users, dtype=np.int64),
        item_keys=np.array(items, dtype=np.int64),
        types=["rating"] * len(events),
        values=np.array(values, dtype=np.float64),
        ts_ms=np.array(hours, dtype=np.int64) * HOUR_MS,
    )


def features_at(events: EventTable, now_ms: int) -> list[np.ndarray]:
    cursor = EventCursor(SCHEMA, events, {})
    cursor.advance(now_ms)
    keys = np.arange(6)
    found: list[np.ndarray] = [cursor.signals(keys)]
    for user_key in range(4):
        user = cursor.user(user_key)
        features = ASSEMBLER(
            user,
            ITEMS.gather(user.history.keys),
            ITEMS.gather(keys),
            cursor.signals(keys),
            np.zeros(6, dtype=np.float32),
            now_ms,
        )
        found += [user.history.keys, user.history.ts_ms, user.history.actions, cursor.seen(user_key)]
        found += [features.candidates, features.member]
    return found


@settings(max_examples=40)
@given(st.lists(EVENT, max_size=30), st.integers(0, 40), st.randoms(use_true_random=False))
def test_nothing_from_the_future_reaches_a_feature(
    events: list[tuple[int, int, float, int]], now: int, random: object
) -> None:
    past = [event for event in events if event[3] < now]
    future = [event for event in events if event[3] >= now]
    shuffled_times = [event[3] for event in future]
    random.shuffle(shuffled_times)  # type: ignore[attr-defined]
    shuffled = [(u, i, v, t) for (u, i, v, _), t in zip(future, shuffled_times, strict=True)]
    expected = features_at(table_of(past), now * HOUR_MS)
    for other in (past + future, past + shuffled, shuffled[::-1] + past):
        for mine, theirs in zip(expected, features_at(table_of(other), now * HOUR_MS), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-9)


@given(st.lists(EVENT, max_size=30), st.integers(0, 40), st.integers(1, 5))
def test_histories_match_a_filter(events: list[tuple[int, int, float, int]], now: int, length: int) -> None:
    table = table_of(events)
    builder = HistoryBuilder(table, length)
    for user in range(4):
        mine = (table.user_keys == user) & (table.ts_ms < now * HOUR_MS)
        history = builder.history(user, now * HOUR_MS)
        assert history.keys.tolist() == table.item_keys[mine][-length:].tolist()
        assert history.actions.tolist() == table.action_masks[mine][-length:].tolist()
        assert builder.seen(user, now * HOUR_MS).tolist() == sorted(set(table.item_keys[mine].tolist()))


def test_events_are_sorted_and_ties_keep_their_order() -> None:
    table = table_of([(0, 1, 5.0, 9), (0, 2, 5.0, 3), (0, 3, 5.0, 9)])
    assert table.item_keys.tolist() == [2, 1, 3]
    before, after = table.split(9 * HOUR_MS)
    assert (before.item_keys.tolist(), after.item_keys.tolist()) == ([2], [1, 3])
    assert len(table.between(4 * HOUR_MS, 9 * HOUR_MS)) == 0


def test_an_event_that_is_no_action_stays_out_of_histories() -> None:
    table = EventTable.from_columns(
        SCHEMA,
        user_keys=np.array([1, 1]),
        item_keys=np.array([5, 6]),
        types=["scroll", "rating"],
        values=None,
        ts_ms=np.array([0, 1]),
    )
    assert HistoryBuilder(table, 10).history(1, 5).keys.tolist() == [6]


def test_a_cursor_does_not_go_back() -> None:
    cursor = EventCursor(SCHEMA, table_of([(0, 1, 5.0, 1)]), {})
    cursor.advance(5)
    with pytest.raises(ValueError, match="cannot go back from 5 to 4"):
        cursor.advance(4)


def test_outcome_is_what_follows() -> None:
    cursor = EventCursor(SCHEMA, table_of([(0, 1, 5.0, 1), (0, 2, 5.0, 2), (0, 3, 5.0, 3), (1, 4, 5.0, 2)]), {})
    cursor.advance(2 * HOUR_MS)
    assert cursor.outcome(0, 3 * HOUR_MS).item_keys.tolist() == [2]


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="lengths"):
        EventTable.from_columns(
            SCHEMA,
            user_keys=np.array([1]),
            item_keys=np.array([1, 2]),
            types=["rating"],
            values=None,
            ts_ms=np.array([0]),
        )
