"""Requests that come while a search runs are answered by one pass, each as if it had come alone."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import pytest

from index.batching import BatchingIndex
from index.hits import Hits
from services.platform import Platform

FILTERS = [None, 'genre any_of ["Comedy"]', "year >= 2000", "year > 3000"]


class Gate:
    """A live index whose searches wait until the gate is open."""

    def __init__(self, index: Any) -> None:
        self._index = index
        self.dim = index.dim
        self.open, self.entered = threading.Event(), threading.Event()

    def search(self, *args: Any, **options: Any) -> Hits:
        self.entered.set()
        assert self.open.wait(20)
        hits: Hits = self._index.search(*args, **options)
        return hits

    def vectors(self, keys: Any) -> Any:
        return self._index.vectors(keys)


def test_concurrent_requests_share_a_pass(
    platform: Platform, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = platform.retrieval
    assert engine is not None
    asked: list[dict[str, Any]] = [
        {"user_id": f"user-{number}", "filter": FILTERS[number % 4], "limit": 3 + number, "budget_ms": 10_000}
        for number in range(9)
    ]

    def ask(body: dict[str, Any]) -> dict[str, Any]:
        response = client.post("/v1/recommendations", json=body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    alone = [ask(body) for body in asked]
    assert all(answer["filter_plan"]["joined"] == 1 for answer in alone)
    gate = Gate(engine.index)
    joining = BatchingIndex(gate, max_wait_ms=20_000)
    monkeypatch.setattr(engine, "_serving", replace(engine._serving, searches=joining))
    with ThreadPoolExecutor(len(asked)) as pool:
        try:
            first = pool.submit(ask, asked[0])
            assert gate.entered.wait(20)
            others = [pool.submit(ask, body) for body in asked[1:]]
            until = time.monotonic() + 20
            while len(joining._waiting) < len(others):
                assert time.monotonic() < until
                time.sleep(0.002)
        finally:
            gate.open.set()
        together = [future.result(20) for future in (first, *others)]
    assert [answer["filter_plan"]["joined"] for answer in together] == [1] + [8] * 8
    assert (joining.num_calls, joining.num_searches) == (9, 2)
    for one, other in zip(alone, together, strict=True):
        assert [item["id"] for item in one["items"]] == [item["id"] for item in other["items"]]
        assert one["filter_plan"]["matched"] == other["filter_plan"]["matched"]
        assert other["degraded"] == [] and other["filter_plan"]["exact"]
