"""Exploration through HTTP: drawn orders, pages that continue, propensities in the log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from models.ranking.exploration import Draws
from services.candidates import Candidates, Plan
from services.datasets.dataset import Dataset, DatasetError
from services.platform import Platform
from services.ranking.client import pack_rank_call, pack_ranking, unpack_rank_call, unpack_ranking
from services.ranking.engine import Ranking
from services.storage.events import Event
from tests.services.serving.world import DATASET, World, running

THOMPSON = 'explore = { kind = "thompson", scale = 3.0, draws = 32 }'
EPSILON = 'explore = { kind = "epsilon_greedy", epsilon = 0.5, draws = 32 }'


def exploring(world: World, folder: Path, line: str) -> World:
    description = folder / "dataset.toml"
    description.write_text(DATASET + line + "\n")
    return replace(world, dataset=description)


@pytest.fixture(scope="module")
def thompson(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Platform, httpx.Client]]:
    folder = tmp_path_factory.mktemp("thompson")
    with running(exploring(world, folder, THOMPSON).settings(folder / "data")) as both:
        yield both


def ask(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post("/v1/recommendations", json={"user_id": "user-1", **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def ids_of(answer: dict[str, Any]) -> list[str]:
    return [item["id"] for item in answer["items"]]


def impressions_of(platform: Platform, answer: dict[str, Any]) -> list[Event]:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        events = [logged.event for logged in platform.storage.events.read(count=100_000)]
        found = [event for event in events if event.recommendation_id == answer["recommendation_id"]]
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("no impressions in time")


def test_orders_are_drawn_anew_and_say_so(thompson: tuple[Platform, httpx.Client]) -> None:
    answers = [ask(thompson[1], limit=20, explain=True) for _ in range(4)]
    assert all(answer["explored"] and not answer["degraded"] for answer in answers)
    assert len({tuple(ids_of(answer)) for answer in answers}) > 1
    for answer in answers:
        scores = [item["score"] for item in answer["items"]]
        assert scores == sorted(scores, reverse=True), "by the drawn value"
        for item in answer["items"]:
            terms = item["explanation"]["value_terms"]
            assert terms["like"] == pytest.approx(item["probabilities"]["like"])
            assert sum(terms.values()) + item["explanation"]["exploration"] == pytest.approx(item["score"])
        assert any(abs(item["explanation"]["exploration"]) > 1e-4 for item in answer["items"])


def test_a_page_continues_the_one_before(thompson: tuple[Platform, httpx.Client]) -> None:
    platform, client = thompson
    for _ in range(3):
        whole = ask(client, limit=20)
        first = whole["recommendation_id"]
        again = ask(client, limit=20, continues=first)
        assert ids_of(again) == ids_of(whole)
        rest = ask(client, limit=10, continues=first, exclude={"item_ids": ids_of(whole)[:10]})
        assert ids_of(rest) == ids_of(whole)[10:]
        assert rest["explored"] and all(event.propensity is None for event in impressions_of(platform, rest))
    response = client.get("/v1/users/user-1/recommendations", params={"continues": first, "limit": 20})
    assert [item["id"] for item in response.json()["items"]] == ids_of(whole)


def test_propensities_are_logged(thompson: tuple[Platform, httpx.Client]) -> None:
    platform, client = thompson
    answer = ask(client, limit=10)
    events = impressions_of(platform, answer)
    assert [event.item_id for event in events] == ids_of(answer)
    chances = [event.propensity for event in events]
    assert all(chance is not None and 1 / 33 <= chance <= 1.0 for chance in chances)
    assert "propensity" not in answer["items"][0]


def test_epsilon_greedy_is_logged_alike(world: World, tmp_path: Path) -> None:
    settings = exploring(world, tmp_path, EPSILON).settings(tmp_path / "data")
    with running(settings) as (platform, client):
        answers = [ask(client, limit=8) for _ in range(3)]
        assert all(answer["explored"] for answer in answers) and len({tuple(ids_of(a)) for a in answers}) > 1
        events = impressions_of(platform, answers[0])
        assert len(events) == 8 and all(event.propensity and event.propensity >= 1 / 33 for event in events)


def test_a_scenario_explores_as_it_says_from_the_next_request_on(platform: Platform, client: httpx.Client) -> None:
    greedy = {"kind": "epsilon_greedy", "epsilon": 0.9, "draws": 16}
    put = client.put("/v1/scenarios/daring", json={"value": "like", "explore": greedy})
    assert put.status_code == 200, put.text
    assert put.json()["explore"] == greedy | {"scale": 0.3}
    assert client.get("/v1/scenarios/daring").json() == put.json()
    assert client.put("/v1/scenarios/careful", json={"value": "like"}).json()["explore"] is None
    answers = [ask(client, limit=8, scenario="daring") for _ in range(3)]
    assert all(answer["explored"] for answer in answers) and len({tuple(ids_of(answer)) for answer in answers}) > 1
    assert all(event.propensity and event.propensity >= 1 / 17 for event in impressions_of(platform, answers[0]))
    for scenario in ("careful", "default"):
        calm = [ask(client, limit=8, scenario=scenario) for _ in range(2)]
        assert not any(answer["explored"] for answer in calm) and ids_of(calm[0]) == ids_of(calm[1])
    assert client.put("/v1/scenarios/daring", json={"value": "like", "explore": False}).json()["explore"] is None
    assert not ask(client, limit=8, scenario="daring")["explored"]


def test_a_scenario_may_leave_the_exploring_of_its_dataset(thompson: tuple[Platform, httpx.Client]) -> None:
    _, client = thompson
    default = client.get("/v1/scenarios/default").json()["explore"]
    assert (default["kind"], default["scale"], default["draws"]) == ("thompson", 3.0, 32)
    client.put("/v1/scenarios/like", json={"value": "like"})
    client.put("/v1/scenarios/still", json={"value": "like", "explore": False})
    assert client.get("/v1/scenarios/like").json()["explore"] == default
    assert ask(client, limit=8, scenario="like")["explored"]
    first, second = (ask(client, limit=8, scenario="still") for _ in range(2))
    assert not first["explored"] and ids_of(first) == ids_of(second)


@pytest.mark.parametrize(
    ("explore", "pointer"),
    [
        ({"kind": "greedy"}, "kind"),
        ({"kind": "thompson", "scale": -1.0}, "scale"),
        ({"kind": "thompson", "scales": 1.0}, "scales"),
        ({"kind": "epsilon_greedy", "epsilon": 1.5}, "epsilon"),
        ({"kind": "thompson", "draws": 0}, "draws"),
        (True, "explore"),
        ("thompson", "explore"),
    ],
)
def test_exploring_that_cannot_be_is_refused_by_name(client: httpx.Client, explore: object, pointer: str) -> None:
    refused = client.put("/v1/scenarios/wrong", json={"value": "like", "explore": explore})
    assert refused.status_code == 422
    assert any(pointer in entry["pointer"] for entry in refused.json()["errors"]), refused.text
    assert client.get("/v1/scenarios/wrong").status_code == 404


def test_without_the_setting_nothing_is_drawn(platform: Platform, client: httpx.Client) -> None:
    first, second = (ask(client, limit=20) for _ in range(2))
    assert ids_of(first) == ids_of(second) and not first["explored"]
    assert all(event.propensity is None for event in impressions_of(platform, first))


def test_a_ranking_process_draws_the_same(thompson: tuple[Platform, httpx.Client]) -> None:
    platform, _ = thompson
    engine = platform.ranking
    assert engine is not None
    keys = engine.items.keys()[:30]
    candidates = Candidates(
        keys=keys,
        scores=np.zeros(30, np.float32),
        sources=np.zeros(30, np.uint32),
        signals=np.zeros((30, 6)),
        plan=Plan(matched=30, scanned=0, rescored=0, strategy="given", exact=True),
        versions={},
    )
    user = platform.storage.state.hydrate("user-1").state
    draws = Draws((1 << 63) - 1, 5, 0.5)
    far = unpack_rank_call(pack_rank_call(user, candidates, 1_800_000_000_000, draws))
    assert far[3] == draws and unpack_rank_call(pack_rank_call(user, candidates, 1))[3] is None
    here = engine.rank(user, candidates, 1_800_000_000_000, draws)
    there = unpack_ranking(pack_ranking(engine.rank(*far)))
    assert here.drawn is not None and there.drawn is not None and here.drawn.shape == (6, 30, 2)
    assert (here.drawn == there.drawn).all()
    plain = engine.rank(user, candidates, 1_800_000_000_000)
    assert plain.drawn is None and np.allclose(plain.probabilities, here.probabilities, atol=1e-6)
    empty = Ranking(probabilities=np.zeros((0, 2), np.float32), tasks=("a", "b"), versions={}, drawn=None)
    assert unpack_ranking(pack_ranking(empty)).drawn is None


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ('explore = { kind = "greedy" }', "ranking.explore.kind"),
        ('explore = { kind = "thompson", scale = -1.0 }', "ranking.explore.scale"),
        (
            'explore = { kind = "thompson", scales = 1.0 }',
            'unknown key, expected one of kind, scale.*did you mean "scale"',
        ),
        ('explore = { kind = "thompson", draws = 0 }', "ranking.explore.draws"),
    ],
)
def test_wrong_settings_are_named(line: str, word: str) -> None:
    with pytest.raises(DatasetError, match=word):
        Dataset.parse(DATASET + line + "\n")
