"""The same platform as four processes' worth of parts over HTTP answers the same."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.platform import Part, Platform, build_platform
from services.settings import SettingsError
from services.storage.server import EmbeddedServer
from tests.services.serving.world import World, running


@pytest.fixture(scope="module")
def both(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[httpx.Client, httpx.Client, dict[str, Platform]]]:
    """A client of a gateway with its engines in the same process, and one of a gateway over remote parts."""
    data_dir = tmp_path_factory.mktemp("remote") / "data"
    settings = world.settings(data_dir, pipeline={"log_impressions": False})
    server = EmbeddedServer(data_dir)
    server.start()
    secured = settings.model_copy(update={"redis_url": server.url, "api_key": _secret("between-us")})
    try:
        with ExitStack() as stack:
            key = {"Authorization": "Bearer between-us"}
            parts: dict[str, Platform] = {}
            urls: dict[Part, str] = {}
            for part in ("retrieval", "ranking", "ingest"):
                platform, client = stack.enter_context(running(secured, {part}))  # type: ignore[arg-type]
                parts[part], urls[part] = platform, str(client.base_url)  # type: ignore[index]
            sections = {part: getattr(secured, part).model_copy(update={"url": url}) for part, url in urls.items()}
            gateway, remote = stack.enter_context(running(secured.model_copy(update=sections), {"gateway"}))
            parts["gateway"] = gateway
            near = secured.model_copy(update={"ingest": sections["ingest"]})
            _, local = stack.enter_context(running(near, {"gateway", "retrieval", "ranking"}))
            for client in (remote, local):
                client.headers.update(key)
            yield local, remote, parts
    finally:
        server.stop()


def _secret(text: str) -> Any:
    from pydantic import SecretStr

    return SecretStr(text)


def comparable(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in ("recommendation_id", "timings")}


QUESTIONS: list[dict[str, Any]] = [
    {"user_id": "user-1", "limit": 50, "include": ["metadata", "scores", "sources"]},
    {"user_id": "user-2", "limit": 20, "filter": 'genre any_of ["Comedy"] and not (year < 1990)'},
    {"user_id": "user-3", "exclude": {"seen": False, "item_ids": ["item-1", "item-2"]}, "limit": 200},
    {"user_id": "nobody"},
    {"user_id": "user-4", "candidates": ["item-5", "item-6", "item-7", "item-9"]},
    {"session": {"events": [{"item_id": "item-3", "type": "rating", "value": 5, "ts": 1700000000000}]}},
    {"user_id": "user-5", "filter": "year > 3000"},
]


@pytest.mark.parametrize("question", QUESTIONS)
def test_remote_parts_answer_the_same(
    both: tuple[httpx.Client, httpx.Client, dict[str, Platform]],
    question: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    local, remote, parts = both
    now_ms = parts["gateway"].storage.clock.now_ms()
    monkeypatch.setattr("services.clock.Clock.now_ms", lambda _: now_ms)
    answers = [client.post("/v1/recommendations", json=question).json() for client in (local, remote)]
    assert comparable(answers[0]) == comparable(answers[1])
    assert answers[1]["degraded"] == []


def test_similar_is_the_same(both: tuple[httpx.Client, httpx.Client, dict[str, Platform]]) -> None:
    local, remote, _ = both
    for path in ("/v1/items/item-7/similar?limit=20", "/v1/items/item-8/similar?filter=year%3E2000"):
        here, there = local.get(path), remote.get(path)
        assert here.status_code == 200 and comparable(here.json()) == comparable(there.json())
    assert remote.get("/v1/items/none/similar").status_code == 404


def test_a_write_is_visible_in_every_process(both: tuple[httpx.Client, httpx.Client, dict[str, Platform]]) -> None:
    local, remote, parts = both
    body = {"attributes": {"title": "Far", "genre": ["Far"], "year": 2001}}
    written = remote.put("/v1/items/far?wait_for=visible&timeout_ms=5000", json=body).json()
    assert written["visible"] is True
    for part in ("retrieval", "ranking"):
        engine = parts[part].retrieval or parts[part].ranking
        assert engine is not None and len(engine.items) == 251
    question = {"user_id": "user-1", "filter": 'genre any_of ["Far"]', "min_offset": written["offset"]}
    for client in (local, remote):
        answer = client.post("/v1/recommendations", json=question).json()
        assert [item["id"] for item in answer["items"]] == ["far"] and answer["degraded"] == []
    event = {"event_id": "far-1", "user_id": "traveller", "item_id": "far", "type": "rating", "value": 5}
    offset = remote.post("/v1/events", json={"events": [event]}).json()["offset"]
    seen = {"user_id": "traveller", "filter": 'genre any_of ["Far"]', "min_offset": offset}
    answer = remote.post("/v1/recommendations", json=seen).json()
    assert answer["items"] == [] and answer["degraded"] == [] and answer["cold_start"] is False
    assert remote.delete("/v1/items/far?wait_for=visible&timeout_ms=5000").json()["visible"] is True


def test_internal_routes_ask_for_the_key(both: tuple[httpx.Client, httpx.Client, dict[str, Platform]]) -> None:
    _, remote, _ = both
    with httpx.Client(base_url=remote.base_url) as stranger:
        assert stranger.get("/internal/applied?stream=items&offset=0-0").status_code == 401
        assert stranger.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    ("only", "words"),
    [
        ({"gateway"}, "SHORTLIST_RETRIEVAL__URL"),
        ({"gateway", "retrieval", "ranking"}, "ingest.url"),
        (set(), "some of"),
    ],
)
def test_a_part_nobody_can_reach_is_refused(world: World, tmp_path: Path, only: set[Part], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        build_platform(world.settings(tmp_path / "data"), only)


def test_parts_that_are_gone_degrade_the_answer(world: World, tmp_path: Path) -> None:
    gone = "http://127.0.0.1:9"  # the discard port: nobody listens
    settings = world.settings(tmp_path / "data", retrieval={"url": gone}, ranking={"url": gone}, ingest={"url": gone})
    server = EmbeddedServer(tmp_path / "data")
    server.start()
    try:
        with running(settings.model_copy(update={"redis_url": server.url}), {"gateway"}) as (_, client):
            answer = client.post("/v1/recommendations", json={"user_id": "user-1", "filter": "year >= 1990"}).json()
            assert [entry["stage"] for entry in answer["degraded"]] == ["retrieve", "rank"]
            assert "retrieval is unavailable" in answer["degraded"][0]["reason"]
            assert len(answer["items"]) == 10
            ready = client.get("/readyz")
            assert ready.status_code == 503 and gone in ready.json()["dependencies"]["ranking"]["detail"]
            written = client.put("/v1/items/unseen?wait_for=visible&timeout_ms=50", json={"attributes": {}})
            assert written.status_code == 201 and written.json()["visible"] is False
            similar = client.get("/v1/items/item-1/similar")
            assert similar.status_code == 503 and similar.headers["retry-after"] == "1"
    finally:
        server.stop()


def test_waiting_ends_with_its_timeout(both: tuple[httpx.Client, httpx.Client, dict[str, Platform]]) -> None:
    _, remote, _ = both
    started = time.monotonic()
    answer = remote.get("/internal/applied?stream=items&offset=99999999999999-0&timeout_ms=60")
    assert answer.json() == {"applied": True}, "a gateway applies nothing itself"
    assert time.monotonic() - started < 1
