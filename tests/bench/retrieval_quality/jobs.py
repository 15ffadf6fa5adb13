"""The jobs world cut at one moment: what was known before it, and the hires after it. Synthetic."""

# M = members, J = jobs

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.data.events import EventTable
from models.data.items import ItemTable
from models.data.jobs.funnel import TYPES, run_funnel
from models.data.jobs.vocabulary import TINY, Vocabulary
from models.data.jobs.world import DAY_MS, START_MS, JobsConfig, JobsWorld
from models.data.schema import FeatureSchema
from models.retrieval.links.labels import LabelConfig
from models.retrieval.links.templates import LinkTemplate
from services.datasets.dataset import Dataset
from services.datasets.downloads import DownloadError
from services.datasets.vocabularies import load_vocabulary
from services.keys import keys_of

DATASET = Path(__file__).parents[3] / "configs" / "jobs.toml"
TEMPLATES = (
    LinkTemplate("title", "title"),
    LinkTemplate("seniority", "seniority"),
    LinkTemplate("industry", "industry"),
    LinkTemplate("region", "region"),
    LinkTemplate("skills", "skills", same=True),
)
LABELS = LabelConfig(confirmed="hire", refused="apply")


@dataclass(frozen=True)
class JobsCase:
    world: JobsWorld
    schema: FeatureSchema
    profiles: list[Mapping[str, object]]
    """One per member."""
    jobs: list[Mapping[str, object]]
    member_keys: NDArray[np.int64]
    job_keys: NDArray[np.int64]
    items: ItemTable
    train: EventTable
    test: EventTable
    split_ms: int
    open: NDArray[np.bool_]
    """bool[J]: posted before the split, and with applicants left to pay for."""


def size_of(*, quick: bool) -> JobsConfig:
    """The world's size."""
    return JobsConfig(
        num_members=25_000 if quick else 120_000,
        num_jobs=5_000 if quick else 20_000,
        num_occupations=65 if quick else 250,
        mean_budget=80.0,
    )


def real_words() -> Vocabulary:
    """O*NET's where they can be had, else ESCO's or the built-in ones."""
    for name in ("onet", "esco"):
        try:
            return load_vocabulary(name)
        except DownloadError as error:
            print(f"vocabulary {name}: {error}")
    return TINY


def make_case(config: JobsConfig, vocabulary: Vocabulary, test_days: int = 8) -> JobsCase:
    """Make the world, and cut it so many days before its end."""
    world = JobsWorld(vocabulary, config)
    print(f"jobs world (SYNTHETIC), words of {vocabulary.name}: {vocabulary.licence}")
    events = run_funnel(world)
    schema = Dataset.load(DATASET).feature_schema()
    member_keys, job_keys = keys_of(world.member_ids()), keys_of(world.job_ids())
    acted = events.types > 0
    table = EventTable.from_columns(
        schema,
        user_keys=member_keys[events.members[acted]],
        item_keys=job_keys[events.jobs[acted]],
        types=np.array(TYPES, dtype=object)[events.types[acted]],
        values=None,
        ts_ms=events.ts_ms[acted],
    )
    split_ms = START_MS + (config.num_days - test_days) * DAY_MS
    train, test = table.split(split_ms)
    applied = (events.types == TYPES.index("apply")) & (events.ts_ms < split_ms)
    paid = np.bincount(events.jobs[applied], minlength=len(world.jobs))
    jobs = [dict(row) for row in world.job_attributes()]
    items = ItemTable(schema)
    items.upsert(job_keys, jobs)
    counts = ", ".join(f"{len(events.of(name)):,} of {name}" for name in TYPES)
    print(f"{len(world.members):,} members, {len(jobs):,} jobs, {len(world.rules.rules):,} rules; {counts}")
    return JobsCase(
        world, schema, [dict(row) for row in world.member_attributes()], list(jobs), member_keys, job_keys, items,
        train, test, split_ms, (world.posted_ms < split_ms) & (paid < world.budgets),
    )  # fmt: skip
