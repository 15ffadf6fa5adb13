"""Followers, snapshots and restarts."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest

from models.retrieval.model import RetrievalModel
from models.retrieval.towers import TwoTowers
from services.app import make_logger
from services.clock import system_ms
from services.datasets.dataset import Dataset
from services.ingest.follower import Follower, find_gap
from services.ingest.offsets import Position, Progress, parse_position
from services.metrics import Metrics
from services.platform import PlatformError, build_platform
from services.storage.artifacts import Provenance
from services.storage.consumer import ImportMark
from services.storage.events import Event, event_table
from services.storage.storage import Storage
from services.storage.streams import START, Entry
from tests.services.serving.world import World, running


def eventually(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.005)


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    with Storage.open(data_dir=tmp_path / "storage", role="test") as storage:
        yield storage


def make_follower(
    storage: Storage, apply: Callable[[Sequence[Entry]], str], log: io.StringIO, after: str = START, **more: object
) -> tuple[Follower, Metrics]:
    metrics = Metrics()
    follower = Follower(
        "test",
        "items",
        streams=storage.streams,
        after=after,
        apply=apply,
        batch_size=2,
        metrics=metrics,
        logger=make_logger("info", log),
        **more,  # type: ignore[arg-type]
    )
    return follower, metrics


def test_a_failing_follower_is_seen_and_goes_on_where_it_stopped(storage: Storage) -> None:
    applied: list[str] = []
    healthy = threading.Event()

    def apply(entries: Sequence[Entry]) -> str:
        if not healthy.is_set():
            raise RuntimeError("no room")
        applied.extend(entry.offset for entry in entries)
        return entries[-1].offset

    log = io.StringIO()
    follower, metrics = make_follower(storage, apply, log)
    writes = [storage.items.put(f"item-{n}", {}).offset for n in range(5)]
    follower.start()
    try:
        eventually(lambda: "no room" in follower.state().detail)
        assert follower.state().ready is False and follower.lag_ms() > 0
        assert b'shortlist_follower_errors_total{follower="test"}' in metrics.exposition()
        healthy.set()
        eventually(lambda: follower.state().ready)
        assert applied == writes and follower.lag_ms() == 0
        events = [json.loads(line)["event"] for line in log.getvalue().splitlines()]
        assert events[0] == "follower failed" and events[-1] == "follower recovered"
        assert log.getvalue().count("Traceback") == 1, "the trace is logged once, not at every attempt"
        writes.append(storage.items.put("item-9", {}).offset)
        eventually(lambda: applied == writes)
    finally:
        follower.stop()
        follower.join()
    assert follower.state().ready is False and "not running" in follower.state().detail


def test_one_follower_waits_for_another(storage: Storage) -> None:
    order: list[str] = []
    gate = threading.Event()

    def slowly(entries: Sequence[Entry]) -> str:
        gate.wait()
        order.append("first")
        return entries[-1].offset

    def quickly(entries: Sequence[Entry]) -> str:
        order.append("second")
        return entries[-1].offset

    storage.items.put("item", {})
    first, _ = make_follower(storage, slowly, io.StringIO())
    second, _ = make_follower(storage, quickly, io.StringIO(), behind=first)
    second.start()
    first.start()
    try:
        time.sleep(0.05)
        assert order == []
        gate.set()
        assert second.wait_caught_up(5)
        assert order == ["first", "second"]
    finally:
        for follower in (first, second):
            follower.stop()
            follower.join()


def test_gaps_are_found(storage: Storage) -> None:
    streams = storage.streams
    assert find_gap(streams, "items", START) is None
    ahead = find_gap(streams, "items", "5-0")
    assert ahead is not None and "ends at 0-0" in ahead
    offsets = [storage.items.put(f"item-{n}", {}).offset for n in range(5)]
    assert all(find_gap(streams, "items", offset) is None for offset in offsets)
    streams.trim("items", offsets[2])
    assert find_gap(streams, "items", offsets[2]) is None
    behind = find_gap(streams, "items", offsets[1])
    assert behind is not None and "trimmed" in behind
    follower, _ = make_follower(storage, lambda entries: entries[-1].offset, io.StringIO(), after=offsets[0])
    follower.start()
    try:
        eventually(lambda: "StreamGap" in follower.state().detail)
        assert follower.progress.offset == offsets[0], "nothing is applied past a gap"
    finally:
        follower.stop()
        follower.join()


def test_positions_on_the_wire() -> None:
    position = Position("items", "1700000000000-3")
    assert parse_position(str(position)) == position
    for wrong in ("", "items", "1-0", "books:1-0", "items:1", "items:1-0 ", "items:-1-0", "items:1-0-0"):
        with pytest.raises(ValueError, match="is not an offset"):
            parse_position(wrong)


def test_waiting_for_progress() -> None:
    import asyncio

    async def wait() -> list[bool]:
        progress = Progress("5-0")
        assert await progress.wait("5-0", 0) is True
        assert await progress.wait("6-0", 0) is False
        assert await progress.wait("6-0", 20) is False
        tasks = [asyncio.create_task(progress.wait(offset, 2000)) for offset in ("7-1", "6-0", "9-0")]
        await asyncio.sleep(0.01)
        threading.Timer(0.02, progress.advance, ["7-1"]).start()
        first = await asyncio.wait_for(asyncio.gather(*tasks[:2]), 1)
        assert not tasks[2].done()
        assert progress.num_waiting == 1
        tasks[2].cancel()
        await asyncio.wait(tasks[2:])
        assert progress.num_waiting == 0, "a wait that was given up is forgotten"
        tasks[2] = asyncio.create_task(progress.wait("9-0", 2000))
        await asyncio.sleep(0.01)
        progress.advance("10-0")
        return [*first, await tasks[2]]

    assert asyncio.run(wait()) == [True, True, True]


def test_a_restart_goes_on_from_the_snapshot_and_the_log(world: World, tmp_path: Path) -> None:
    settings = world.settings(tmp_path / "data")
    with running(settings) as (platform, client):
        assert client.put("/v1/items/before?wait_for=visible", json={"attributes": {"year": 1}}).status_code == 201
        event = {"event_id": "r-1", "user_id": "u", "item_id": "before", "type": "rating", "value": 5}
        offset = client.post("/v1/events", json={"events": [event]}).json()["offset"]
        client.post("/v1/recommendations", json={"user_id": "u", "min_offset": offset})
        assert platform.retrieval is not None
        version = platform.retrieval.versions()["index"]
    assert sorted(path.name for path in (tmp_path / "data" / "index").iterdir()) == ["snapshot-000000000001"]
    assert list((tmp_path / "data" / "events").glob("day=*/part-*.parquet")), "what waited was archived"
    with Storage.open(data_dir=tmp_path / "data", role="meanwhile") as storage:
        storage.items.put("meanwhile", {"year": 2})
        storage.items.delete("item-0")
        storage.items.patch("item-1", {"year": 3})

    log = io.StringIO()
    platform = build_platform(settings, logger=make_logger("info", log))
    with platform:
        assert platform.wait_caught_up(10)
        ready = [json.loads(line) for line in log.getvalue().splitlines() if '"index ready"' in line]
        assert ready[0]["from_snapshot"] is True and ready[0]["offsets"]["items"] == version.split("@")[1]
        engine = platform.retrieval
        assert engine is not None and engine.index.num_items == len(engine.items) == 251
        storage = platform.storage
        found = storage.items.ids_of(engine.index.keys())
        assert {"before", "meanwhile"} <= set(found) and "item-0" not in found and None not in found
        keys = engine.index.keys()
        now_ms = storage.clock.now_ms()
        stored = storage.popularity.values(engine.schema.signals, keys, now_ms)
        user = storage.state.hydrate("u")
        held = engine.retrieve(user.state, now_ms, 300)
        order = np.argsort(held.keys)
        assert np.allclose(held.signals[order], stored, rtol=1e-9)
        assert stored[keys == storage_key("before"), -1] == 1.0


def storage_key(identifier: str) -> int:
    from services.keys import key_of

    return key_of(identifier)


def test_an_index_of_another_model_is_built_anew(world: World, tmp_path: Path) -> None:
    settings = world.settings(tmp_path / "data")
    with running(settings) as (platform, _):
        assert platform.snapshots is not None and platform.retrieval is not None
        platform.snapshots.write()
        old = platform.retrieval.model
        other = RetrievalModel(old.schema, old.config, TwoTowers(old.schema, old.config, seed=99))
        version = platform.storage.artifacts.publish("retrieval", other.save, Provenance())
        platform.storage.artifacts.promote("retrieval", version)
    log = io.StringIO()
    platform = build_platform(settings, logger=make_logger("info", log))
    try:
        assert platform.retrieval is not None and platform.retrieval.index.num_items == 250
        assert platform.retrieval.model.version == other.version
        keys = platform.retrieval.index.keys()[:5]
        expected = other.encode_items(platform.retrieval.items.gather(keys))
        assert np.allclose(platform.retrieval.index.vectors(keys)[0], expected, atol=1e-6)
        assert "does not fit" in log.getvalue() and "model_version" in log.getvalue()
    finally:
        platform.stop()


def test_streams_are_trimmed_behind_snapshots_and_a_restart_still_works(world: World, tmp_path: Path) -> None:
    settings = world.settings(tmp_path / "data", ingest={"archive_interval_s": 0.05})
    with running(settings) as (platform, client):
        snapshots, streams = platform.snapshots, platform.storage.streams
        assert snapshots is not None
        before = streams.length("items")
        for turn in range(4):
            url = f"/v1/items/turn-{turn}?wait_for=visible"
            assert client.put(url, json={"attributes": {}}).json()["visible"] is True
            snapshots.write()
            assert (streams.length("items") < before) == (turn >= 2), "the oldest kept snapshot holds the stream"
        snapshots.write()  # nothing has changed: no fourth snapshot is thrown away for a fifth like it
        folder = tmp_path / "data" / "index"
        assert len(list(folder.iterdir())) == 3
        eventually(lambda: platform.storage.archive.offset == streams.last_offset("events"))
    with running(settings) as (platform, client):
        assert client.get("/readyz").status_code == 200
        assert platform.retrieval is not None and platform.retrieval.index.num_items == 254


def test_an_import_beside_the_stream_reaches_the_index(world: World, tmp_path: Path) -> None:
    with running(world.settings(tmp_path / "data")) as (platform, client):
        engine, keeper, storage = platform.retrieval, platform.signals, platform.storage
        assert engine is not None and keeper is not None

        def likes() -> float:
            asked = {"user_id": "somebody", "candidates": ["item-200"], "explain": True}
            answer = client.post("/v1/recommendations", json=asked).json()
            return float(answer["items"][0]["explanation"]["signals"]["like.all"])

        before = likes()
        event = {"event_id": "s-1", "user_id": "u", "item_id": "item-200", "type": "rating", "value": 5}
        offset = client.post("/v1/events", json={"events": [event]}).json()["offset"]
        client.post("/v1/recommendations", json={"user_id": "u", "min_offset": offset})
        assert keeper.check() is False and likes() == before + 1, "what the stream brings needs no reload"
        imported = [
            Event(event_id=f"i-{n}", user_id=f"u-{n}", item_id="item-200", type="rating", value=5, ts_ms=system_ms())
            for n in range(7)
        ]
        storage.consumer(engine.schema).apply(event_table(engine.schema, imported), ImportMark("late", 0))
        eventually(lambda: keeper.check() or likes() == before + 8)
        assert likes() == before + 8
        assert keeper.check() is False


def test_without_models_it_says_how_to_make_them(world: World, tmp_path: Path) -> None:
    settings = world.settings(tmp_path / "fresh")
    empty = settings.model_copy(update={"data_dir": tmp_path / "empty"})
    with pytest.raises(PlatformError, match="shortlist train"):
        build_platform(empty)
    Dataset.load(settings.dataset)
    with Storage.open(data_dir=tmp_path / "empty", role="test"):
        pass  # the folder was given free again


SERVER = """
import sys
from pathlib import Path
from services.settings import Settings
from tests.services.serving.world import running
settings = Settings.model_validate_json(Path(sys.argv[1]).read_text())
with running(settings) as (platform, client):
    print(client.base_url, flush=True)
    sys.stdin.read()
