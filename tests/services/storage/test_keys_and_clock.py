from __future__ import annotations

import time

import numpy as np
import pytest
import xxhash

from services.clock import Clock, system_ms
from services.keys import key_of, keys_of, pack_key, unpack_key


def test_keys_are_the_signed_hash() -> None:
    ids = ["a", "ü", "x" * 1000, *(f"item {n}" for n in range(100))]
    keys = keys_of(ids)
    assert keys.dtype == np.int64
    assert keys.tolist() == [key_of(identifier) for identifier in ids]
    assert [key % 2**64 for key in keys.tolist()] == [xxhash.xxh3_64_intdigest(i.encode()) for i in ids]
    assert (keys < 0).any() and (keys > 0).any()
    assert [unpack_key(pack_key(key)) for key in keys.tolist()] == keys.tolist()
    assert np.frombuffer(pack_key(key_of("a")), dtype="<i8")[0] == key_of("a")
    assert keys_of([]).shape == (0,)


def test_unusable_ids() -> None:
    with pytest.raises(ValueError, match="empty"):
        key_of("")
    with pytest.raises(ValueError, match="surrogates"):
        key_of("\ud800")


def test_a_clock_runs_at_a_distance_from_the_machines() -> None:
    assert abs(system_ms() - time.time() * 1000) < 1000
    now = [1_000]
    clock = Clock.starting_at(50, source=lambda: now[0])
    assert (clock.now_ms(), clock.offset_ms) == (50, -950)
    now[0] += 7
    assert (clock.now_ms(), clock.arrival_ms()) == (57, 1_007)
    assert Clock(clock.offset_ms, source=lambda: now[0]).now_ms() == 57
    assert abs(Clock().now_ms() - system_ms()) < 1000
