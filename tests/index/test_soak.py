"""A long run of writes beside searches with checksummed vectors: growth, deletes, compaction, snapshots, flat memory.

SHORTLIST_SOAK_SECONDS sets the length of the slow run; the short one makes the same checks with fewer rounds.
"""

import os
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import index.upkeep as upkeep
from index.filter import parse_filter
from index.live import IndexConfig, LiveIndex
from tests.index.test_concurrency import DIM, SCHEMA, Readers, attributes_of, checksummed

NUM_KEYS = 20_000


def resident_bytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def run(seconds, folder):
    index = LiveIndex(IndexConfig(dim=DIM, schema=SCHEMA, signals=("n",), capacity=64, keep_snapshots=2))
    steady = np.arange(NUM_KEYS, NUM_KEYS + 500)  # always there, replaced now and then
    index.upsert(steady, checksummed(steady, np.zeros(500)), attributes_of(steady, [0] * 500))
    every = np.arange(NUM_KEYS + 500)
    alive, version = np.zeros(every.size, np.bool_), np.zeros(every.size, np.int64)
    alive[steady] = True
    changes = np.zeros(every.size, np.int64)  # of each key, counted before and after a write: odd while it runs
    by_version = np.eye(DIM)[1]
    index.warm_up()  # a search that compiles would hold its moment's rows for seconds
    few = parse_filter("tags any_of ['v3'] and version < 50", SCHEMA)

    def check(rng):
        query = checksummed([rng.integers(NUM_KEYS)], [1])[0] / 1000
        hits = index.search(query, 50, few if rng.random() < 0.5 else None)
        found = hits.keys[0][hits.keys[0] >= 0]
        assert np.unique(found).size == found.size, "doubled"
        vectors, there = index.vectors(found)
        assert (vectors[there] == checksummed(found[there], vectors[there, 1])).all(), "torn"
        asked = rng.choice(steady, 20, replace=False)
        vectors, there = index.vectors(asked)
        assert there.all(), "missing"
        assert (vectors == checksummed(asked, vectors[:, 1])).all(), "torn"

    def check_moment(rng):
        """Of all keys that no write touched while a search ran: exactly those alive, with their last vectors."""
        tree = few if rng.random() < 0.3 else None
        before = changes.copy()
        hits = index.search(by_version, every.size, tree)
        still = (changes == before) & (before % 2 == 0)
        found = hits.keys[0][hits.keys[0] >= 0]
        scores = hits.scores[0][: found.size]
        was_found = np.zeros(every.size, np.bool_)
        was_found[found] = True
        assert was_found.sum() == found.size, "doubled"
        last, expected = version.copy(), alive.copy()
        if tree is not None:
            expected &= (last % 5 == 3) & (last < 50)
        sure = still & (changes == before)  # what was expected is of that moment too
        assert not (sure & was_found & ~expected).any(), "stale: a hit that had been deleted or replaced"
        assert not (sure & ~was_found & expected).any(), "missing"
        assert (scores == last[found])[sure[found]].all(), "stale vector"

    @contextmanager
    def writing(keys):
        changes[keys] += 1
        yield
        changes[keys] += 1

    rng = np.random.default_rng(4)
    started, step, warm, samples, rows = time.monotonic(), 0, None, [], []
    with Readers([check, check_moment]) as readers:
        while ((elapsed := time.monotonic() - started) < seconds or step < 130) and not readers.failures:
            step += 1
            keys = np.unique(rng.integers(0, NUM_KEYS, 800))
            if step // 30 % 2:  # the catalogue swells and shrinks by turns
                with writing(keys):
                    assert index.delete(keys) == alive[keys].sum()
                    alive[keys] = False
            else:
                with writing(keys):
                    values = attributes_of(keys, [step] * keys.size)
                    index.upsert(keys, checksummed(keys, np.full(keys.size, step)), values)
                    alive[keys], version[keys] = True, step
            some = rng.choice(steady, 5, replace=False)
            with writing(some):
                index.upsert(some, checksummed(some, np.full(5, step)), attributes_of(some, [step] * 5))
                version[some] = step
            if step % 200 == 0:
                index.snapshot(folder, {})
            rows.append(index._state.num_rows)
            if elapsed > seconds / 3:
                warm = warm or resident_bytes()
                samples.append(resident_bytes())
    assert not readers.failures, repr(readers.failures[0])
    assert index.keys().tolist() == np.flatnonzero(alive).tolist()
    assert readers.num_rounds > 20 and step > 60
    assert index.count(parse_filter("group = 'g1'", SCHEMA)) == sum(key % 4 == 1 for key in index.keys().tolist())
    index.maintain()
    assert index._state.num_rows <= index.num_items / upkeep.COMPACT_BELOW + 64
    assert min(rows[rows.index(max(rows)) :]) < 0.75 * max(rows), "never compacted"
    return warm, np.array(samples)


def test_a_short_run(tmp_path, monkeypatch):
    monkeypatch.setattr(upkeep, "MIN_COMPACT_ROWS", 256)
    run(4.0, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_ten_minutes_with_flat_memory(tmp_path):
    seconds = float(os.environ.get("SHORTLIST_SOAK_SECONDS", "600"))
    warm, samples = run(seconds, tmp_path)
    last = np.median(samples[-max(1, samples.size // 5) :])
    assert last < 1.05 * warm + (8 << 20), f"resident memory rose from {warm} to {last:.0f} bytes"


def test_rows_given_up_are_used_again():
    index = LiveIndex(IndexConfig(dim=DIM, schema=SCHEMA, signals=("n",)))
    keys = np.arange(20_000)
    index.upsert(keys, checksummed(keys, keys * 0), attributes_of(keys, keys * 0))
    index.set_signals(keys, keys[:, None] * 1.0)
    assert index.delete(np.arange(0, 20_000, 4)) + index.delete(np.arange(1, 20_000, 4)) == 10_000
    index.maintain()
    assert index._state.num_rows <= 10_000 / 0.8
    kept = keys[keys % 4 > 1]
    assert index.keys().tolist() == kept.tolist()
    assert (index.vectors(kept)[0] == checksummed(kept, kept * 0)).all()
    assert (index.signals(kept)[:, 0] == kept).all()
    assert index.attributes(kept) == attributes_of(kept, kept * 0)
    assert index.count(parse_filter("tags any_of ['t1']", SCHEMA)) == (kept % 3 == 1).sum()
    more = np.arange(30_000, 31_000)
    index.upsert(more, checksummed(more, more * 0), attributes_of(more, more * 0))
    assert index.num_items == 11_000 and index._state.num_rows <= 10_000 / 0.8 + 1000
