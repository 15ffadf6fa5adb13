"""kill -9 of everything in the middle of 2,000 acknowledged writes: all of them are there, none twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from services.clock import Clock
from services.storage import Event, Storage

from .crash_writer import crash_event
from .world import NOW_MS, SCHEMA, Oracle

NUM_WRITES = 2_000
"""Half of them items, half events."""


def run_writer(folder: Path, kill_after: int | None) -> set[tuple[str, int]]:
    """Run the writer, killing its process group after some acknowledgements; return what was acknowledged."""
    command = [sys.executable, "-m", "tests.services.storage.crash_writer", str(folder), str(NUM_WRITES // 2)]
    acknowledged = set()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            kind, number = line.split()
            acknowledged.add((kind, int(number)))
            if len(acknowledged) == kill_after:
                os.killpg(writer.pid, signal.SIGKILL)
    assert writer.returncode == (0 if kill_after is None else -signal.SIGKILL)
    return acknowledged


def check_log(storage: Storage, acknowledged: set[tuple[str, int]]) -> list[Event]:
    """Compare documents and streams with what was acknowledged; return the events of the log."""
    documents = storage.items.get_many([f"i{number}" for kind, number in acknowledged if kind == "item"])
    assert all(document is not None and document.version == 1 for document in documents)
    assert set(Counter(change.id for change in storage.items.changes(count=10_000)).values()) == {1}
    log = [entry.event for entry in storage.events.read(count=10_000)]
    times = Counter(event.event_id for event in log)
    assert set(times.values()) == {1}
    assert {f"e{number}" for kind, number in acknowledged if kind == "event"} <= set(times)
    assert all(event == crash_event(int(event.event_id[1:])) for event in log)
    return log


def check_consumers(storage: Storage, log: list[Event]) -> None:
    """Let every consumer catch up, then compare state, archive and catalogue with the log."""
    consumer = storage.consumer(SCHEMA)
    while consumer.step():
        pass
    oracle = Oracle()
    oracle.apply(log)
    oracle.check(storage, NOW_MS)
    while storage.archive.step(flush=True):
        pass
    stored = [pq.read_table(path)["event_id"].to_pylist() for path in storage.archive.files()]
    assert sorted(sum(stored, [])) == sorted(event.event_id for event in log)
    in_order = [event.event_id for event in sorted(log, key=lambda event: event.ts_ms)]
    assert storage.archive.load()["event_id"].to_pylist() == in_order
    catalogue = storage.catalogue["items"]
    while catalogue.step(flush=True):
        pass
    assert catalogue.load()["id"].to_pylist() == [change.id for change in storage.items.changes(count=10_000)]
    assert catalogue.offset == storage.streams.last_offset("items")


def test_kill_9_loses_nothing_acknowledged_and_doubles_nothing(short_folder: Path, tmp_path: Path) -> None:
    folder = short_folder / tmp_path.name
    acknowledged: set[tuple[str, int]] = set()
    for kill_after in (NUM_WRITES // 2, NUM_WRITES * 3 // 4, None):
        acknowledged |= run_writer(folder, kill_after)
        started = time.perf_counter()
        with Storage.open(data_dir=folder, role="serve", clock=Clock.starting_at(NOW_MS)) as storage:
            recovery_ms = (time.perf_counter() - started) * 1000
            log = check_log(storage, acknowledged)
            if kill_after != NUM_WRITES * 3 // 4:  # once the next writer finds the consumers as the kill left them
                check_consumers(storage, log)
        print(f"\n{len(acknowledged)} acknowledged writes, recovered in {recovery_ms:.0f} ms")
    assert len(acknowledged) == NUM_WRITES
