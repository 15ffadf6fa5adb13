import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import index.manifest as manifests
import index.snapshot as snapshot
from index.attributes import AttributeSchema
from index.live import IndexConfig, LiveIndex, SnapshotError
from tests.index.worlds import SCHEMA, attributes, filters, listed

DIM = 4


def make_index(num_items=50, **options):
    index = LiveIndex(IndexConfig(dim=DIM, schema=SCHEMA, signals=("hour", "day"), capacity=64, **options))
    rng = np.random.default_rng(num_items)
    keys = np.arange(num_items) * 3
    kinds = [{}, {"genre": ["a", "Élan"], "year": 2**53 + 1}, {"studio": "", "adult": True, "score": -0.0}]
    if num_items:
        vectors = rng.standard_normal((num_items, DIM))
        index.upsert(keys, vectors, [kinds[key % 3 - 1] | {"released": int(key)} for key in range(num_items)])
        index.add_signals(keys, rng.standard_normal((num_items, 2)))
    index.offsets["items"] = f"{num_items}-1"
    return index


def assert_same(left, right, trees=(None,)):
    keys = left.keys()
    assert keys.tolist() == right.keys().tolist()
    assert (left.vectors(keys)[0] == right.vectors(keys)[0]).all()
    assert (left.signals(keys) == right.signals(keys)).all()
    assert left.attributes(keys) == right.attributes(keys)
    assert left.offsets == right.offsets
    for tree in trees:
        for query in np.eye(left.dim):
            a, b = left.search(query, 10, tree), right.search(query, 10, tree)
            assert listed(a) == listed(b) and a.num_matched == b.num_matched
        assert listed(left.search_signal("day", 10, tree)) == listed(right.search_signal("day", 10, tree))


@pytest.mark.parametrize("num_items", [0, 1, 50, 700])
def test_an_opened_snapshot_is_the_index(tmp_path, num_items):
    index = make_index(num_items)
    index.delete(np.arange(0, 60, 6))
    info = index.snapshot(tmp_path, {"model": "tower-7", "data": {"until_ms": 5}})
    opened, opened_info = LiveIndex.open_newest(tmp_path)
    assert_same(index, opened)
    assert opened_info == info
    assert info.num_items == index.num_items and info.offsets == {"items": f"{num_items}-1"}
    assert info.metadata == {"model": "tower-7", "data": {"until_ms": 5}}
    assert info.size_bytes == sum(path.stat().st_size for path in info.path.iterdir())
    opened.upsert([1, 3], np.ones((2, DIM)), [{"genre": ["new"]}] * 2)  # and it goes on living
    assert opened.attributes([1]) == [{"genre": ["new"]}]


@settings(max_examples=15, deadline=None)
@given(st.lists(attributes, max_size=40), st.lists(filters, min_size=1, max_size=3))
def test_any_attributes_survive(batch, trees):
    index = LiveIndex(IndexConfig(dim=DIM, schema=SCHEMA, signals=("hour", "day")))
    index.upsert(np.arange(len(batch)), np.ones((len(batch), DIM)), batch)
    with tempfile.TemporaryDirectory() as folder:
        index.snapshot(folder, {})
        assert_same(index, LiveIndex.open_newest(folder)[0], trees)


def test_the_newest_few_are_kept(tmp_path):
    index = make_index(keep_snapshots=2)
    for version in range(4):
        index.snapshot(tmp_path, {"version": version})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["snapshot-000000000003", "snapshot-000000000004"]
    opened, info = LiveIndex.open_newest(tmp_path)
    assert info.metadata == {"version": 3} and opened.config.keep_snapshots == 2


def _names():
    with tempfile.TemporaryDirectory() as folder:
        return sorted(path.name for path in make_index(5).snapshot(folder, {}).path.iterdir())


@pytest.fixture(scope="module")
def two_snapshots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    make_index(5).snapshot(folder, {"version": 1})
    make_index(5).snapshot(folder, {"version": 2})
    return folder


