"""What happens when a stage fails or runs out of time, and when storage goes away and comes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.platform import Platform
from services.ranking.engine import RankingEngine
from services.retrieval.engine import RetrievalEngine
from services.storage.server import EmbeddedServer
from tests.services.serving.world import World, running


def ask(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post("/v1/recommendations", json={"user_id": "user-1", **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def stages(answer: dict[str, Any]) -> list[str]:
    return [entry["stage"] for entry in answer["degraded"]]


def slow(*_: object, **__: object) -> Any:
    time.sleep(0.4)
    raise AssertionError("nobody waits for this")


def broken(*_: object, **__: object) -> Any:
    raise RuntimeError("broken on purpose")


@pytest.mark.parametrize("fault", [slow, broken])
def test_rank_falls_back_to_retrieval_order(client: httpx.Client, monkeypatch: pytest.MonkeyPatch, fault: Any) -> None:
    monkeypatch.setattr(RankingEngine, "rank", fault)
    answer = ask(client, limit=8, budget_ms=300)
    assert stages(answer) == ["rank"] and answer["degraded"][0]["used"] == "the retrieval order"
    assert ("300 ms" if fault is slow else "RuntimeError") in answer["degraded"][0]["reason"]
    scores = [item["score"] for item in answer["items"]]
    assert len(scores) == 8 and scores == sorted(scores, reverse=True)
    assert answer["items"][0]["probabilities"] is None
    assert answer["served"]["ranker"] is None and answer["served"]["retrieval_model"]


@pytest.mark.parametrize("fault", [slow, broken])
def test_retrieve_falls_back_to_popular_items_that_match(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    monkeypatch.setattr(RetrievalEngine, "retrieve", fault)
    answer = ask(client, limit=8, budget_ms=300, filter="year >= 2000", include=["metadata", "sources", "scores"])
    assert stages(answer) == ["retrieve"] and "popular" in answer["degraded"][0]["used"]
    assert len(answer["items"]) == 8
    assert all(item["metadata"]["year"] >= 2000 and item["sources"] == ["popular"] for item in answer["items"])
    assert answer["items"][0]["probabilities"] is not None, "the ranker still works"
    assert answer["filter_plan"]["exact"] is False
    assert answer["served"]["index"] is None and answer["served"]["ranker"]


def test_hydrate_falls_back_to_a_user_nothing_is_known_of(
    platform: Platform, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform.storage.state, "hydrate", broken)
    answer = ask(client)
    assert stages(answer) == ["hydrate"] and answer["cold_start"] is True and len(answer["items"]) == 10


def test_an_exhausted_budget_is_named_stage_by_stage(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(run: Callable[..., Any]) -> Callable[..., Any]:
        def run_late(*arguments: Any) -> Any:
            time.sleep(0.05)
            return run(*arguments)

        return run_late

    monkeypatch.setattr(RetrievalEngine, "retrieve", late(RetrievalEngine.retrieve))
    monkeypatch.setattr(RankingEngine, "rank", late(RankingEngine.rank))
    answer = ask(client, budget_ms=20)
    assert stages(answer)[-2:] == ["retrieve", "rank"], "on a busy machine hydrate may be late as well"
    assert len(answer["items"]) == 10
    metrics = client.get("/metrics").text
    assert 'shortlist_degraded_total{cause="timeout",stage="rank"}' in metrics


def test_given_candidates_survive_a_broken_index(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RetrievalEngine, "score", broken)
    given = ["item-9", "item-4", "item-6"]
    answer = ask(client, candidates=given)
    assert stages(answer) == ["retrieve"]
    assert sorted(item["id"] for item in answer["items"]) == sorted(given)


def test_no_ids_in_time_is_504(
    platform: Platform, client: httpx.Client, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform.storage.items, "ids_of", lambda keys: time.sleep(1.3))
    response = client.post("/v1/recommendations", json={"user_id": "user-1", "budget_ms": 20})
    assert response.status_code == 504
    assert response.json()["type"] == "/problems/over-budget"
    assert response.headers["content-type"] == "application/problem+json"


def test_items_deleted_a_moment_ago_leave_no_hole(platform: Platform, client: httpx.Client) -> None:
    """The index may still hold what storage has deleted: such keys have no id, and the next ones move up."""
    answer = ask(client, limit=5)
    first = answer["items"][0]["id"]
    document = platform.storage.items.get(first)
    assert document is not None
    raw = platform.storage.client.call("HGET", platform.storage.items.documents_name, _packed(document.key))
    platform.storage.client.call("HDEL", platform.storage.items.documents_name, _packed(document.key))
    try:
        again = ask(client, limit=5)
        assert len(again["items"]) == 5 and first not in [item["id"] for item in again["items"]]
    finally:
        platform.storage.client.call("HSET", platform.storage.items.documents_name, _packed(document.key), raw)


def _packed(key: int) -> bytes:
    return key.to_bytes(8, "little", signed=True)


@pytest.fixture
def away(world: World, tmp_path: Path) -> Iterator[tuple[EmbeddedServer, Platform, httpx.Client]]:
    """A platform whose log is a server of its own, which a test may stop and start."""
    settings = world.settings(tmp_path / "data")
    server = EmbeddedServer(tmp_path / "data")
    server.start()
    try:
        with running(settings.model_copy(update={"redis_url": server.url})) as (platform, client):
            yield server, platform, client
    finally:
        server.stop()


def test_storage_goes_away_and_comes_back(away: tuple[EmbeddedServer, Platform, httpx.Client], tmp_path: Path) -> None:
    server, platform, client = away
    body = {"attributes": {"genre": ["Back"]}}
    assert client.put("/v1/items/back?wait_for=visible", json=body).json()["visible"] is True
    server.stop()
    event = {"event_id": "e", "user_id": "u", "item_id": "item-1", "type": "view"}
    for response in (
        client.post("/v1/recommendations", json={"user_id": "user-1"}),
        client.get("/v1/users/user-1/recommendations"),
        client.get("/v1/items/item-1"),
        client.put("/v1/items/back", json=body),
        client.post("/v1/events", json={"events": [event]}),
    ):
        assert response.status_code == 503, response.text
        assert response.headers["retry-after"] == "1"
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["dependency"] == "storage"
    ready = client.get("/readyz")
    assert ready.status_code == 503 and ready.json()["dependencies"]["storage"]["ready"] is False
    assert client.get("/healthz").status_code == 200

    deadline = time.monotonic() + 10
    while client.get("/readyz").json()["dependencies"]["follower retrieval-items"]["ready"]:
        assert time.monotonic() < deadline, "a follower without its server is not told"
        time.sleep(0.02)
    again = EmbeddedServer(tmp_path / "data")
    again.start()
    try:
        while client.get("/readyz").status_code != 200:
            assert time.monotonic() < deadline + 10, client.get("/readyz").text
            time.sleep(0.05)
        body = {"attributes": {"genre": ["Again"]}}
        assert client.put("/v1/items/back?wait_for=visible&timeout_ms=5000", json=body).json()["visible"] is True
        answer = ask(client, filter='genre any_of ["Again"]')
        assert [item["id"] for item in answer["items"]] == ["back"] and answer["degraded"] == []
        assert "shortlist_follower_errors_total" in client.get("/metrics").text
    finally:
        platform.stop()
        again.stop()
