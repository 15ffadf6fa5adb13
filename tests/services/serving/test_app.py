"""What every process offers: health, metrics, documentation, request ids, the API key, the access log."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import APIRouter
from pydantic import SecretStr

from services.app import make_app, make_logger
from services.metrics import Metrics
from services.schema import DependencyState
from services.settings import HttpSettings
from tests.services.serving.world import serving


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def guarded(log: io.StringIO) -> Iterator[httpx.Client]:
    """A small app with an API key and one dependency that is not ready."""
    router = APIRouter(prefix="/v1")

    @router.post("/echo")
    async def echo(body: dict[str, Any]) -> dict[str, Any]:
        return body

    @router.get("/broken")
    async def broken() -> None:
        raise RuntimeError("the reason")

    async def ready() -> DependencyState:
        return DependencyState(ready=True, detail="ok")

    async def away() -> DependencyState:
        return DependencyState(ready=False, detail="on holiday")

    app = make_app(
        title="test",
        settings=HttpSettings(max_body_bytes=1024),
        api_key=SecretStr("open-sesame"),
        routers=[router],
        checks={"near": ready, "far": away},
        metrics=Metrics(),
        logger=make_logger("info", log),
    )
    with serving(app) as url, httpx.Client(base_url=url) as client:
        yield client


KEY = {"X-API-Key": "open-sesame"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"X-API-Key": "wrong"}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Basic open-sesame"}, 401),
        (KEY, 200),
        ({"Authorization": "Bearer open-sesame"}, 200),
        ({"authorization": "bearer open-sesame"}, 200),
    ],
)
def test_the_key_is_asked_for(guarded: httpx.Client, headers: dict[str, str], status: int) -> None:
    response = guarded.post("/v1/echo", json={"a": 1}, headers=headers)
    assert response.status_code == status
    if status == 401:
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["content-type"] == "application/problem+json"


def test_health_needs_no_key(guarded: httpx.Client) -> None:
    assert guarded.get("/healthz").json() == {"status": "ok"}
    ready = guarded.get("/readyz")
    assert ready.status_code == 503 and ready.headers["retry-after"]
    assert ready.json()["dependencies"] == {
        "near": {"ready": True, "detail": "ok"},
        "far": {"ready": False, "detail": "on holiday"},
    }
    assert guarded.get("/metrics").status_code == 200
    assert guarded.get("/docs").status_code == 200
    assert guarded.get("/openapi.json").json()["info"]["title"] == "test"


def test_request_ids_go_through_or_are_made(guarded: httpx.Client) -> None:
    given = guarded.get("/healthz", headers={"X-Request-ID": "mine-1:2.3_4"})
    assert given.headers["x-request-id"] == "mine-1:2.3_4"
    for bad in ("", "a b", "x" * 129, "<script>", "é".encode()):
        made = guarded.get("/healthz", headers={"X-Request-ID": bad})
        assert re.fullmatch("[0-9a-f]{32}", made.headers["x-request-id"])
    problem = guarded.get("/v1/none", headers={**KEY, "X-Request-ID": "mine"}).json()
    assert problem["request_id"] == "mine"


def test_failures_of_ours_are_500_and_logged_with_their_trace(guarded: httpx.Client, log: io.StringIO) -> None:
    response = guarded.get("/v1/broken", headers={**KEY, "X-Request-ID": "find-me"})
    assert response.status_code == 500 and "the reason" not in response.text
    assert response.headers["content-type"] == "application/problem+json"
    (line,) = _wait_for(log, "request failed", 1)
    assert line["request_id"] == "find-me" and "RuntimeError: the reason" in line["exception"]


def test_the_access_log_has_no_secrets_and_no_bodies(guarded: httpx.Client, log: io.StringIO) -> None:
    guarded.post("/v1/echo", json={"private": "diary"}, headers={"Authorization": "Bearer open-sesame"})
    guarded.post("/v1/echo", json={"private": "diary"}, headers={"X-API-Key": "guess-work"})
    entries = _wait_for(log, "request", 2)
    text = log.getvalue()
    assert not {"diary", "open-sesame", "guess-work"} & set(re.findall(r"[\w-]+", text))
    assert [(entry["method"], entry["route"], entry["status"]) for entry in entries] == [
        ("POST", "/v1/echo", 200),
        ("POST", "unmatched", 401),
    ]
    assert all(entry["elapsed_ms"] > 0 and entry["request_id"] and entry["timestamp"] for entry in entries)


def _wait_for(log: io.StringIO, event: str, count: int) -> list[dict[str, Any]]:
    """The log's lines of one kind: a request's line is written just after its answer."""
    deadline = time.monotonic() + 5
    while True:
        lines = [json.loads(line) for line in log.getvalue().splitlines()]
        found = [line for line in lines if line["event"] == event]
        if len(found) >= count:
            return found
        assert time.monotonic() < deadline, f"no {count} lines of {event!r}: {lines}"
        time.sleep(0.005)


def test_metrics_name_routes_stages_and_lags(client: httpx.Client) -> None:
    client.post("/v1/recommendations", json={"user_id": "user-1"})
    client.get("/v1/items/item-1")
    client.get("/v1/nowhere/at/all")
    text = client.get("/metrics").text
    for series in (
        'shortlist_http_request_seconds_bucket{le="0.06",method="POST",route="/v1/recommendations",status="200"}',
        'route="/v1/items/{identifier:path}"',
        'route="unmatched",status="404"',
        'shortlist_stage_seconds_bucket{le="0.01",stage="hydrate"}',
        'shortlist_stage_seconds_count{stage="retrieve"}',
        'shortlist_stage_seconds_count{stage="rank"}',
        'shortlist_stage_seconds_count{stage="arrange"}',
        "shortlist_degraded_total",
        'shortlist_recommendations_total{cold_start="false"}',
        'shortlist_follower_lag_ms{follower="state"}',
        'shortlist_follower_lag_ms{follower="retrieval-items"}',
        'shortlist_follower_lag_ms{follower="retrieval-events"}',
        "shortlist_index_items 250.0",
        "shortlist_snapshot_age_seconds",
        "shortlist_snapshot_bytes",
        "shortlist_index_calls",
        "shortlist_index_passes",
    ):
        assert series in text, series


def test_readiness_names_every_dependency(client: httpx.Client) -> None:
    ready = client.get("/readyz")
    assert ready.status_code == 200, ready.text
    assert set(ready.json()["dependencies"]) == {
        "storage", "retrieval", "ranking", "ingest", "follower state", "follower retrieval-items",
        "follower retrieval-events", "follower snapshots", "follower archive", "follower signals",
        "follower ranking-events", "follower ranker-offsets", "retrieval model", "ranking model", "scenarios",
    }  # fmt: skip


def test_every_route_is_described(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) >= {
        "/v1/recommendations",
        "/v1/users/{user_id}/recommendations",
        "/v1/items/{item_id}/similar",
        "/v1/items/{identifier}",
        "/v1/users/{identifier}",
        "/v1/events",
        "/v1/scenarios",
        "/v1/scenarios/{name}",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation.get("summary"), f"{method} {path}"
            if path.startswith("/v1"):
                assert {"400", "404", "422", "503", "504"} <= set(operation["responses"])
    assert "HTTPValidationError" not in json.dumps(document), "the framework's own 422 is not what we answer"
