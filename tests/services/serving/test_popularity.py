"""The ranker's popularity offsets follow what is shown and what is done in answer."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np

from models.ranking.model import RankingModel
from services.clock import system_ms
from services.keys import key_of
from services.platform import build_platform
from services.storage.artifacts import Provenance
from tests.services.serving.world import World, running


def test_offsets_follow_the_stream(world: World, tmp_path: Path) -> None:
    settings = world.settings(tmp_path / "data")
    with build_platform(settings) as platform:
        registry = platform.storage.artifacts
        assert platform.ranking is not None
        plain = RankingModel.load(registry.open("ranking").folder, platform.ranking.model.schema)
        config = dataclasses.replace(plain.config, popularity=True)
        model = RankingModel(plain.schema, config, plain.network, plain.calibration)
        registry.promote("ranking", registry.publish("ranking", model.save, Provenance()))
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
