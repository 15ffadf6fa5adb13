"""The work beside readers and writers: done ahead of need, by a thread that ends with its index."""

import gc
import threading
import time
import weakref

import numpy as np
import pytest

import index.state as state
import index.upkeep as upkeep
from index.attributes import Attribute, AttributeSchema
from index.bits import clear_bits, list_bits, set_bits
from index.live import IndexConfig, LiveIndex
from index.rows import RowArrays

SCHEMA = AttributeSchema((Attribute("name", "keyword"), Attribute("tags", "keyword_list"), Attribute("year", "int")))
DIM = 4


def upsert(index, keys, turn=0):
    keys = np.asarray(keys)
    vectors = np.stack([keys, keys * 0 + turn, keys % 7, keys * 0 + 1], 1)
    index.upsert(
        keys, vectors, [{"name": f"n{key % 5}", "tags": ["a", f"t{key % 9}"], "year": key} for key in keys.tolist()]
    )


def until(holds, seconds=30.0):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_writers_find_the_room_made(monkeypatch):
    """Growth, past the reserved memory too, happens before a writer needs it."""
    monkeypatch.setattr("index.rows.MIN_ROOM_ROWS", 256)
    monkeypatch.setattr(RowArrays, "grow", lambda *_: pytest.fail("a writer had to grow the index"))
    index = LiveIndex(IndexConfig(dim=DIM, schema=SCHEMA, signals=("n",), capacity=64))
    for first in range(0, 6000, 10):
        upsert(index, np.arange(first, first + 10))
        index.add_signals([first], [[1.0]])
        until(lambda: not index._upkeep.is_due)
    assert index._state.arrays.room_rows > 6000 and index._state.arrays.has_mean
    assert index.keys().tolist() == list(range(6000))
    assert (index.vectors(np.arange(6000))[0][:, 0] == np.arange(6000)).all()
    assert index.signals(np.arange(6000))[:, 0].sum() == 600
    assert index.attributes([77]) == [{"name": "n2", "tags": ["a", "t5"], "year": 77}]


def test_what_is_written_during_a_replacement_is_in_it(monkeypatch):
    """Upserts, deletes and signals between copying and showing, at every block."""
    monkeypatch.setattr("index.rows.MIN_ROOM_ROWS", 64)
    monkeypatch.setattr("index.rows.ROOM_SHARE", 1)
    monkeypatch.setattr("index.rows.BLOCK_ROWS", 64)
    index = LiveIndex(IndexConfig(dim=DIM, schema=SCHEMA, signals=("n",), capacity=320))
    index.close()
    upsert(index, np.arange(250))
    copy_rows, turn = RowArrays.copy_rows, [0]

    def copy_and_write(self, source, rows):
        copy_rows(self, source, rows)
        if turn[0] < 5 and rows.size > upkeep.CATCH_UP_ROWS:  # the last few are copied while writers wait
            turn[0] += 1
            upsert(index, np.arange(turn[0] * 10, turn[0] * 10 + 8), turn[0])
            index.delete([200 + turn[0]])
            index.add_signals([3, 120], [[1.0], [2.0]])

    monkeypatch.setattr(RowArrays, "copy_rows", copy_and_write)
    monkeypatch.setattr(upkeep, "CATCH_UP_ROWS", 2)
    index.maintain()
    assert turn[0] == 5 and index._state.arrays.room_rows > 320
    expected = [key for key in range(250) if not 201 <= key <= 205]
    assert index.keys().tolist() == expected
    vectors, _ = index.vectors(np.arange(60))
    turns = [key // 10 if 10 <= key < 60 and key % 10 < 8 else 0 for key in range(60)]
    assert vectors[:, 1].tolist() == turns
    assert index.signals([3, 120])[:, 0].tolist() == [5.0, 10.0]
    hits = index.search(np.eye(DIM)[0], 300)
    assert hits.keys[0][: len(expected)].tolist() == expected[::-1]


def test_a_larger_key_map_follows_its_writer(monkeypatch):
    monkeypatch.setattr("index.key_map.MIN_AHEAD_SLOTS", 64)
    index = LiveIndex(IndexConfig(dim=DIM, schema=SCHEMA, capacity=4096))
    index.close()
    for first in range(0, 1700, 100):
        upsert(index, np.arange(first, first + 100))
    assert index._state.row_of.is_nearly_full
    fill = state.KeyMap.fill

    def fill_and_write(self, key_N):
        fill(self, key_N)
        index.delete(np.arange(0, 300))
        upsert(index, np.arange(200, 500), 1)
        upsert(index, np.arange(5000, 5100), 1)

    monkeypatch.setattr(state.KeyMap, "fill", fill_and_write)
    assert index._upkeep._enlarge_keys()
    there = [*range(200, 1700), *range(5000, 5100)]
    assert index.num_items == len(there)
    keys = np.arange(6000)
    assert index.vectors(keys)[1].nonzero()[0].tolist() == there
    assert index.vectors(there)[0][:, 0].tolist() == there


def test_the_thread_does_not_keep_its_index():
    index = LiveIndex(IndexConfig(dim=DIM, schema=SCHEMA, capacity=64))
    upsert(index, np.arange(60))
    thread, watched = index._background._thread, weakref.ref(index._state)
    assert thread.is_alive()
    del index
    gc.collect()
    thread.join(10)
    assert not thread.is_alive() and watched() is None


def test_a_closed_index_goes_on_working():
    index = LiveIndex(IndexConfig(dim=DIM, schema=SCHEMA, capacity=64))
    upsert(index, np.arange(60))
    index.close()
    index.close()
    upsert(index, np.arange(60, 9000))
    index.delete(np.arange(0, 4000))
    assert index._background._thread is None or not index._background._thread.is_alive()
    assert index.keys().tolist() == list(range(4000, 9000))
    index.maintain()
    assert index._state.num_rows <= 5000 / 0.8 + upkeep.COMPACT_ROWS
    assert index.keys().tolist() == list(range(4000, 9000))


def test_one_thread_for_many_writers():
    index = LiveIndex(IndexConfig(dim=DIM, schema=SCHEMA, capacity=64))
    threads = [threading.Thread(target=upsert, args=(index, np.arange(n, n + 50))) for n in range(0, 400, 50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: not index._upkeep.is_due)
    assert index.keys().tolist() == list(range(400))


def test_rows_are_listed_while_a_writer_sets_others():
    """The upkeep lists rows without holding writers off; numpy's `nonzero` refuses an array that changes meanwhile."""
    words = np.zeros(1 << 16, np.uint64)
    words[::2] = 1
    done = threading.Event()

    def write():
        rng = np.random.default_rng(0)
        while not done.is_set():
            rows = rng.integers(0, words.size // 2, 2000) * 128 + 64  # of the words between
            set_bits(words, rows)
            clear_bits(words, rows)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            rows = list_bits(words)
            assert (rows[rows % 128 == 0] == np.arange(0, words.size * 64, 128)).all()
    finally:
        done.set()
        writer.join()
