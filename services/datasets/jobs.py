"""The synthetic jobs world as three Parquet files with our columns: items, users, events.

    python -m services.datasets.jobs FOLDER [--vocabulary tiny|onet|esco] [--members N] [--jobs N] [--seed N]

Everything in it is synthetic but the words of its vocabulary; every file says so in its metadata. The columns fit
`configs/jobs.toml`; each file can be given to `shortlist import`. `truth.jsonl` beside them holds the rules that
qualify: nothing that serves or trains reads it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from models.data.jobs.funnel import TYPES, FunnelEvents, run_funnel
from models.data.jobs.vocabulary import Vocabulary
from models.data.jobs.world import JobsConfig, JobsWorld
from services.datasets.vocabularies import VOCABULARIES, load_vocabulary

LABEL = "SYNTHETIC: made by Shortlist's generator of a jobs world; no person, company or job in it exists."


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsFiles:
    """Where the files are, and the line to show with them."""

    items: Path
    users: Path
    events: Path
    truth: Path
    licence: str


def prepare_jobs(
    folder: Path, vocabulary: Vocabulary, config: JobsConfig | None = None, *, impressions: bool = False
) -> JobsFiles:
    """Write items.parquet, users.parquet, events.parquet (oldest first) and truth.jsonl into `folder`.

    impressions: write the events of what was only shown too; they are no action of `configs/jobs.toml`.
    The same vocabulary and config give the same files.
    """
    world = JobsWorld(vocabulary, config)
    tables = jobs_tables(world, run_funnel(world), impressions=impressions)
    folder.mkdir(parents=True, exist_ok=True)
    licence = f"{LABEL} Words: {vocabulary.licence}"
    for name, table in tables.items():
        scratch = folder / f"{name}.parquet.tmp"
        pq.write_table(table.replace_schema_metadata({"licence": licence}), scratch)
        os.replace(scratch, folder / f"{name}.parquet")
    rules = [{"label": LABEL, "pairs": rule.pairs, "weight": rule.weight} for rule in world.rules.rules]
    truth = folder / "truth.jsonl"
    truth.write_text("".join(json.dumps(rule, ensure_ascii=False) + "\n" for rule in rules), encoding="utf-8")
    return JobsFiles(
        items=folder / "items.parquet",
        users=folder / "users.parquet",
        events=folder / "events.parquet",
        truth=truth,
        licence=licence,
    )


def jobs_tables(world: JobsWorld, events: FunnelEvents, *, impressions: bool = False) -> dict[str, pa.Table]:
    """Return the three tables of a world and its events."""
    members, jobs = world.member_ids(), world.job_ids()
    items = pa.Table.from_pylist(
        [{"item_id": name} | row for name, row in zip(jobs, world.job_attributes(), strict=True)], _ITEMS
    )
    users = pa.Table.from_pylist(
        [{"user_id": name} | row for name, row in zip(members, world.member_attributes(), strict=True)], _USERS
    )
    kept = (events.types != TYPES.index("impression")) | impressions
    types = events.types[kept]
    table = pa.table(
        {
            "event_id": pa.array([f"jobs-{world.config.seed}-{row}" for row in range(len(types))]),
            "user_id": pa.array([members[code] for code in events.members[kept]]),
            "item_id": pa.array([jobs[code] for code in events.jobs[kept]]),
            "type": pa.array([TYPES[code] for code in types]),
            "ts": pa.array(events.ts_ms[kept]).cast(pa.timestamp("ms", tz="UTC")),
            # Places count from 1 in a log; a hire has none.
            "position": pa.array(events.positions[kept] + 1, pa.int32(), mask=events.positions[kept] < 0),
        }
    )
    return {"items": items, "users": users, "events": table}


def _fields(*names: str) -> list[pa.Field[Any]]:
    return [pa.field(name, pa.list_(pa.string()) if name == "skills" else pa.string()) for name in names]


_ITEMS = pa.schema(
    [
        *_fields("item_id", "headline", "title", "seniority", "industry", "region", "skills", "company"),
        pa.field("posted", pa.timestamp("ms", tz="UTC")),
    ]
)
_USERS = pa.schema(_fields("user_id", "title", "seniority", "industry", "region", "skills"))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=LABEL)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vocabulary", choices=VOCABULARIES, default="tiny")
    default = JobsConfig()
    parser.add_argument("--members", type=int, default=default.num_members)
    parser.add_argument("--jobs", type=int, default=default.num_jobs)
    parser.add_argument("--occupations", type=int, default=default.num_occupations)
    parser.add_argument("--impressions", action="store_true", help="write what was only shown too")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    config = JobsConfig(
        num_members=given.members, num_jobs=given.jobs, num_occupations=given.occupations, seed=given.seed
    )
    files = prepare_jobs(given.folder, load_vocabulary(given.vocabulary), config, impressions=given.impressions)
    sys.stdout.write(f"{files.licence}\n{files.items}\n{files.users}\n{files.events}\n{files.truth}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
