from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from services.storage import (
    ArchiveCorrupt,
    Event,
    EventArchive,
    Storage,
    archived_events,
    event_table,
    offset_tuple,
)

from .world import DAY_MS, HOUR_MS, NOW_MS, SCHEMA, event, random_events


def archive_of(storage: Storage, folder: Path, batch_events: int = 100, max_age_ms: int = 0) -> EventArchive:
    return EventArchive(
        folder,
        client=storage.client,
        names=storage.names,
        streams=storage.streams,
        events=storage.events,
        batch_events=batch_events,
        max_age_ms=max_age_ms,
    )


def expected_ids(events: list[Event]) -> list[str]:
    return [e.event_id for e in sorted(events, key=lambda e: e.ts_ms)]


def test_all_events_by_day_and_sorted_by_time(storage: Storage, tmp_path: Path) -> None:
    events = random_events(350, seed=1, span_ms=3 * DAY_MS)
    offsets = [append.offset for append in storage.events.append(events)]
    archive = archive_of(storage, tmp_path)
    while archive.step():
        pass
    table = archive.load()
    assert table["event_id"].to_pylist() == expected_ids(events)
    assert archive.offset == offsets[-1] == storage.streams.offset_of("events", "archive")
    for path in archive.files():
        days = np.unique(pq.ParquetFile(path).read()["ts_ms"].to_numpy() // DAY_MS)
        assert path.parent.name == f"day={np.datetime64(int(days[0]), 'D')}" and len(days) == 1
        first, last = path.stem.removeprefix("part-").replace("-", " ", 1).split("-", 1)
        assert offset_tuple(first.replace(" ", "-")) <= offset_tuple(last)
    by_id = {e.event_id: e for e in events}
    names = ["event_id", "user_id", "item_id", "type", "value", "ts_ms"]
    for row in table.select(names).to_pylist():
        assert Event(**row) == by_id[row["event_id"]]
    columns, direct = archived_events(SCHEMA, table), event_table(SCHEMA, events)
    for name in ("user_keys", "item_keys", "types", "values", "ts_ms", "action_masks"):
        np.testing.assert_array_equal(getattr(columns, name), getattr(direct, name))


def test_a_window_reads_only_its_days(embedded: Storage, tmp_path: Path) -> None:
    events = random_events(200, seed=2, span_ms=10 * DAY_MS)
    embedded.events.append(events)
    archive = archive_of(embedded, tmp_path)
    while archive.step():
        pass
    start_ms, stop_ms = NOW_MS - 5 * DAY_MS + HOUR_MS, NOW_MS - 2 * DAY_MS
    inside = [e for e in events if start_ms <= e.ts_ms < stop_ms]
    assert archive.load(start_ms, stop_ms)["event_id"].to_pylist() == expected_ids(inside)
    assert len({path.parent for path in archive.files(start_ms, stop_ms)}) <= 4
    assert len(archive.load(NOW_MS + DAY_MS)) == 0
    assert archive.load().schema == archive.load(NOW_MS + DAY_MS).schema


def test_parts_are_written_when_due(embedded: Storage, tmp_path: Path) -> None:
    archive = archive_of(embedded, tmp_path, batch_events=10, max_age_ms=60_000)
    embedded.events.append([event(n) for n in range(7)])
    assert archive.step() == []
    assert archive.step() == []
    embedded.events.append([event(n) for n in range(7, 14)])
    assert len(archive.step()) == 1
    assert len(archive.load()) == 10
    assert archive.step() == []
    assert len(archive.step(flush=True)) == 1
    assert len(archive.load()) == 14
    assert archive.step(flush=True) == []


@pytest.mark.parametrize("killed_at", ["after the first file", "before the offset"])
def test_a_part_cut_short_is_written_again_as_the_same_files(
    embedded: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    events = [event(n, ts_ms=NOW_MS - n * DAY_MS) for n in range(4)]
    embedded.events.append(events)
    doomed = archive_of(embedded, tmp_path)
    if killed_at == "before the offset":
        monkeypatch.setattr(embedded.client, "atomically", lambda commands: 1 / 0)
    else:
        replace, calls = Path.replace, iter(range(10))
        monkeypatch.setattr(Path, "replace", lambda *paths: replace(*paths) if next(calls) < 1 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        doomed.step(flush=True)
    monkeypatch.undo()
    before = set(archive_of(embedded, tmp_path).files())
    late = event(9, ts_ms=NOW_MS)
    embedded.events.append([late])  # more has come since
    archive = archive_of(embedded, tmp_path)
    again = archive.step(flush=True)
    assert len(again) == 4 and before <= set(again) and before
    assert archive.step(flush=True)
    rows = [row for path in archive.files() for row in pq.ParquetFile(path).read()["event_id"].to_pylist()]
    assert sorted(rows) == ["e0", "e1", "e2", "e3", "e9"]


def test_a_failed_write_is_tried_again(embedded: Storage, tmp_path: Path) -> None:
    folder = tmp_path / "events"
    folder.write_text("in the way")
    embedded.events.append([event(1)])
    archive = archive_of(embedded, folder)
    with pytest.raises(OSError, match="events"):
        archive.step(flush=True)
    folder.unlink()
    assert len(archive.step(flush=True)) == 1
    assert archive.load()["event_id"].to_pylist() == ["e1"]


def test_imports_are_idempotent_and_repetitions_are_dropped_when_read(embedded: Storage, tmp_path: Path) -> None:
    archive = archive_of(embedded, tmp_path)
    imported = [event(n, ts_ms=NOW_MS) for n in range(3)]
    first = archive.write_import("ml.1", 0, imported)
    assert archive.write_import("ml.1", 0, imported) == first
    embedded.events.append([event(1, ts_ms=NOW_MS + 5 * DAY_MS), event(7, ts_ms=NOW_MS)])
    archive.step(flush=True)
    table = archive.load()
    assert table["event_id"].to_pylist() == ["e0", "e1", "e2", "e7"]
    assert set(table["ts_ms"].to_pylist()) == {NOW_MS}
    with pytest.raises(ValueError, match="import id"):
        archive.write_import("../x", 0, imported)


def test_leftovers_are_removed_and_damage_is_reported(embedded: Storage, tmp_path: Path) -> None:
    leftover = tmp_path / "day=2020-01-01" / ".tmp-1-part-x.parquet"
    leftover.parent.mkdir()
    leftover.write_text("half")
    embedded.events.append([event(1)])
    archive = archive_of(embedded, tmp_path)
    (path,) = archive.step(flush=True)
    assert not leftover.exists()
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ArchiveCorrupt, match=path.name):
        archive.load()
