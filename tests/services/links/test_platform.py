"""Links in a running retrieval process: taken into use, replaced by an edit, kept where the next are unusable."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from models.data.jobs.vocabulary import TINY
from models.data.jobs.world import JobsConfig
from models.data.state import UserState
from models.retrieval.links.rows import Link, MetaLink
from models.retrieval.model import RetrievalModel
from models.retrieval.towers import TowerConfig, TwoTowers
from services.candidates import source_names
from services.datasets.dataset import Dataset
from services.datasets.jobs import prepare_jobs
from services.importing.run import run_import
from services.links.artifact import publish_links
from services.links.commands import edit_links
from services.platform import Platform, build_platform
from services.settings import Settings
from services.storage.artifacts import ArtifactRegistry, Provenance

JOBS = Path(__file__).parents[3] / "configs" / "jobs.toml"
NURSE = UserState({"title": "nurse"})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    files = prepare_jobs(tmp_path / "files", TINY, JobsConfig(num_members=50, num_jobs=120, num_companies=9))
    settings = Settings.model_validate(
        {"dataset": JOBS, "data_dir": tmp_path / "data", "ranking": {"reload_interval_s": 0.05}}
    )
    run_import(settings, "items", files.items)
    schema = Dataset.load(JOBS).feature_schema()
    config = TowerConfig(dim=16, num_heads=1, hidden=16)
    model = RetrievalModel(schema, config, TwoTowers(schema, config, seed=1))
    registry = ArtifactRegistry(tmp_path / "data" / "artifacts")
    version = registry.publish("retrieval", model.save, Provenance(config=asdict(config), schema_hash=schema.hash()))
    registry.promote("retrieval", version)
    return settings


def from_links(platform: Platform) -> int:
    assert platform.retrieval is not None
    found = platform.retrieval.retrieve(NURSE, platform.storage.clock.now_ms(), 40)
    return sum("links" in source_names(mask) for mask in found.sources.tolist())


def wait(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_links_come_and_go_while_retrieval_serves(settings: Settings) -> None:
    midwife = Link(pairs=(MetaLink("title", "nurse", "title", "midwife"),), weight=2.0, reach=10)
    with build_platform(settings, {"retrieval"}) as platform:
        engine, registry = platform.retrieval, platform.storage.artifacts
        assert engine is not None and engine.links is None and from_links(platform) == 0
        first = publish_links(registry, [midwife], Provenance())
        assert wait(lambda: engine.links is not None and engine.links.version == first)
        assert from_links(platform) > 0 and engine.versions()["links"] == first
        edit_links(settings, file=None, off=[midwife.id], on=[], weights=[])
        assert wait(lambda: from_links(platform) == 0)
        second = engine.versions()["links"]
        publish_links(registry, [Link(pairs=(MetaLink("title", "nurse", "pay", "high"),), weight=1.0)], Provenance())
        (reloader,) = (reloader for reloader in platform.reloaders if reloader.kind == "links")
        assert wait(lambda: reloader.refused is not None)
        assert "no item attribute 'pay'" in str(reloader.refused) and engine.versions()["links"] == second
    with build_platform(settings, {"retrieval"}) as platform:  # starts without the links that it cannot use
        assert platform.retrieval is not None and platform.retrieval.links is None
        assert registry.rollback("links") == second
        assert wait(lambda: platform.retrieval is not None and platform.retrieval.links is not None)
