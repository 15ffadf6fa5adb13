"""Value functions edited while requests run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from services.platform import Platform
from tests.services.serving.world import World, running


@pytest.fixture
def clean(client: httpx.Client) -> Iterator[httpx.Client]:
    """The module's platform, without scenarios of other tests."""
    yield client
    for scenario in client.get("/v1/scenarios").json()["scenarios"]:
        client.delete(f"/v1/scenarios/{scenario['name']}")


def recommend(client: httpx.Client, **more: object) -> dict:
    answer = client.post("/v1/recommendations", json={"user_id": "user-1", "limit": 50, "explain": True, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_dataset_speaks_until_a_scenario_is_stored(clean: httpx.Client) -> None:
    assert clean.get("/v1/scenarios").json() == {
        "scenarios": [{"name": "default", "version": 0, "value": "0.25 * view + 1.0 * like", "explore": None}]
    }
    assert recommend(clean)["served"]["value"] == "default/0"


def test_an_edit_orders_the_next_slate(clean: httpx.Client) -> None:
    put = clean.put("/v1/scenarios/default", json={"value": "like * view - 0.001 * log(1 + view.7d)"})
    assert put.status_code == 200 and put.headers["ETag"].strip('"') == str(put.json()["version"])
    answer = recommend(clean)
    assert answer["served"]["value"] == f"default/{put.json()['version']}"
    scores = [item["score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    for item in answer["items"]:
        terms = item["explanation"]["value_terms"]
        assert list(terms) == ["like * view", "-0.001 * log(1 + view.7d)"]
        assert terms["like * view"] == pytest.approx(item["probabilities"]["like"] * item["probabilities"]["view"])
        assert sum(terms.values()) == pytest.approx(item["score"])
    assert clean.delete("/v1/scenarios/default").status_code == 204
    assert recommend(clean)["served"]["value"] == "default/0"


def test_scenarios_stand_beside_one_another(clean: httpx.Client) -> None:
    clean.put("/v1/scenarios/views", json={"value": {"view": 1.0}})
    clean.put("/v1/scenarios/dislikes", json={"value": "-like"})
    views, dislikes = recommend(clean, scenario="views"), recommend(clean, scenario="dislikes")
    short = clean.get("/v1/users/user-1/recommendations", params={"scenario": "views"}).json()
    assert short["served"]["value"] == views["served"]["value"] == "views/1"
    by_view = [item["probabilities"]["view"] for item in views["items"]]
    assert by_view == sorted(by_view, reverse=True)
    by_like = [item["probabilities"]["like"] for item in dislikes["items"]]
    assert by_like == sorted(by_like)
    assert clean.get("/v1/scenarios/views").json()["value"] == "1.0 * view"


def test_values_that_are_no_number_come_last(clean: httpx.Client) -> None:
    clean.put("/v1/scenarios/odd", json={"value": "log(like - 0.05)"})
    scores = [item["score"] for item in recommend(clean, scenario="odd", limit=200)["items"]]
    assert scores == sorted(scores, reverse=True) and scores[-1] < -1e300


@pytest.mark.parametrize(
    ("value", "at", "words"),
    [
        ("lik + view", "char 0", "did you mean 'like'?"),
        ("view + like.7", "char 7", "did you mean 'like.7d'?"),
        ("view +", "char 6", "the end"),
        ({"lik": 1.0}, None, "'lik'"),
        ({}, None, "no weights"),
    ],
)
def test_what_cannot_be_used_is_refused_and_changes_nothing(
    clean: httpx.Client, value: object, at: str | None, words: str
) -> None:
    refused = clean.put("/v1/scenarios/default", json={"value": value})
    assert refused.status_code == 422 and refused.json()["type"] == "/problems/invalid-value"
    (entry,) = refused.json()["errors"]
    assert entry["pointer"] == "/value" and entry.get("at") == at and words in entry["detail"]
    assert recommend(clean)["served"]["value"] == "default/0"


def test_a_scenario_that_is_not_there_is_told_with_the_nearest(clean: httpx.Client) -> None:
    clean.put("/v1/scenarios/evening", json={"value": "like"})
    body = {"user_id": "user-1", "scenario": "evning"}
    problem = clean.post("/v1/recommendations", json=body).json()
    assert problem["status"] == 422 and problem["errors"][0]["pointer"] == "/scenario"
    assert "did you mean 'evening'?" in problem["detail"]
    assert clean.get("/v1/scenarios/evning").status_code == 404
    assert clean.delete("/v1/scenarios/evning").status_code == 404
    assert clean.put("/v1/scenarios/no%20name", json={"value": "like"}).status_code == 422


def test_two_editors_do_not_overwrite_one_another(clean: httpx.Client) -> None:
    fresh = {"If-Match": '"0"'}
    first = clean.put("/v1/scenarios/shared", json={"value": "like"}, headers=fresh)
    assert first.status_code == 200
    late = clean.put("/v1/scenarios/shared", json={"value": "view"}, headers=fresh)
    assert late.status_code == 409 and late.json()["actual"] == first.json()["version"]
    over_it = {"If-Match": first.headers["ETag"]}
    assert clean.put("/v1/scenarios/shared", json={"value": "view"}, headers=over_it).is_success
    assert clean.get("/v1/scenarios/shared").json()["value"] == "view"


def test_an_edit_survives_a_restart_and_reaches_other_gateways(
    clean: httpx.Client, platform: Platform, world: World, tmp_path: Path
) -> None:
    """Another gateway over the same log knows within its interval."""
    clean.put("/v1/scenarios/default", json={"value": "3 * like"})
    assert platform.storage.server is not None and platform.scenarios is not None
    settings = world.settings(
        tmp_path / "other", redis_url=platform.storage.server.url, pipeline={"scenarios_interval_s": 0.02}
    )
    with running(settings, {"gateway", "retrieval", "ranking", "ingest"}) as (other, client):
        assert client.get("/v1/scenarios/default").json()["value"] == "3 * like"
        clean.put("/v1/scenarios/default", json={"value": "4 * like"})
        deadline = time.monotonic() + 10
        while client.get("/v1/scenarios/default").json()["value"] != "4 * like":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        # What another version of us stored, and this one cannot read, leaves the last usable value.
        other.storage.scenarios.put("default", "5 * nothing")
        while "not usable" not in client.get("/readyz").json()["dependencies"]["scenarios"]["detail"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert client.get("/v1/scenarios/default").json()["value"] == "4 * like"
        assert "shortlist_scenarios_refused 1.0" in client.get("/metrics").text
