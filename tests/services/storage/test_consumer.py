from __future__ import annotations

import threading
import time
import uuid

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.clock import Clock
from services.keys import key_of
from services.storage import ImportMark, KeyCollision, Storage, StreamMark, event_table

from .conftest import OpenStorage
from .world import DAY_MS, HOUR_MS, NOW_MS, SCHEMA, Oracle, event, random_events


def test_hydrate_of_the_unknown_and_of_the_known(storage: Storage) -> None:
    nobody = storage.state.hydrate("u")
    assert not nobody.known and nobody.profile == {} and len(nobody.history) == 0 and len(nobody.seen) == 0
    storage.users.put("u", {"age": 7})
    storage.events.append([event(1, item="a", ts_ms=5), event(2, item="b", ts_ms=3, type="click", value=None)])
    storage.consumer(SCHEMA).step()
    member = storage.state.hydrate("u")
    assert member.known and member.profile == {"age": 7}
    assert member.history.keys.tolist() == [key_of("b"), key_of("a")]
    assert member.history.actions.tolist() == [4, 3]
    assert np.isnan(member.history.values[0]) and member.history.values[1] == 5
    assert member.history.ts_ms.tolist() == [3, 5]
    assert member.seen.tolist() == sorted([key_of("a"), key_of("b")])
    assert member.state.history is member.history


def test_state_equals_the_oracle(open_storage: OpenStorage) -> None:
    storage = open_storage(Clock(source=lambda: NOW_MS))
    events = random_events(700, seed=1)
    storage.events.append(events)
    consumer, oracle = storage.consumer(SCHEMA), Oracle()
    for start in range(0, 700, 150):
        assert consumer.step(count=150) == min(150, 700 - start)
        oracle.apply(events[start : start + 150])
    assert consumer.step() == 0
    oracle.check(storage, NOW_MS)
    oracle.check(storage, NOW_MS + DAY_MS)
    assert consumer.offset == storage.streams.last_offset("events")
    assert storage.streams.offset_of("events", "state") == consumer.offset
    assert consumer.lag_ms() == 0


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.lists(st.integers(1, 60), min_size=1, max_size=4))
def test_any_cut_into_batches_and_any_repetition(embedded_owner: Storage, seed: int, sizes: list[int]) -> None:
    with Storage.open(
        data_dir=embedded_owner.data_dir,
        dataset_key=uuid.uuid4().hex,
        role="test",
        clock=Clock(source=lambda: NOW_MS),
    ) as storage:
        events = random_events(sum(sizes), seed, span_ms=900 * HOUR_MS)
        consumer, oracle = storage.consumer(SCHEMA), Oracle()
        after, start = "0-0", 0
        for size in sizes:
            batch = events[start : start + size]
            mark = StreamMark(after, f"{start + 1}-0")
            assert consumer.apply(event_table(SCHEMA, batch), mark)
            assert not consumer.apply(event_table(SCHEMA, batch), mark)
            oracle.apply(batch)
            after, start = mark.last, start + size
        oracle.check(storage, NOW_MS)


def test_popularity_decays(open_storage: OpenStorage) -> None:
    storage = open_storage(Clock(source=lambda: NOW_MS))
    storage.events.append([event(1, item="a"), event(2, item="a"), event(3, item="b")])
    storage.consumer(SCHEMA).step()
    signal = SCHEMA.signals[0]
    for hours, expected in ((0, [2.0, 1.0]), (1, [1.0, 0.5]), (3, [0.25, 0.125])):
        top = storage.popularity.top(signal, 5, NOW_MS + hours * HOUR_MS)
        assert top.keys.tolist() == [key_of("a"), key_of("b")]
        np.testing.assert_allclose(top.values, expected)
    assert len(storage.popularity.top(signal, 1, NOW_MS).keys) == 1
    assert storage.popularity.size(signal) == 2
    assert storage.popularity.values((), [1], NOW_MS).shape == (1, 0)
    with pytest.raises(ValueError, match="k is 0"):
        storage.popularity.top(signal, 0, NOW_MS)


