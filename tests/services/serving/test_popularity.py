"""The ranker's popularity offsets follow what is shown and what is done in answer."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from models.ranking.model import RankingModel
from models.ranking.popularity import PopularityOffsets
from services.clock import system_ms
from services.ingest.popularity import CONSUMER
from services.keys import key_of
from services.platform import Platform, build_platform
from services.storage.artifacts import Provenance
from tests.services.processes import start, wait_ready
from tests.services.serving.world import World, running


def test_offsets_follow_the_stream(world: World, tmp_path: Path) -> None:
    settings = world.settings(tmp_path / "data")
    with build_platform(settings) as platform:
        with_popularity(platform)
    with running(settings) as (platform, client):
        assert platform.ranking is not None
        offsets = platform.ranking.model.popularity
        assert offsets is not None
        body = {"user_id": "user-1", "limit": 5}
        first = client.post("/v1/recommendations", json=body).json()
        keys = np.array([key_of(item["id"]) for item in first["items"]])

        def wait(condition) -> None:
            deadline = time.monotonic() + 20
            while not condition(offsets.offsets(keys, system_ms())):
                assert time.monotonic() < deadline, offsets.offsets(keys, system_ms())
                time.sleep(0.01)

        # Shown and not taken: a little less than the model thought.
        wait(lambda found: (found < 0).all())
        winner = first["items"][2]
        body = {
            "events": [
                {
                    "event_id": f"p-{number}", "user_id": f"user-{10 + number}", "item_id": winner["id"],
                    "type": "rating", "value": 5, "recommendation_id": first["recommendation_id"], "position": 3,
                }
                for number in range(30)
            ]
        }  # fmt: skip
        assert client.post("/v1/events", json=body).json()["accepted"] == 30
        wait(lambda found: found[2, 1] > 0.5 and (np.delete(found, 2, 0) < 0).all())
        ask = {"user_id": "user-1", "candidates": [winner["id"]]}
        with_offsets = client.post("/v1/recommendations", json=ask).json()["items"][0]["probabilities"]
        platform.ranking.model.popularity = None
        without = client.post("/v1/recommendations", json=ask).json()["items"][0]["probabilities"]
        platform.ranking.model.popularity = offsets
        assert with_offsets["like"] > without["like"]
        # What nobody was recommended says nothing of what the ranker missed.
        stray = [{k: v for k, v in event.items() if k != "recommendation_id"} for event in body["events"]]
        stray = [event | {"event_id": f"s-{n}", "item_id": first["items"][0]["id"]} for n, event in enumerate(stray)]
        before = offsets.offsets(keys[:1], 0)
        client.post("/v1/events", json={"events": stray})
        last = platform.storage.streams.last_offset("events")
        follower = next(f for f in platform.followers if f.name == "ranking-events")
        deadline = time.monotonic() + 20
        while follower.progress.offset != last:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert (offsets.offsets(keys[:1], 0) == before).all()


def with_popularity(platform: Platform) -> None:
    """Promote the platform's ranker with popularity offsets switched on."""
    registry = platform.storage.artifacts
    assert platform.ranking is not None
    plain = RankingModel.load(registry.open("ranking").folder, platform.ranking.model.schema)
    config = dataclasses.replace(plain.config, popularity=True)
    model = RankingModel(plain.schema, config, plain.network, plain.calibration)
    registry.promote("ranking", registry.publish("ranking", model.save, Provenance()))


def take(client: httpx.Client, prefix: str, number: int = 30) -> str:
    """Show a slate, act on its third item, and return that item."""
    slate = client.post("/v1/recommendations", json={"user_id": "user-1", "limit": 5}).json()
    winner = str(slate["items"][2]["id"])
    events = [
        {
            "event_id": f"{prefix}-{place}", "user_id": f"user-{10 + place}", "item_id": winner, "type": "rating",
            "value": 5, "recommendation_id": slate["recommendation_id"], "position": 3,
        }
        for place in range(number)
    ]  # fmt: skip
    assert client.post("/v1/events", json={"events": events}).json()["accepted"] == number
    return winner


