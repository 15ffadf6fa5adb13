from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.storage import ArchiveCorrupt, Catalogue, Storage
from services.storage import catalogue as module

SCHEMA = pa.schema(
    [
        pa.field("title", pa.string()),
        pa.field("genre", pa.list_(pa.string())),
        pa.field("year", pa.int64()),
        pa.field("score", pa.float64()),
        pa.field("released", pa.timestamp("ms")),
    ]
)


def catalogue_of(storage: Storage, folder: Path, batch_changes: int = 1_000, max_age_ms: int = 0) -> Catalogue:
    return Catalogue(
        folder,
        store=storage.items,
        streams=storage.streams,
        batch_changes=batch_changes,
        max_age_ms=max_age_ms,
    )


def test_typed_columns_last_wins_and_deletions(storage: Storage, tmp_path: Path) -> None:
    storage.items.put("a", {"title": "A", "genre": ["x", "y"], "year": 2**53 + 1, "released": 1000, "more": 1})
    storage.items.put("b", {"title": "B"})
    storage.items.put("c", {"title": "C", "score": 1})
    catalogue = catalogue_of(storage, tmp_path)
    assert catalogue.step() == 3
    storage.items.delete("b")
    storage.items.patch("a", {"title": "A2"})
    assert catalogue.step() == 2
    assert catalogue.step() == 0
    assert catalogue.offset == storage.streams.last_offset("items")
    assert storage.streams.offset_of("items", "catalogue") == catalogue.offset
    rows = catalogue_of(storage, tmp_path).load(SCHEMA).drop_columns(["updated_ms"]).to_pylist()
    absent = dict.fromkeys(SCHEMA.names)
    assert rows[0] == {**absent, "id": "c", "version": 1, "title": "C", "score": 1.0}
    assert rows[1].pop("released").timestamp() == 1
    assert rows[1] == {
        "id": "a",
        "version": 2,
        "title": "A2",
        "genre": ["x", "y"],
        "year": 2**53 + 1,
        "score": None,
    }
    assert catalogue.load().column_names == ["id", "version", "updated_ms", "attributes"]


def test_an_empty_catalogue(embedded: Storage, tmp_path: Path) -> None:
    catalogue = catalogue_of(embedded, tmp_path / "none")
    assert catalogue.step() == 0 and catalogue.offset == "0-0"
    assert catalogue.load(SCHEMA).num_rows == 0 and catalogue.load(SCHEMA).column_names[3:] == SCHEMA.names


def test_a_value_of_another_type_is_named(embedded: Storage, tmp_path: Path) -> None:
    embedded.items.put_many([("a", {"year": 1}), ("b", {"year": "MM"})])
    catalogue = catalogue_of(embedded, tmp_path)
    catalogue.step()
    with pytest.raises(ValueError, match="attribute 'year' of document 'b' is 'MM'; expected int64"):
        catalogue.load(SCHEMA)


def test_segments_are_written_when_due(embedded: Storage, tmp_path: Path) -> None:
    catalogue = catalogue_of(embedded, tmp_path, batch_changes=5, max_age_ms=60_000)
    embedded.items.put_many((f"i{n}", {}) for n in range(3))
    assert catalogue.step() == 0 and catalogue.offset == "0-0"
    embedded.items.put_many((f"j{n}", {}) for n in range(4))
    assert catalogue.step() == 5
    assert catalogue.step() == 0
    assert catalogue.step(flush=True) == 2
    assert catalogue.load().num_rows == 7


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["put", "delete", "step", "compact", "restart"]), st.integers(0, 4))))
def test_any_sequence_of_writes_steps_compactions_and_restarts(
    embedded_owner: Storage, tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("catalogue")
    key = f"test-{folder.name}"
    with Storage.open(data_dir=embedded_owner.data_dir, dataset_key=key, role="test") as storage:
        catalogue = catalogue_of(storage, folder, batch_changes=3)
        for number, (action, item) in enumerate(actions):
            if action == "put":
                storage.items.put(f"i{item}", {"n": number})
            elif action == "delete":
                storage.items.delete(f"i{item}")
            elif action == "step":
                catalogue.step()
            elif action == "compact":
                catalogue.compact()
            else:
                catalogue = catalogue_of(storage, folder, batch_changes=3)
        while catalogue.step(flush=True):
            pass
        schema = pa.schema([pa.field("n", pa.int64())])
        expected = {(d.id, d.version, d.attributes["n"]) for d in storage.items.scan()}
        for reader in (catalogue, catalogue_of(storage, folder)):
            rows = reader.load(schema).select(["id", "version", "n"]).to_pylist()
            assert {tuple(row.values()) for row in rows} == expected and len(rows) == len(expected)
            assert reader.offset == storage.streams.last_offset("items")


def test_compaction_by_size_and_after_a_crash_before_its_clean_up(
    embedded: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIN_COMPACT_ROWS", 20)
    catalogue = catalogue_of(embedded, tmp_path, batch_changes=10)
    embedded.items.put_many((f"i{n}", {"n": n}) for n in range(20))
    embedded.items.delete("i0")
    while catalogue.step(flush=True):
        pass
    assert [path.name for path in tmp_path.glob("*.arrow")] == ["4.arrow"]
    embedded.items.delete("i1")
    catalogue.step()
    monkeypatch.setattr(Path, "unlink", lambda *args, **kwargs: None)
    catalogue.compact()
    monkeypatch.undo()
    assert {path.name for path in tmp_path.glob("*.arrow")} == {"4.arrow", "5.arrow", "6.arrow"}
    again = catalogue_of(embedded, tmp_path)
    assert again.load().num_rows == 18
    embedded.items.put("new", {})
    again.step()
    assert {path.name for path in tmp_path.glob("*.arrow")} == {"6.arrow", "7.arrow"}
    assert again.load().num_rows == 19


@pytest.mark.parametrize("reason", ["trimmed", "ahead"])
def test_a_catalogue_that_has_lost_its_stream_is_built_from_the_store(
    embedded: Storage, tmp_path: Path, reason: str
) -> None:
    catalogue = catalogue_of(embedded, tmp_path)
    embedded.items.put_many((f"i{n}", {"n": n}) for n in range(3))
    if reason == "ahead":
        catalogue.step()
        embedded.client.call("DEL", embedded.names.stream("items"), embedded.names.documents("items"))
    else:
        embedded.streams.trim("items", embedded.streams.last_offset("items"))
    embedded.items.delete("i0")
    again = catalogue_of(embedded, tmp_path)
    again.step(flush=True)
    assert {row["id"] for row in again.load().to_pylist()} == {d.id for d in embedded.items.scan()}
    assert again.offset == embedded.streams.last_offset("items")
    embedded.items.put("new", {})
    assert again.step(flush=True) == 1
    assert again.load().num_rows == len(embedded.items)


def test_damage_is_reported(embedded: Storage, tmp_path: Path) -> None:
    embedded.items.put("a", {})
    catalogue = catalogue_of(embedded, tmp_path)
    catalogue.step()
    (tmp_path / "1.arrow").write_bytes((tmp_path / "1.arrow").read_bytes()[:-30])
    with pytest.raises(ArchiveCorrupt, match=r"1\.arrow"):
        catalogue.load()
