"""One writer beside searching threads: nothing torn, stale, doubled or missing."""

import threading
import time

import numpy as np
import pytest

from index.attributes import Attribute, AttributeSchema
from index.filter import parse_filter
from index.live import IndexConfig, LiveIndex

SCHEMA = AttributeSchema(
    (Attribute("group", "keyword"), Attribute("version", "int"), Attribute("tags", "keyword_list"))
)
DIM = 8


def checksummed(keys, versions):
    """Vectors that tell their key and version, in exact float32 integers: [key, version, key * version % 997, ...]."""
    keys, versions = np.asarray(keys, np.float64), np.asarray(versions, np.float64)
    check = (keys * 31 + versions * 17) % 997
    columns = [keys, versions, check, -keys, -versions, check + keys, check + versions, np.ones_like(keys)]
    return np.stack(np.broadcast_arrays(*columns), 1).astype(np.float32)


def attributes_of(keys, versions):
    return [
        {"group": f"g{key % 4}", "version": int(version), "tags": [f"t{key % 3}", f"v{version % 5}"]}
        for key, version in zip(keys, versions, strict=True)
    ]


class Readers:
    """Threads that search until told to stop and keep the first thing that went wrong."""

    def __init__(self, checks):
        self.stop = threading.Event()
        self.failures = []
        self.num_rounds = 0
        self.threads = [threading.Thread(target=self.run, args=(check, place)) for place, check in enumerate(checks)]

    def run(self, check, seed):
        rng = np.random.default_rng(seed)
        try:
            while not self.stop.is_set():
                check(rng)
                self.num_rounds += 1
        except BaseException as error:  # noqa: BLE001  shown by the test
            self.failures.append(error)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()


def keep_going(began, readers, enough):
    """For 2 s, and on a busy machine until writer and readers have done enough to mean something, at most 60 s."""
    elapsed = time.monotonic() - began
    return not readers.failures and (elapsed < 2.0 or (elapsed < 60.0 and not (enough and readers.num_rounds > 20)))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_searches_see_whole_batches(backend):
    """Every upsert replaces all items of one moment by the next: a search may see either, never a mixture."""
    num_items = 120 if backend == "cpu" else 60
    index = LiveIndex(IndexConfig(dim=DIM, schema=SCHEMA, signals=("n",), capacity=64, backend=backend))
    keys = np.arange(num_items)
    applied = [0]
    index.upsert(keys, checksummed(keys, np.zeros(num_items)), attributes_of(keys, [0] * num_items))
    by_version = np.zeros(DIM)
    by_version[1] = 1.0
    group = parse_filter("group = 'g1' or tags any_of ['t0']", SCHEMA)
    in_group = sorted(key for key in range(num_items) if key % 4 == 1 or key % 3 == 0)

    def check_all(rng):
        least = applied[0]
        hits = index.search(by_version, num_items + 5)
        most = applied[0] + 1
        found = hits.keys[0][hits.keys[0] >= 0]
        assert found.tolist() == keys.tolist(), "doubled or missing hits"  # all tie, so the order is by key
        versions = set(hits.scores[0][: found.size].tolist())
        assert len(versions) == 1, f"two moments in one search: {versions}"
        assert least <= versions.pop() <= most, "stale after apply"

    def check_filtered(rng):
        hits = index.search(rng.standard_normal(DIM), num_items, group)
        assert sorted(hits.keys[0][hits.keys[0] >= 0].tolist()) == in_group
        version = int(rng.integers(0, applied[0] + 2))
        tree = parse_filter(f"version = {version} and tags any_of ['v{version % 5}']", SCHEMA)
        assert index.count(tree) in (0, num_items)

    def check_vectors(rng):
        asked = rng.permutation(keys)
        vectors, found = index.vectors(asked)
        assert found.all()
        assert (vectors == checksummed(asked, vectors[:, 1])).all(), "torn"
        assert len(set(vectors[:, 1].tolist())) == 1
        assert (index.signals(asked) >= 0).all()

    def check_signals(rng):
        hits = index.search_signal("n", num_items)
        assert sorted(hits.keys[0].tolist()) == keys.tolist()

    with Readers([check_all, check_filtered, check_vectors, check_signals]) as readers:
        began = time.monotonic()
        while keep_going(began, readers, applied[0] > 20):
            version = applied[0] + 1
            index.upsert(
                keys, checksummed(keys, np.full(num_items, version)), attributes_of(keys, [version] * num_items)
            )
            applied[0] = version
            index.add_signals(keys[version % num_items :][:1], [[1.0]])
    assert not readers.failures, repr(readers.failures[0])
    assert readers.num_rounds > 20 and applied[0] > 20


def test_growth_deletes_and_rescaling_beside_searches():
    """The catalogue grows and shrinks; what was applied before a search began is in it, what was deleted is not."""
    index = LiveIndex(IndexConfig(dim=DIM, schema=SCHEMA, signals=("n",), capacity=64))
    lock = threading.Lock()
    alive, changing = {}, set()

    def check(rng):
        with lock:
            before, moving = dict(alive), set(changing)
        hits = index.search(np.eye(DIM)[7], 4000)
        with lock:
            after, moving = dict(alive), moving | set(changing)
        found = hits.keys[0][hits.keys[0] >= 0].tolist()
        assert len(found) == len(set(found)), "doubled"
        steady = {key for key in before if after.get(key) == before[key]} - moving
        never = {key for key in found if key not in before and key not in after} - moving - touched
        assert steady <= set(found), "missing"
        assert not never, "hits that never were"
        vectors, there = index.vectors(found)
        assert (vectors[there] == checksummed(np.array(found)[there], vectors[there, 1])).all(), "torn"

    touched = set()  # keys written at any time while a search ran
    rng = np.random.default_rng(9)
    with Readers([check, check]) as readers:
        began = time.monotonic()
        step = 0
        while keep_going(began, readers, step > 50):
            step += 1
            keys = np.unique(rng.integers(0, 3000, int(rng.integers(1, 60))))
            with lock:
                changing.clear()
                changing.update(keys.tolist())
                touched.update(keys.tolist())
            if rng.random() < 0.4:
                index.delete(keys)
                with lock:
                    for key in keys.tolist():
                        alive.pop(key, None)
            else:
                index.upsert(keys, checksummed(keys, np.full(keys.size, step)), attributes_of(keys, [step] * keys.size))
                with lock:
                    alive.update(dict.fromkeys(keys.tolist(), step))
            if step % 50 == 0:
                index.rescale_signals([0.5])
    assert not readers.failures, repr(readers.failures[0])
    assert readers.num_rounds > 20 and step > 50
    assert index.keys().tolist() == sorted(alive)
