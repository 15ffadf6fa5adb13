"""A tiny world with known tastes, trained models over it, and servers to ask."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import uvicorn
from fastapi import FastAPI

from models.ranking.examples import ExampleConfig
from models.ranking.network import NetworkConfig
from models.ranking.training import RankingConfig, train_ranking
from models.retrieval.towers import TowerConfig
from models.retrieval.training import RetrievalConfig, train_retrieval
from services.clock import system_ms
from services.datasets.dataset import Dataset
from services.platform import Part, Platform, build_platform
from services.settings import Settings
from services.storage.artifacts import Provenance
from services.storage.consumer import ImportMark
from services.storage.events import Event, event_table
from services.storage.storage import Storage
from services.training.data import load_training_data

GENRES = ("Action", "Comedy", "Drama", "Horror", "Romance")
NUM_ITEMS, NUM_USERS, EVENTS_PER_USER = 250, 50, 40
DAY_MS = 86_400_000

DATASET = """
name = "tiny-world"
[items]
title = "title"
[items.attributes]
title = { type = "text", model = true }
genre = { type = "keyword_list", filter = true, model = true }
year = { type = "int", filter = true, model = true }
price = { type = "float", filter = true }
sold_out = { type = "bool", filter = true }
released = { type = "timestamp", filter = true, model = true }
[users.attributes]
age = { type = "int", model = true }
[actions]
view = { event = "view" }
like = { event = "rating", min_value = 4 }
[signals]
actions = ["view", "like"]
half_lives = ["1d", "7d", "all"]
[retrieval]
positive = "like"
[ranking]
tasks = ["view", "like"]
value = { view = 0.25, like = 1.0 }
history_length = 20
"""


def genre_of(item: int) -> str:
    return GENRES[item % len(GENRES)]


def year_of(item: int) -> int:
    return 1980 + item % 40


def favourite(user: int) -> str:
    return GENRES[user % len(GENRES)]


def attributes_of(item: int) -> dict[str, object]:
    return {
        "title": f"Film {item} of {genre_of(item)}",
        "genre": [genre_of(item)] if item % 3 else [genre_of(item), "Classic"],
        "year": year_of(item),
        "price": float(item % 20),
        "sold_out": item % 11 == 0,
        "released": (year_of(item) - 1970) * 365 * DAY_MS,
    }


@dataclass(frozen=True)
class World:
    """A prepared data folder to copy, and its dataset's description."""

    folder: Path
    dataset: Path

    def settings(self, data_dir: Path, **sections: object) -> Settings:
        """Settings over a fresh copy of the world."""
        if not data_dir.exists():
            shutil.copytree(self.folder, data_dir)
        quiet = {"log_level": "error", "port": 0, "max_body_bytes": 200_000}
        patient = {"budget_ms": 5000, "fallback_ms": 1000}
        return Settings.model_validate(
            {
                "dataset": self.dataset,
                "data_dir": data_dir,
                **sections,
                "http": quiet | dict(sections.get("http", {})),  # type: ignore[call-overload]
                "pipeline": patient | dict(sections.get("pipeline", {})),  # type: ignore[call-overload]
            }
        )


def make_world(folder: Path) -> World:
    """Import the tiny world into a data folder, train both models on it and promote them."""
    description = folder / "dataset.toml"
    description.write_text(DATASET)
    dataset = Dataset.load(description)
    schema = dataset.feature_schema()
    with Storage.open(data_dir=folder / "data", role="prepare") as storage:
        storage.items.put_many((f"item-{item}", attributes_of(item)) for item in range(NUM_ITEMS))
        storage.users.put_many((f"user-{user}", {"age": 20 + user}) for user in range(NUM_USERS))
        events = make_events(system_ms())
        storage.archive.write_import("world", 0, events)
        storage.consumer(schema).apply(event_table(schema, events), ImportMark("world", 0))
        data = load_training_data(storage, schema)
        towers = RetrievalConfig(towers=TowerConfig(dim=16), batch_size=128, num_epochs=3.0, easy_negatives=64)
        retrieval = train_retrieval(schema, data.items, data.users, data.events, towers)
        config = RankingConfig(
            network=NetworkConfig(hidden=(16,)),
            examples=ExampleConfig(),
            retrieval=RetrievalConfig(towers=TowerConfig(dim=16), num_epochs=1.0, easy_negatives=64),
            num_epochs=5.0,
        )
        ranking = train_ranking(schema, data.items, data.users, data.events, config)
        for kind, model in (("retrieval", retrieval), ("ranking", ranking)):
            version = storage.artifacts.publish(kind, model.save, Provenance(schema_hash=schema.hash()))
            storage.artifacts.promote(kind, version)
    return World(folder / "data", description)


def make_events(now_ms: int) -> list[Event]:
    """Everybody views and likes the favourite genre, and some of the rest; the newest a day ago."""
    random = np.random.default_rng(7)
    events = []
    for user in range(NUM_USERS):
        liked = [item for item in range(NUM_ITEMS) if genre_of(item) == favourite(user)]
        for number in range(EVENTS_PER_USER):
            loves = random.random() < 0.7
            item = int(random.choice(liked)) if loves else int(random.integers(NUM_ITEMS))
            ts_ms = now_ms - DAY_MS - int(random.integers(30 * DAY_MS))
            kind, value = ("rating", 5.0 if loves else 2.0) if number % 2 else ("view", None)
            events.append(
                Event(
                    event_id=f"import-{user}-{number}",
                    user_id=f"user-{user}",
                    item_id=f"item-{item}",
                    type=kind,
                    value=value,
                    ts_ms=ts_ms,
                )
            )
    return events


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Serve an app on a free port of 127.0.0.1; its URL."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="uvicorn", daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)


@contextmanager
def running(settings: Settings, only: set[Part] | None = None) -> Iterator[tuple[Platform, httpx.Client]]:
    """A started platform, caught up and served, and a client of it."""
    with build_platform(settings, only) as platform, serving(platform.app) as url:
        assert platform.wait_caught_up(20)
        with httpx.Client(base_url=url, timeout=20) as client:
            yield platform, client
