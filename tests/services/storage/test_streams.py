from __future__ import annotations

import threading
import time

import pytest

from services.storage import START, OffsetLost, Storage, offset_tuple

from .world import event


def test_offsets_order() -> None:
    assert offset_tuple("9-10") > offset_tuple("9-9") > offset_tuple("8-99")
    for wrong in ("", "5", "a-b", "5-", "-5", "5-5-5"):
        with pytest.raises(ValueError, match="offset"):
            offset_tuple(wrong)


def test_an_empty_stream(storage: Storage) -> None:
    assert storage.streams.last_offset("items") == START
    assert storage.streams.first_offset("items") is None
    assert storage.streams.length("items") == 0
    assert storage.streams.read("items") == []
    assert storage.streams.trim("items", "5-0") == 0


def test_a_waiting_read_returns_as_soon_as_there_is_something(storage: Storage) -> None:
    writer = threading.Timer(0.1, lambda: storage.items.put("a", {}))
    writer.start()
    started = time.monotonic()
    assert len(storage.items.changes(block_ms=5_000)) == 1
    assert time.monotonic() - started < 3
    writer.join()
    started = time.monotonic()
    assert storage.items.changes(after=storage.streams.last_offset("items"), block_ms=60) == []
    assert 0.05 < time.monotonic() - started < 3


def test_a_consumer_that_comes_too_late_is_told(storage: Storage) -> None:
    offsets = [str(append.offset) for append in storage.events.append([event(n) for n in range(5)])]
    storage.streams.register("events", "early", offsets[3])
    storage.streams.trim("events", offsets[4])
    assert storage.streams.register("events", "just in time", offsets[2]) == offsets[2]
    with pytest.raises(OffsetLost, match=f"'late'.*{offsets[1]}.*{offsets[2]}"):
        storage.streams.register("events", "late", offsets[1])
    assert set(storage.streams.offsets("events")) == {"early", "just in time"}


def test_trimming_stops_at_the_slowest_consumer(storage: Storage) -> None:
    offsets = [str(append.offset) for append in storage.events.append([event(n) for n in range(10)])]
    assert storage.streams.register("events", "slow") == START
    assert storage.streams.register("events", "fast", offsets[8]) == offsets[8]
    assert storage.streams.register("events", "fast") == offsets[8]
    assert storage.streams.trim("events", offsets[9]) == 0
    storage.streams.advance("events", "slow", offsets[3])
    assert storage.streams.trim("events", offsets[1]) == 1
    assert storage.streams.trim("events", offsets[9]) == 2
    assert storage.streams.first_offset("events") == offsets[3]
    assert storage.streams.offsets("events") == {"slow": offsets[3], "fast": offsets[8]}
    storage.streams.unregister("events", "slow")
    assert storage.streams.offset_of("events", "slow") is None
    assert storage.streams.trim("events", offsets[9]) == 5
    storage.streams.unregister("events", "fast")
    assert storage.streams.trim("events", "99999999999999-0") == 2
    assert storage.streams.last_offset("events") == offsets[9]
    assert storage.streams.length("events") == 0