def test_moving_the_landmark_keeps_the_values(open_storage: OpenStorage) -> None:
    now = [NOW_MS]
    storage = open_storage(Clock(source=lambda: now[0]))
    consumer, oracle = storage.consumer(SCHEMA), Oracle()
    landmarks = set()
    for step in range(12):  # 200 half lives of the shortest signal each
        batch = [
            event(100 * step + n, item=f"i{n % 5}", ts_ms=now[0] - n * 1000, type=kind)
            for n, kind in enumerate(["rating", "click"] * 10)
        ]
        storage.events.append(batch)
        consumer.step()
        oracle.apply(batch)
        oracle.check(storage, now[0])
        landmarks.add(storage.client.call("HGET", storage.names.state, "landmark_ms"))
        now[0] += 200 * HOUR_MS
    assert len(landmarks) > 3


def test_an_event_from_the_far_future_does_not_wipe_out_the_others(open_storage: OpenStorage) -> None:
    storage = open_storage(Clock(source=lambda: NOW_MS))
    consumer = storage.consumer(SCHEMA)
    storage.events.append([event(1, item="a", ts_ms=NOW_MS + 50 * 365 * DAY_MS)])
    consumer.step()
    storage.events.append([event(n, item="b") for n in range(2, 5)])
    consumer.step()
    assert consumer.num_clamped == 1
    values = storage.popularity.values(SCHEMA.signals, [key_of("b")], NOW_MS)
    np.testing.assert_allclose(values[0], [3, 3, 0])


def test_events_that_are_no_action_only_move_the_offset(storage: Storage) -> None:
    storage.events.append([event(1, type="impression")])
    consumer = storage.consumer(SCHEMA)
    assert consumer.step() == 1
    assert consumer.offset == storage.streams.last_offset("events")
    assert len(storage.state.hydrate("u").history) == 0


def test_imports_resume_where_they_were(open_storage: OpenStorage) -> None:
    storage = open_storage(Clock(source=lambda: NOW_MS))
    consumer, oracle = storage.consumer(SCHEMA), Oracle()
    events = random_events(300, seed=3)
    batches = [events[:100], events[100:200], events[200:]]
    assert consumer.import_progress("first") == -1
    for number, batch in enumerate(batches[:2]):
        assert consumer.apply(event_table(SCHEMA, batch), ImportMark("first", number))
        oracle.apply(batch)
    with pytest.raises(ValueError, match="expected 2"):
        consumer.apply(event_table(SCHEMA, batches[2]), ImportMark("first", 3))
    assert consumer.import_progress("first") == 1
    for number, batch in enumerate(batches):  # the whole import again, after a crash
        assert consumer.apply(event_table(SCHEMA, batch), ImportMark("first", number)) == (number == 2)
    oracle.apply(batches[2])
    live = event(1_000, user="u1", item="i1")
    storage.events.append([live])
    assert consumer.step() == 1
    oracle.apply([live])
    oracle.check(storage, NOW_MS)
    consumer.forget_import("first")
    assert consumer.import_progress("first") == -1


def test_two_consumers_by_mistake_count_nothing_twice(open_storage: OpenStorage) -> None:
    storage = open_storage(Clock(source=lambda: NOW_MS))
    events = random_events(600, seed=4)
    storage.events.append(events)
    consumers = [storage.consumer(SCHEMA) for _ in range(3)]

    def consume(number: int) -> None:
        while consumers[number].offset != storage.streams.last_offset("events"):
            consumers[number].step(count=50)

    threads = [threading.Thread(target=consume, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    oracle = Oracle()
    for start in range(0, 600, 50):
        oracle.apply(events[start : start + 50])
    oracle.check(storage, NOW_MS)
    assert sum(consumer.num_events for consumer in consumers) == 600


def test_run_follows_the_stream_until_told_to_stop(storage: Storage) -> None:
    consumer, stop = storage.consumer(SCHEMA), threading.Event()
    thread = threading.Thread(target=consumer.run, args=(stop, 50))
    thread.start()
    storage.events.append([event(1)])
    deadline = time.monotonic() + 5
    while len(storage.state.hydrate("u").history) == 0:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    stop.set()
    thread.join(5)
    assert not thread.is_alive()


def test_a_profile_under_another_id_of_the_same_key_is_not_handed_out(
    embedded: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.storage.documents.key_of", lambda identifier: 42)
    monkeypatch.setattr("services.storage.state.key_of", lambda identifier: 42)
    embedded.users.put("a", {"secret": 1})
    with pytest.raises(KeyCollision):
        embedded.state.hydrate("b")
