"""The process that the crash test kills: writes items and events, and says so after each acknowledgement.

python -m tests.services.storage.crash_writer DATA_DIR COUNT: COUNT items and as many events, each written as a client
would who does not know what became of them in an earlier run. Meanwhile a consumer, an archiver and the catalogue
work, to be killed in the middle of that too.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from pathlib import Path

from models.data.schema import FeatureSchema
from services.storage import Event, Storage, VersionConflict

from .world import HOUR_MS, NOW_MS, SCHEMA


def crash_event(number: int) -> Event:
    return Event(
        event_id=f"e{number}",
        user_id=f"u{number % 23}",
        item_id=f"i{number % 31}",
        type="rating" if number % 3 else "click",
        value=float(number % 5 + 1),
        # All different (1009 is a prime above every number), so that no order depends on how the log was cut.
        ts_ms=NOW_MS - (number * 7919 % 1009) * HOUR_MS,
    )


def archive(storage: Storage, stop: threading.Event) -> None:
    while not stop.is_set():
        storage.archive.step(block_ms=5, flush=True)
        storage.catalogue["items"].step(flush=True)


def consume(storage: Storage, stop: threading.Event, schema: FeatureSchema = SCHEMA) -> None:
    storage.consumer(schema).run(stop, block_ms=5)


def main(folder: Path, count: int) -> None:
    stop, lock = threading.Event(), threading.Lock()
    with Storage.open(data_dir=folder, role="serve") as storage:
        background = [threading.Thread(target=work, args=(storage, stop)) for work in (archive, consume)]

        def say(text: str) -> None:
            with lock:
                sys.stdout.write(text + "\n")
                sys.stdout.flush()

        def put_items() -> None:
            for number in range(count):
                # Stored before the crash, without an answer: then the version is 1 already.
                with contextlib.suppress(VersionConflict):
                    storage.items.put(f"i{number}", {"n": number}, if_version=0)
                say(f"item {number}")

        def append_events() -> None:
            for number in range(0, count, 5):
                events = [crash_event(n) for n in range(number, number + 5)]
                storage.events.append(events)
                say("\n".join(f"event {event.event_id[1:]}" for event in events))

        writers = [threading.Thread(target=write) for write in (put_items, append_events)]
        for thread in [*background, *writers]:
            thread.start()
        for thread in writers:
            thread.join()
        stop.set()
        for thread in background:
            thread.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
