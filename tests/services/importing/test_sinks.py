"""Imported rows in a real store."""

import numpy as np
import pyarrow as pa
import pytest

from services.importing import import_events, import_items, import_users
from services.importing.sinks import PARTS, DocumentSink, EventSink
from services.keys import key_of
from services.storage.consumer import StateConsumer
from services.storage.storage import Storage

from .worlds import SHOP, write_file

SCHEMA = SHOP.feature_schema()
EVENT_COLUMNS = {
    "user_id": pa.string(),
    "item_id": pa.string(),
    "type": pa.string(),
    "value": pa.float64(),
    "ts": pa.int64(),
}


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    with Storage.open(data_dir=tmp_path_factory.mktemp("data"), role="import") as opened:
        yield opened


def test_documents_arrive_with_their_attributes(storage, tmp_path):
    table = [
        {"sku": "a", "brand": "x", "tags": ["t", "u"], "stock": 2**60, "price": 0.5, "active": False, "added": 5},
        {"sku": "🎬", "description": "only text"},
        {"sku": "a", "brand": "later"},
    ]
    path = write_file(tmp_path / "items.parquet", table)
    report = import_items(path, SHOP, DocumentSink(storage.items), data_dir=storage.data_dir)
    assert (report.num_imported, report.num_duplicates) == (3, 1)
    first, second = storage.items.get_many(["a", "🎬"])
    assert first.attributes == {"brand": "later"}
    assert second.attributes == {"blurb": "only text"}
    path = write_file(tmp_path / "more.jsonl", table[:1])
    import_items(path, SHOP, DocumentSink(storage.items), data_dir=storage.data_dir)
    attributes = storage.items.get("a").attributes
    assert attributes == {name: value for name, value in table[0].items() if name != "sku"}
    assert SHOP.validate_item(attributes) == attributes
    users = write_file(tmp_path / "users.csv", [{"user_id": "u"}], {"user_id": pa.string()})
    import_users(users, SHOP, DocumentSink(storage.users), data_dir=storage.data_dir)
    assert storage.users.get("u").attributes == {}


@pytest.mark.parametrize("cut", ["archive", "apply", "after"])
def test_events_are_counted_once_wherever_an_import_is_cut(storage, tmp_path, monkeypatch, cut):
    """cut: before the third batch is archived; before, or after, its third part is in the state."""
    user = f"user-{cut}"
    table = [
        {"user_id": user, "item_id": f"{cut}-{number % 7}", "type": "view", "ts": 1_577_836_800_000 + number}
        for number in range(50)
    ]
    path = write_file(tmp_path / "events.parquet", table, EVENT_COLUMNS)
    consumer = storage.consumer(SCHEMA)
    sink = EventSink(storage.archive, consumer, SCHEMA)
    calls = 0
    target, name = (storage.archive, "write_import") if cut == "archive" else (StateConsumer, "apply")
    last = 3 if cut == "archive" else 2 * PARTS + 3
    original = getattr(target, name)

    def failing(*args):
        nonlocal calls
        calls += 1
        if calls == last and cut == "after":
            original(*args)
        if calls == last:
            raise ConnectionError("cut")
        return original(*args)

    monkeypatch.setattr(target, name, failing)
    with pytest.raises(ConnectionError):
        import_events(path, SHOP, sink, data_dir=storage.data_dir, batch_rows=8)
    monkeypatch.undo()
    report = import_events(path, SHOP, sink, data_dir=storage.data_dir, batch_rows=8)
    assert report.num_imported == 50
    assert report.num_written == 50 - 8 * 2

    signal = SCHEMA.signals[0]
    keys = np.array([key_of(f"{cut}-{number}") for number in range(7)])
    counts = storage.popularity.values([signal], keys, 1_577_836_900_000)
    assert np.asarray(counts).ravel().tolist() == [8, 7, 7, 7, 7, 7, 7]
    archived = storage.archive.load().to_pylist()
    assert sum(row["user_id"] == user for row in archived) == 50
    history = storage.state.hydrate(user).state.history
    assert history.ts_ms.tolist() == [row["ts"] for row in table]

    again = import_events(path, SHOP, sink, data_dir=storage.data_dir, batch_rows=8)
    assert again.already_imported
    forced = import_events(path, SHOP, sink, data_dir=storage.data_dir, batch_rows=8, force=True)
    assert (forced.num_imported, forced.num_written) == (50, 0)
    assert np.asarray(storage.popularity.values([signal], keys, 1_577_836_900_000)).sum() == 50
