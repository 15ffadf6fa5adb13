from __future__ import annotations

import threading

import pytest

from services.clock import Clock
from services.keys import key_of
from services.storage import KeyCollision, Storage, VersionConflict, offset_tuple

from .conftest import OpenStorage


def test_put_get_and_replace(open_storage: OpenStorage) -> None:
    storage = open_storage(Clock(source=lambda: 1234))
    attributes = {"title": "Ü 'x' \"y\"\n\x00", "genre": ["a", "b"], "year": 2**60, "score": 0.1, "new": True}
    first = storage.items.put("a", attributes)
    assert (first.version, first.created) == (1, True)
    document = storage.items.get("a")
    assert document is not None
    assert (document.id, document.key, document.version, document.updated_ms) == ("a", key_of("a"), 1, 1234)
    assert document.attributes == attributes
    second = storage.items.put("a", {"title": "z"})
    assert (second.version, second.created) == (2, False)
    assert offset_tuple(second.offset) > offset_tuple(first.offset)
    replaced = storage.items.get("a")
    assert replaced is not None and replaced.attributes == {"title": "z"}
    assert len(storage.items) == 1 and len(storage.users) == 0
    assert storage.users.get("a") is None


def test_every_write_is_in_the_stream_with_its_offset(storage: Storage) -> None:
    writes = [storage.items.put("a", {"x": 1}), storage.items.patch("a", {"y": 2}), storage.items.delete("a")]
    changes = storage.items.changes()
    assert [change.offset for change in changes] == [write.offset for write in writes if write]
    assert [change.version for change in changes] == [1, 2, 3]
    assert [change.deleted for change in changes] == [False, False, True]
    assert [change.attributes for change in changes] == [{"x": 1}, {"x": 1, "y": 2}, {}]
    assert {(change.id, change.key) for change in changes} == {("a", key_of("a"))}
    assert storage.items.changes(after=changes[1].offset) == changes[2:]
    assert storage.users.changes() == []
    assert storage.streams.last_offset("items") == changes[-1].offset


def test_patch_merges_and_null_removes(storage: Storage) -> None:
    assert storage.items.patch("a", {"x": 1}) is None
    storage.items.put("a", {"x": 1, "y": 2})
    write = storage.items.patch("a", {"y": None, "z": [3]})
    document = storage.items.get("a")
    assert write is not None and write.version == 2
    assert document is not None and document.attributes == {"x": 1, "z": [3]}


def test_concurrent_patches_lose_nothing(storage: Storage) -> None:
    storage.items.put("a", {})

    def patch(name: str) -> None:
        for number in range(10):
            storage.items.patch("a", {f"{name}{number}": number})

    threads = [threading.Thread(target=patch, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    document = storage.items.get("a")
    assert document is not None and len(document.attributes) == 40 and document.version == 41


def test_delete_and_create_again(storage: Storage) -> None:
    assert storage.items.delete("a") is None
    storage.items.put("a", {})
    write = storage.items.delete("a")
    assert write is not None and not write.created
    assert storage.items.get("a") is None and len(storage.items) == 0
    assert storage.items.put("a", {}).created


def test_conditional_writes(storage: Storage) -> None:
    assert storage.items.put("a", {}, if_version=0).created
    for write in (
        lambda: storage.items.put("a", {}, if_version=0),
        lambda: storage.items.put("a", {}, if_version=2),
        lambda: storage.items.patch("a", {"x": 1}, if_version=2),
        lambda: storage.items.delete("a", if_version=2),
    ):
        with pytest.raises(VersionConflict) as raised:
            write()
        assert (raised.value.id, raised.value.actual) == ("a", 1)
    assert storage.items.put("a", {}, if_version=1).version == 2
    assert storage.items.delete("a", if_version=2) is not None
    assert len(storage.items.changes()) == 3


def test_put_many_and_get_many(storage: Storage) -> None:
    ids = [f"item {number}" for number in range(2_500)]
    writes = storage.items.put_many((identifier, {"n": n}) for n, identifier in enumerate(ids))
    assert len({write.offset for write in writes}) == 2_500
    assert [offset_tuple(w.offset) for w in writes] == sorted(offset_tuple(w.offset) for w in writes)
    documents = storage.items.get_many([ids[7], "missing", ids[3]])
    assert [d and d.attributes["n"] for d in documents] == [7, None, 3]
    assert storage.items.ids_of([key_of(ids[1]), 12345]) == [ids[1], None]
    assert [d and d.id for d in storage.items.of_keys([key_of(ids[1]), 12345])] == [ids[1], None]
    assert sorted(document.id for document in storage.items.scan()) == sorted(ids)
    assert storage.items.get_many([]) == [] and storage.items.ids_of([]) == [] and storage.items.put_many([]) == []


@pytest.mark.parametrize("other", ["b", 'b","attributes":{}', "b\\", ""])
def test_two_ids_on_one_key_are_refused_and_named(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    if not other:
        with pytest.raises(ValueError, match="empty"):
            storage.items.put(other, {})
        return
    monkeypatch.setattr("services.storage.documents.key_of", lambda identifier: 42)
    storage.items.put(other, {"mine": 1})
    for write in (
        lambda: storage.items.put("a", {}),
        lambda: storage.items.delete("a"),
        lambda: storage.items.put_many([("a", {}), (other, {"mine": 2})]),
    ):
        with pytest.raises(KeyCollision) as raised:
            write()
        assert raised.value.ids == (other, "a")
    assert storage.items.get("a") is None
    stored = storage.items.get(other)
    assert stored is not None and stored.attributes == {"mine": 2}
    assert storage.items.ids_of([42]) == [other]


def test_what_cannot_be_stored_is_named(storage: Storage) -> None:
    with pytest.raises(ValueError, match="'a'"):
        storage.items.put("a", {"x": object()})
    with pytest.raises(ValueError, match="surrogates"):
        storage.items.put("\ud800", {})


def test_scripts_survive_a_flush_of_the_servers_script_cache(storage: Storage) -> None:
    storage.items.put("a", {})
    storage.client.call("SCRIPT", "FLUSH")
    storage.items.put("a", {})
    storage.client.call("SCRIPT", "FLUSH")
    assert storage.items.put_many([("a", {})])[0].version == 3
