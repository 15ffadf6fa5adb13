"""A small world whose preferences are known: members of three tastes among items of three genres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.data.events import EventTable
from models.data.items import ItemTable
from models.data.schema import Action, Feature, FeatureSchema, Signal

DAY_MS = 86_400_000
MINUTE_MS = 60_000
GENRES = ("comedy", "drama", "horror")

SCHEMA = FeatureSchema(
    item=(
        Feature("title", "text"),
        Feature("genre", "keyword_list"),
        Feature("year", "number"),
        Feature("released", "timestamp"),
    ),
    user=(Feature("age", "number"), Feature("country", "keyword")),
    actions=(Action("watch", "rating"), Action("like", "rating", 4.0)),
    signals=(
        Signal("watch.1d", "watch", DAY_MS),
        Signal("watch.all", "watch", None),
        Signal("like.1d", "like", DAY_MS),
        Signal("like.all", "like", None),
    ),
    positive="like",
    tasks=("watch", "like"),
    history_length=20,
)


@dataclass(frozen=True)
class World:
    items: ItemTable
    users: dict[int, dict[str, object]]
    events: EventTable
    taste: dict[int, int]
    """Which genre a member likes."""
    genre: dict[int, int]


def make_world(num_items: int = 90, num_users: int = 120, per_user: int = 16, seed: int = 0) -> World:
    """Members watch 80 % of their own genre, and like exactly what is of it. Item 0 of each genre is watched most."""
    random = np.random.default_rng(seed)
    item_keys = random.integers(-(1 << 63), (1 << 63) - 1, size=num_items)
    user_keys = random.integers(-(1 << 63), (1 << 63) - 1, size=num_users)
    genre = {int(key): place % 3 for place, key in enumerate(item_keys)}
    taste = {int(key): place % 3 for place, key in enumerate(user_keys)}
    items = ItemTable(SCHEMA)
    items.upsert(
        item_keys,
        [
            {"title": f"number {place}", "genre": [GENRES[place % 3]], "year": 1990 + place % 7, "released": 0}
            for place in range(num_items)
        ],
    )
    columns: list[tuple[int, int, float, int]] = []
    by_genre = [item_keys[place::3] for place in range(3)]
    for user in user_keys.tolist():
        start_ms = int(random.integers(0, 30 * DAY_MS))
        seen: set[int] = set()
        for step in range(per_user):
            of = taste[user] if random.random() < 0.8 else int(random.integers(0, 3))
            key = int(random.choice(by_genre[of]))
            if key in seen:
                continue
            seen.add(key)
            value = 5.0 if of == taste[user] else 2.0
            columns.append((user, key, value, start_ms + step * MINUTE_MS + (step // 4) * 6 * DAY_MS))
    users, keys, values, times = (list(column) for column in zip(*columns, strict=True))
    events = EventTable.from_columns(
        SCHEMA,
        user_keys=np.array(users),
        item_keys=np.array(keys),
        types=["rating"] * len(users),
        values=np.array(values),
        ts_ms=np.array(times),
    )
    profiles: dict[int, dict[str, object]] = {int(key): {"age": 20 + place % 50} for place, key in enumerate(user_keys)}
    return World(items, profiles, events, taste, genre)
