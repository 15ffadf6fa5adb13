"""Links served: candidates equal a plain scan with the links' weights, whatever else is asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from index.config import IndexConfig
from index.filter import parse_filter
from index.live import LiveIndex
from models.data.items import ItemTable
from models.data.jobs.vocabulary import TINY
from models.data.jobs.world import JobsConfig, JobsWorld
from models.data.state import UserState
from models.retrieval.links.rows import Link, MetaLink
from models.retrieval.model import RetrievalModel
from models.retrieval.towers import TowerConfig, TwoTowers
from services.candidates import SOURCES, source_names
from services.datasets.dataset import Dataset
from services.keys import keys_of
from services.retrieval.engine import ItemChange, Quotas, RetrievalEngine
from services.retrieval.links import LinkSource

DATASET = Dataset.load(Path(__file__).parents[3] / "configs" / "jobs.toml")
NOW_MS = 1_770_000_000_000
LINKS = [
    Link(pairs=(MetaLink("title", "nurse", "title", "midwife"),), weight=4.0, reach=10),
    Link(
        pairs=(MetaLink("title", "nurse", "title", "nurse"), MetaLink("seniority", "lead", "seniority", "lead")),
        weight=5.0,
    ),
    Link(pairs=(MetaLink("seniority", "lead", "title", "midwife"),), weight=1.5, reach=10),
    Link(pairs=(MetaLink("skills", "SQL", "skills", "SQL"),), weight=2.0, reach=10),
    Link(pairs=(MetaLink("title", "cook", "title", "waiter"),), weight=2.0, reach=10, enabled=False),
]
NURSE = UserState({"title": "nurse", "seniority": "lead", "skills": ["SQL", "triage"]})


@pytest.fixture(scope="module")
def jobs() -> list[Mapping[str, object]]:
    return list(JobsWorld(TINY, JobsConfig(num_members=10, num_jobs=300, num_companies=20)).job_attributes())


@pytest.fixture
def engine(jobs: list[Mapping[str, object]]) -> RetrievalEngine:
    schema = DATASET.feature_schema()
    config = TowerConfig(dim=16, num_heads=1, hidden=16)
    index = LiveIndex(
        IndexConfig(dim=16, schema=DATASET.attribute_schema(), signals=tuple(signal.name for signal in schema.signals))
    )
    engine = RetrievalEngine(
        index=index,
        model=RetrievalModel(schema, config, TwoTowers(schema, config, seed=3)),
        items=ItemTable(schema),
        schema=schema,
        landmark_ms=NOW_MS,
        quotas=Quotas(links=0.5),
    )
    keys = keys_of(f"job 🙂 {place}" for place in range(len(jobs)))
    engine.apply_items([ItemChange(key, row) for key, row in zip(keys.tolist(), jobs, strict=True)])
    engine.links = LinkSource(LINKS, "v1", scale=0.2)
    return engine


def weight_of(link: Link, profile: Mapping[str, object], job: Mapping[str, object]) -> float:
    def has(row: Mapping[str, object], name: str, value: object) -> bool:
        found = row.get(name)
        return value in found if isinstance(found, list) else value == found

    held = all(has(profile, pair.member, pair.value) and has(job, pair.item, pair.item_value) for pair in link.pairs)
    return link.weight if held and link.enabled else 0.0


@pytest.mark.parametrize("text", [None, 'region any_of ["north", "capital"]', 'posted > "2027-01-01T00:00:00Z"'])
@pytest.mark.parametrize("k", [10, 60])
def test_what_links_reach_is_scored_as_a_plain_scan_would(
    engine: RetrievalEngine, jobs: list[Mapping[str, object]], text: str | None, k: int
) -> None:
    condition = parse_filter(text, engine.index.config.schema)
    keys = keys_of(f"job 🙂 {place}" for place in range(len(jobs)))
    excluded = keys[::5]
    query = engine.model.encode_users([NURSE], NOW_MS)[0]
    scored = []
    for place, (key, job) in enumerate(zip(keys.tolist(), jobs, strict=True)):
        weight = sum(weight_of(link, NURSE.profile, job) for link in LINKS)
        if weight and place % 5 and (condition is None or condition.matches(job)):
            vector = engine.index.vectors(np.array([key]))[0][0]
            scored.append((-(float(vector @ query) + 0.2 * weight), key))
    expected = {key for _, key in sorted(scored)[: k // 2]}
    found = engine.retrieve(NURSE, NOW_MS, k, condition, excluded)
    by_links = {
        key
        for key, mask in zip(found.keys.tolist(), found.sources.tolist(), strict=True)
        if "links" in source_names(mask)
    }
    assert by_links == expected
    assert not set(found.keys.tolist()) & set(excluded.tolist())
    assert len(found) == min(k, found.plan.matched)
    assert found.versions["links"] == "v1"


def test_a_member_without_links_is_answered_by_the_others(engine: RetrievalEngine) -> None:
    for profile in ({}, {"title": "astronaut"}, {"title": "cook"}):
        found = engine.retrieve(UserState(profile), NOW_MS, 20)
        assert len(found) == 20
        assert all("links" not in source_names(mask) for mask in found.sources.tolist())
    engine.links = None
    assert "links" not in engine.versions()


def test_other_links_take_their_place_at_the_next_request(engine: RetrievalEngine) -> None:
    before = engine.retrieve(UserState({"title": "cook"}), NOW_MS, 20)
    engine.links = LinkSource([LINKS[-1].edited(enabled=True)], "v2", scale=0.2)
    after = engine.retrieve(UserState({"title": "cook"}), NOW_MS, 20)
    bit = 1 << SOURCES.index("links")
    assert not (before.sources & bit).any() and (after.sources & bit).any()
    assert after.versions["links"] == "v2"


def test_an_item_put_now_is_reached_by_the_next_request(engine: RetrievalEngine) -> None:
    key = int(keys_of(["new 🙂"])[0])
    engine.apply_items([ItemChange(key, {"title": "nurse", "seniority": "lead"})])
    found = engine.retrieve(NURSE, NOW_MS, 300)
    assert "links" in source_names(int(found.sources[found.keys.tolist().index(key)]))
    engine.apply_items([ItemChange(key, {"title": "waiter"})])
    found = engine.retrieve(NURSE, NOW_MS, 301)
    assert "links" not in source_names(int(found.sources[found.keys.tolist().index(key)]))
