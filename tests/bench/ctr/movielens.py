"""MovieLens-100k as an impression log: a rated film was shown, liking it (4 or 5 stars) is the label."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from models.data.events import EventTable
from models.data.items import ItemTable
from services.datasets.dataset import Dataset
from services.datasets.movielens import prepare_movielens
from services.keys import keys_of
from tests.bench.ctr.log import ImpressionLog, Request

CONFIG = Path(__file__).parents[3] / "configs" / "movielens.toml"
TASKS = ("like", "love")  # every film shown was watched: "watch" says nothing here
WARM_UP = 0.1
"""Share of the ratings, the oldest, that are history only."""
SPLITS = (0.7, 0.8, 0.9)


def movielens_log(folder: Path) -> ImpressionLog:
    """Build the log; the files are written to `folder`.

    A request is what one member rated in one second, the resolution of the data's clock: such films were on one page.
    Which films are rated is the member's choice, not a ranking's: this measures telling liked from disliked among them.
    """
    files = prepare_movielens(folder)
    dataset = Dataset.load(CONFIG)
    schema = replace(dataset.feature_schema(), tasks=TASKS)
    films, people, ratings = (pq.read_table(path) for path in (files.items, files.users, files.events))
    items = ItemTable(schema)
    attributes = films.drop(["item_id", "released"]).to_pylist()
    items.upsert(keys_of(films["item_id"].to_pylist()), attributes)
    users = dict(
        zip(
            keys_of(people["user_id"].to_pylist()).tolist(),
            people.drop(["user_id", "zip_code"]).to_pylist(),
            strict=True,
        )
    )
    events = EventTable.from_columns(
        schema,
        user_keys=keys_of(ratings["user_id"].to_pylist()),
        item_keys=keys_of(ratings["item_id"].to_pylist()),
        types=ratings["type"].to_pylist(),
        values=ratings["value"].to_numpy(),
        ts_ms=ratings["ts"].cast("int64").to_numpy(),
    )
    shown = events.between(events.quantile_ms(WARM_UP), None)
    order = np.lexsort((shown.user_keys, shown.ts_ms))
    shown = shown.take(order)
    starts = np.flatnonzero((np.diff(shown.ts_ms) != 0) | (np.diff(shown.user_keys) != 0)) + 1
    bits = np.array([schema.bit(task) for task in TASKS], dtype=np.uint32)
    labels = ((shown.action_masks[:, None] >> bits) & np.uint32(1)).astype(np.bool_)
    requests = [
        Request(
            int(shown.user_keys[rows[0]]),
            int(shown.ts_ms[rows[0]]),
            shown.item_keys[rows],
            labels[rows],
            np.zeros((len(rows), 0), dtype=np.float32),
        )
        for rows in np.split(np.arange(len(shown)), starts)
    ]
    return ImpressionLog(
        name="MovieLens-100k",
        schema=schema,
        items=items,
        users=users,
        events=events,
        requests=requests,
        splits_ms=tuple(events.quantile_ms(share) for share in SPLITS),  # type: ignore[arg-type]
    )