@pytest.mark.parametrize("name", _names())
@pytest.mark.parametrize("damage", ["first", "middle", "last", "truncate", "extend", "empty", "remove"])
def test_damage_to_any_file_is_found_and_told(tmp_path, two_snapshots, name, damage):
    shutil.copytree(two_snapshots, tmp_path, dirs_exist_ok=True)
    newest = tmp_path / "snapshot-000000000002"
    path = newest / name
    raw = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        if damage == "truncate":
            del raw[-1]
        elif damage == "extend":
            raw += b" "
        elif damage == "empty":
            raw.clear()
        else:
            raw[{"first": 0, "middle": len(raw) // 2, "last": -1}[damage]] ^= 1
        path.write_bytes(raw)
    opened, info = LiveIndex.open_newest(tmp_path)
    assert info.metadata == {"version": 1}
    ((skipped, reason),) = info.skipped
    assert skipped == str(newest) and name in reason
    assert_same(make_index(5), opened)


def test_every_byte_of_the_manifest_counts(tmp_path):
    path = LiveIndex(IndexConfig(dim=1)).snapshot(tmp_path, {"a": 1.5}).path / "manifest.json"
    raw = path.read_bytes()
    for place in range(len(raw)):
        changed = bytearray(raw)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(SnapshotError):
            LiveIndex.open_newest(tmp_path)


def test_no_valid_snapshot_lists_the_reasons(tmp_path):
    with pytest.raises(SnapshotError, match="holds none"):
        LiveIndex.open_newest(tmp_path / "nowhere")
    first = make_index(3).snapshot(tmp_path, {}).path
    second = make_index(3).snapshot(tmp_path, {}).path
    (first / "keys.npy").unlink()
    (second / "manifest.json").write_text("{}")
    with pytest.raises(SnapshotError) as caught:
        LiveIndex.open_newest(tmp_path)
    assert [path for path, _ in caught.value.skipped] == [str(second), str(first)]
    assert "keys.npy" in str(caught.value) and "manifest.json" in str(caught.value)


def test_a_newer_format_is_not_guessed_at(tmp_path):
    path = make_index(3).snapshot(tmp_path, {}).path / "manifest.json"
    manifest = json.loads(path.read_bytes())["manifest"] | {"format_version": 99}
    path.write_bytes(manifests._sealed(manifests._canonical(manifest)))
    with pytest.raises(SnapshotError, match="format version 99, expected 1"):
        LiveIndex.open_newest(tmp_path)


def test_codes_of_another_version_are_computed_again(tmp_path):
    index = make_index(700)
    path = index.snapshot(tmp_path, {}).path
    manifest = json.loads((path / "manifest.json").read_bytes())["manifest"]
    for name in list(manifest["files"]):
        if name.startswith("code-"):
            (path / name).unlink()
            del manifest["files"][name]
    for version in (snapshot.CODES_VERSION, 1):
        (path / "manifest.json").write_bytes(
            manifests._sealed(manifests._canonical(manifest | {"codes_version": version}))
        )
        opened, info = LiveIndex.open_newest(tmp_path)
        assert info.skipped == ()
        assert_same(index, opened)
        assert opened.snapshot(tmp_path / str(version), {}).num_items == 700


class FullDisk:
    """Lets so many bytes through, then behaves as a full disk."""

    def __init__(self, monkeypatch, room):
        self.room = room
        write = snapshot._HashingFile.write

        def limited(file, data):
            self.room -= len(data)
            if self.room < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(file, data)

        monkeypatch.setattr(snapshot._HashingFile, "write", limited)


@pytest.mark.parametrize("room", [0, 200, 1500, 4000])
def test_a_full_disk_leaves_the_older_snapshots(tmp_path, monkeypatch, room):
    index = make_index()
    index.snapshot(tmp_path, {"version": 1})
    before = sorted(path.name for path in tmp_path.iterdir())
    with monkeypatch.context() as patch, pytest.raises(SnapshotError, match="No space left.*snapshot-000000000001"):
        FullDisk(patch, room)
        index.snapshot(tmp_path, {"version": 2})
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert LiveIndex.open_newest(tmp_path)[1].metadata == {"version": 1}
    index.snapshot(tmp_path, {"version": 3})
    assert LiveIndex.open_newest(tmp_path)[1].metadata == {"version": 3}


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_failing_last_step_leaves_the_older_snapshots(tmp_path, monkeypatch, step):
    index = make_index()
    index.snapshot(tmp_path, {"version": 1})

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch, pytest.raises(SnapshotError, match="Input/output error"):
        patch.setattr(*((os, "fsync", fail) if step == "fsync" else (Path, "rename", fail)))
        index.snapshot(tmp_path, {"version": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["snapshot-000000000001"]


def test_the_kernel_refusing_a_write_is_reported(tmp_path):
    """A real refusal: the operating system limits the size of a file."""
    code = f"""
import resource
from index.live import LiveIndex, SnapshotError
from tests.index.test_snapshot import make_index
index = make_index(700)
index.snapshot({str(tmp_path)!r}, {{"version": 1}})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    index.snapshot({str(tmp_path)!r}, {{"version": 2}})
except SnapshotError as error:
    assert "File too large" in str(error), error
else:
    raise SystemExit("no error")
assert LiveIndex.open_newest({str(tmp_path)!r})[1].metadata == {{"version": 1}}
"""
    assert resource.RLIMIT_FSIZE
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    assert [path.name for path in tmp_path.iterdir()] == ["snapshot-000000000001"]


def test_a_crash_while_writing_leaves_nothing_that_counts(tmp_path):
    index = make_index()
    path = index.snapshot(tmp_path, {"version": 1}).path
    shutil.copytree(path, tmp_path / ".partial-000000000002")
    opened, info = LiveIndex.open_newest(tmp_path)
    assert info.metadata == {"version": 1} and info.skipped == ()
    opened.snapshot(tmp_path, {"version": 2})
    assert sorted(each.name for each in tmp_path.iterdir()) == ["snapshot-000000000001", "snapshot-000000000002"]


@pytest.mark.parametrize("metadata", [{"x": float("nan")}, {"x": object()}])
def test_metadata_must_be_json(tmp_path, metadata):
    with pytest.raises(ValueError, match="metadata"):
        make_index().snapshot(tmp_path, metadata)
    assert list(tmp_path.iterdir()) == []


def test_snapshots_beside_a_writer_hold_one_moment(tmp_path):
    """Signals, items and the offset of one batch are all inside or all outside."""
    index = LiveIndex(IndexConfig(dim=DIM, schema=AttributeSchema(), signals=("n",), keep_snapshots=100))
    index.upsert(np.arange(100), np.zeros((100, DIM)), [{}] * 100)
    stop = threading.Event()

    def write():
        step = 0
        while not stop.is_set():
            step += 1
            with index.applying("events", str(step)):
                index.upsert(np.arange(100), np.full((100, DIM), float(step)), [{}] * 100)
                index.add_signals(np.arange(100), np.ones((100, 1)))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(10):
            index.snapshot(tmp_path, {})
            opened, _ = LiveIndex.open_newest(tmp_path)
            step = float(opened.offsets.get("events", "0"))
            assert (opened.signals(np.arange(100)) == step).all()
            assert (opened.vectors(np.arange(100))[0] == step).all()
    finally:
        stop.set()
        thread.join()
