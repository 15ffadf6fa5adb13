from __future__ import annotations

from services.storage.storage import Storage


def test_what_reaches_further_is_kept(storage: Storage) -> None:
    store = storage.ranker_offsets
    assert store.load() is None
    assert store.save("5-1", b"\x00first\xff")
    assert store.load() == ("5-1", b"\x00first\xff")
    assert store.save("5-1", b"again") and store.save("5-10", b"later")
    assert not store.save("5-9", b"behind") and not store.save("4-99", b"far behind")
    assert store.load() == ("5-10", b"later")
    store.delete()
    assert store.load() is None