"""


def test_acknowledged_writes_survive_a_kill(world: World, tmp_path: Path) -> None:
    settings = world.settings(tmp_path / "data")
    (tmp_path / "settings.json").write_text(settings.model_dump_json())
    command = [sys.executable, "-c", SERVER, str(tmp_path / "settings.json")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        with httpx.Client(base_url=url, timeout=20) as client:
            for number in range(30):
                body = {"attributes": {"genre": ["Kept"], "year": number}}
                assert client.put(f"/v1/items/kept-{number}", json=body).json()["durable"] is True
                event = {"event_id": f"k-{number}", "user_id": "keeper", "item_id": f"kept-{number}", "type": "view"}
                assert client.post("/v1/events", json={"events": [event]}).json()["accepted"] == 1
        server.kill()
    with running(settings) as (platform, client):
        answer = client.post(
            "/v1/recommendations",
            json={"user_id": "user-1", "filter": 'genre any_of ["Kept"]', "limit": 50, "include": ["metadata"]},
        ).json()
        years = {item["id"]: item["metadata"]["year"] for item in answer["items"]}
        assert years == {f"kept-{number}": number for number in range(30)}
        keeper = platform.storage.state.hydrate("keeper")
        assert len(keeper.seen) == 30 and len(keeper.history) == 20
        again = {"event_id": "k-0", "user_id": "keeper", "item_id": "kept-0", "type": "view"}
        assert client.post("/v1/events", json={"events": [again]}).json()["duplicates"] == 1
