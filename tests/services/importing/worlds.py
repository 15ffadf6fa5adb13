"""A small data set with an attribute of every type, its valid rows, and files of them in every format."""

import csv
import gzip
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from services.datasets.dataset import Dataset

SHOP = Dataset.parse(
    """
name = "shop"
[items]
id = "sku"
[items.attributes]
brand = { type = "keyword", filter = true }
tags = { type = "keyword_list", filter = true }
stock = { type = "int" }
price = { type = "float" }
active = { type = "bool" }
added = { type = "timestamp" }
blurb = { type = "text", column = "description" }
[users.attributes]
age = { type = "int" }
[actions]
view = { event = "view" }
buy = { event = "buy", min_value = 1 }
[signals]
actions = ["view"]
half_lives = ["all"]
[retrieval]
positive = "view"
[ranking]
tasks = ["view"]
value = { view = 1 }
""",
    source="shop.toml",
)
COLUMNS = {
    "sku": pa.string(),
    "brand": pa.string(),
    "tags": pa.list_(pa.string()),
    "stock": pa.int64(),
    "price": pa.float64(),
    "active": pa.bool_(),
    "added": pa.timestamp("ms", tz="UTC"),
    "description": pa.string(),
}
FORMATS = ("parquet", "csv", "csv.gz", "jsonl", "ndjson.gz")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Row = dict[str, Any]

# No NUL and no carriage return: neither survives a CSV file written by everyone's tools.
texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\r"), min_size=1, max_size=20)
keywords = texts.filter(lambda text: "|" not in text)
rows = st.fixed_dictionaries(
    {"sku": texts},
    optional={
        "brand": keywords,
        "tags": st.lists(keywords, min_size=1, max_size=4),
        "stock": st.integers(-(2**63), 2**63 - 1),
        "price": st.floats(allow_nan=False, allow_infinity=False),
        "active": st.booleans(),
        "added": st.integers(-62_135_596_800_000, 253_402_300_799_999),
        "description": texts,
    },
)


class ListSink:
    """Keeps what it is given."""

    def __init__(self, next_batch: int = 0) -> None:
        self.first = next_batch
        self.batches: list[tuple[str, int, pa.RecordBatch]] = []

    def next_batch(self, import_id: str) -> int:
        return self.first

    def write(self, import_id: str, batch: int, table: pa.RecordBatch) -> None:
        self.batches.append((import_id, batch, table))

    def rows(self) -> list[Row]:
        """All rows, without nulls, times as integer milliseconds."""
        found = []
        for _, _, table in self.batches:
            columns = {}
            for name in table.schema.names:
                column = table.column(name)
                columns[name] = column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
            for row in pa.RecordBatch.from_pydict(columns).to_pylist():
                found.append({name: value for name, value in row.items() if value is not None})
        return found


def write_file(path: Path, rows: list[Row], columns: dict[str, pa.DataType] = COLUMNS) -> Path:
    """Rows in the format that the path's name asks for."""
    if path.suffix == ".parquet":
        cells = {name: pa.array([row.get(name) for row in rows], kind) for name, kind in columns.items()}
        pq.write_table(pa.table(cells), path)
        return path
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        if ".csv" in path.name:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows([[csv_cell(row.get(name)) for name in columns] for row in rows])
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return path


def csv_cell(value: object) -> str:
    if value is None:
        return ""
    return "|".join(value) if isinstance(value, list) else str(value)


def iso(milliseconds: int) -> str:
    return (EPOCH + timedelta(milliseconds=milliseconds)).isoformat()