def like_offset(platform: Platform, item: str) -> float:
    """The offset of the item's `like`, in logits."""
    assert platform.ranking is not None and platform.ranking.model.popularity is not None
    return float(platform.ranking.model.popularity.offsets(np.array([key_of(item)]), system_ms())[0, 1])


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_offsets_outlive_kill_9(world: World, tmp_path: Path) -> None:
    """Stored ones are taken up; what came after they were stored is counted again from the log."""
    settings = world.settings(tmp_path / "data", ranking={"offsets_interval_s": 3600.0})
    with build_platform(settings) as platform:
        with_popularity(platform)
    variables = {
        "SHORTLIST_DATASET": str(world.dataset),
        "SHORTLIST_PIPELINE__BUDGET_MS": "5000",
        "SHORTLIST_INGEST__SNAPSHOT_INTERVAL_S": "0.3",  # each of which trims the log
    }
    taken: list[str] = []
    for run, interval_s in enumerate(("0.05", "3600")):
        log = tmp_path / f"{run}.log"
        variables["SHORTLIST_RANKING__OFFSETS_INTERVAL_S"] = interval_s
        with log.open("w") as output:
            process, url = start("serve", data_dir=settings.data_dir, output=output, **variables)
            try:
                wait_ready(process, url, log)
                with httpx.Client(base_url=url, timeout=20.0) as client:
                    taken.append(take(client, f"run-{run}"))
                    time.sleep(1.2)  # stored, by the first process, and the log trimmed as far as may be
            finally:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)
        with build_platform(settings) as platform:
            assert platform.wait_caught_up(20)
            assert all(like_offset(platform, item) > 0.3 for item in taken), (run, taken)
    # Stopped and not killed, the last process has stored what it had.
    with build_platform(settings) as platform:
        stored = platform.storage.ranker_offsets.load()
        assert stored is not None and stored.offset == platform.storage.streams.last_offset("events")
        assert all(like_offset(platform, item) > 0.3 for item in taken)


def test_offsets_go_on_with_another_model(world: World, tmp_path: Path) -> None:
    settings = world.settings(tmp_path / "data", ranking={"reload_interval_s": 0.02})
    with build_platform(settings) as platform:
        with_popularity(platform)
    with running(settings) as (platform, client):
        assert platform.ranking is not None
        first = platform.ranking.model
        item = take(client, "swap")
        wait_until(lambda: like_offset(platform, item) > 0.3)
        config = dataclasses.replace(first.config, popularity=True)
        artifact = platform.storage.artifacts.open("ranking")
        model = RankingModel.load(artifact.folder, first.schema)
        with torch.no_grad():
            model.network.table.weight.mul_(1.0 + 1e-6)
        again = RankingModel(model.schema, config, model.network, model.calibration)
        assert again.popularity is not None and not len(again.popularity)
        registry = platform.storage.artifacts
        registry.promote("ranking", registry.publish("ranking", again.save, Provenance()))
        wait_until(lambda: platform.ranking is not None and platform.ranking.model.version == again.version)
        assert like_offset(platform, item) > 0.3


def test_a_model_without_offsets_keeps_and_holds_nothing(world: World, tmp_path: Path) -> None:
    settings = world.settings(tmp_path / "data")
    with build_platform(settings) as platform:
        with_popularity(platform)
    with running(settings) as (platform, client):
        take(client, "gone", 3)
    with build_platform(settings) as platform:
        assert platform.storage.ranker_offsets.load() is not None
        assert CONSUMER in platform.storage.streams.offsets("events")
        platform.storage.artifacts.rollback("ranking")
    with build_platform(settings) as platform:
        assert platform.storage.ranker_offsets.load() is None
        assert CONSUMER not in platform.storage.streams.offsets("events")


@pytest.mark.parametrize("damage", ["tasks", "bytes", "gap"])
def test_stored_offsets_that_are_of_no_use_begin_anew(world: World, tmp_path: Path, damage: str) -> None:
    settings = world.settings(tmp_path / "data")
    with build_platform(settings) as platform:
        with_popularity(platform)
    with running(settings) as (platform, client):
        take(client, "first", 3)
    with build_platform(settings) as platform:
        store = platform.storage.ranker_offsets
        stored = store.load()
        assert stored is not None
        if damage == "gap":  # another log, or one that has lost its end
            assert store.save("99999999999999-0", stored.content)
        else:
            content = PopularityOffsets(("love",)).to_bytes() if damage == "tasks" else b"nothing"
            assert store.save(stored.offset, content)
    with build_platform(settings) as platform:
        last = platform.storage.streams.last_offset("events")
        assert platform.ranking is not None and platform.ranking.model.popularity is not None
        assert (len(platform.ranking.model.popularity) > 0) == (damage == "gap")
        again = platform.storage.ranker_offsets.load()
        assert again is not None and again.offset == last
        assert platform.storage.streams.offsets("events")[CONSUMER] == last
