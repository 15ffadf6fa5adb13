"""`kill -9` of a serving platform in the middle of acknowledged writes over HTTP: none lost, none doubled."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.services.processes import start, started, wait_ready

NUM_WRITES = 2_000
KILL_AFTER = 700


def test_kill_9_loses_and_doubles_nothing(
    demo_data: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data_dir = tmp_path / "data"
    shutil.copytree(demo_data[0], data_dir, ignore=shutil.ignore_patterns("*.sock"))
    acknowledged: list[int] = []
    log = tmp_path / "first.log"
    with log.open("w") as output:
        process, url = start("serve", data_dir=data_dir, output=output)
        wait_ready(process, url, log)
        killer = threading.Thread(target=_kill_when, args=(acknowledged, process.pid))
        killer.start()
        with httpx.Client(base_url=url, timeout=10.0) as client:
            for number in range(NUM_WRITES):
                try:
                    _write(client, number)
                except httpx.TransportError:
                    break
                acknowledged.append(number)
        killer.join()
        process.wait(10)
    assert KILL_AFTER <= len(acknowledged) < NUM_WRITES, "the kill fell into the middle"
    began = time.perf_counter()
    with (
        started("serve", data_dir=data_dir, log=tmp_path / "second.log") as url,
        httpx.Client(base_url=url, timeout=10.0) as client,
    ):
        with capsys.disabled():
            print(f"\nrecovered after kill -9 in {time.perf_counter() - began:.1f} s, {len(acknowledged)} writes held")
        # The rest, and the last one before the kill once more: it may or may not have been taken.
        for number in range(len(acknowledged), NUM_WRITES):
            _write(client, number)
        items = [number for number in range(NUM_WRITES) if number % 2 == 0]
        for number in items:
            assert client.get(f"/v1/items/crash-{number}").json()["attributes"]["title"] == f"Crash {number}"
        again = client.post("/v1/events", json={"events": [_event(n) for n in range(1, NUM_WRITES, 2)][:1000]}).json()
        assert (again["accepted"], again["duplicates"]) == (0, 1000), "each event is there exactly once"
        slate = client.post(
            "/v1/recommendations",
            json={"user_id": "nobody", "limit": 200, "filter": "year = 1066", "budget_ms": 5000, "explain": True},
        ).json()
        assert slate["filter_plan"]["matched"] == len(items)
        popular = client.post(
            "/v1/recommendations",
            json={"user_id": "nobody", "candidates": ["1"], "explain": True, "budget_ms": 5000},
        ).json()["items"][0]["explanation"]["signals"]
        before = _watched(demo_data[0])
        assert popular["watch.all"] == pytest.approx(before + NUM_WRITES // 2), (
            "no event is counted twice or not at all"
        )


def _kill_when(acknowledged: list[int], pid: int) -> None:
    while len(acknowledged) < KILL_AFTER:
        time.sleep(0.001)
    os.killpg(pid, signal.SIGKILL)


def _write(client: httpx.Client, number: int) -> None:
    """Items and events in turn."""
    if number % 2 == 0:
        body = {"attributes": {"title": f"Crash {number}", "genre": ["Drama"], "year": 1066}}
        answer = client.put(f"/v1/items/crash-{number}", json=body)
    else:
        answer = client.post("/v1/events", json={"events": [_event(number)]})
    assert answer.status_code in (200, 201, 202), answer.text
    assert answer.json()["durable"]


def _event(number: int) -> dict[str, object]:
    return {"event_id": f"crash-{number}", "user_id": f"u{number}", "item_id": "1", "type": "rating", "value": 4.0}


def _watched(data_dir: Path) -> int:
    """How often item 1 was rated in the demo's data."""
    import pyarrow.parquet as pq

    events = pq.read_table(data_dir / "source" / "events.parquet")
    return sum(1 for item in events["item_id"].to_pylist() if item == "1")
