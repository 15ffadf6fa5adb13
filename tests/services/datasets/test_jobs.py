from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from models.data.jobs.vocabulary import TINY
from models.data.jobs.world import JobsConfig
from services.datasets.dataset import Dataset
from services.datasets.downloads import DownloadError
from services.datasets.jobs import JobsFiles, prepare_jobs
from services.datasets.vocabularies import load_vocabulary

CONFIG = Path(__file__).parents[3] / "configs" / "jobs.toml"
SMALL = JobsConfig(num_members=300, num_jobs=120, num_companies=20, num_days=10, missing_share=0.3)


@pytest.fixture
def files(tmp_path: Path) -> JobsFiles:
    return prepare_jobs(tmp_path, TINY, SMALL)


def test_tables_fit_the_description(files: JobsFiles) -> None:
    dataset = Dataset.load(CONFIG)
    for row in pq.read_table(files.items).drop(["item_id", "posted"]).to_pylist():
        dataset.validate_item(row)
    for row in pq.read_table(files.users).drop(["user_id"]).to_pylist():
        dataset.validate_user(row)
    events = pq.read_table(files.events)
    assert set(events["type"].to_pylist()) == {"click", "apply", "hire"}
    masks = dataset.feature_schema().action_masks(events["type"].to_pylist(), np.full(len(events), np.nan))
    assert (masks != 0).all()
    times = events["ts"].to_pylist()
    assert times == sorted(times)
    assert len(set(events["event_id"].to_pylist())) == len(events)


def test_everything_says_that_it_is_synthetic(files: JobsFiles) -> None:
    for path in (files.items, files.users, files.events):
        assert pq.read_schema(path).metadata[b"licence"].startswith(b"SYNTHETIC")
    for line in files.truth.read_text().splitlines():
        assert json.loads(line)["label"].startswith("SYNTHETIC")
    dataset = Dataset.load(CONFIG)
    assert dataset.name.startswith("synthetic") and "Synthetic" in str(dataset.licence)


def test_the_same_seed_gives_the_same_files(files: JobsFiles, tmp_path: Path) -> None:
    again = prepare_jobs(tmp_path / "again", TINY, SMALL)
    for one, other in ((files.items, again.items), (files.users, again.users), (files.events, again.events)):
        assert pq.read_table(one).equals(pq.read_table(other))


def test_an_unknown_vocabulary_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocabulary 'isco'; expected one of"):
        load_vocabulary("isco")
    wheel = tmp_path / "other.whl"
    wheel.write_bytes(b"PK")
    with pytest.raises(DownloadError, match="not the pinned wheel"):
        load_vocabulary("esco", wheel)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "family"), [("esco", 91, "engineer"), ("onet", 923, "29")])
def test_real_vocabularies(name: str, size: int, family: str) -> None:
    try:
        vocabulary = load_vocabulary(name)
    except DownloadError as error:
        pytest.skip(str(error))
    assert len(vocabulary.occupations) == size
    assert any(occupation.family == family for occupation in vocabulary.occupations)
    assert all(len(set(occupation.skills)) == len(occupation.skills) for occupation in vocabulary.occupations)
