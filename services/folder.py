"""What a data folder remembers beside its data: how far the platform's clock lies from the machine's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.clock import Clock
from services.settings import Settings
from services.storage.files import write_atomically
from services.storage.storage import Storage

_CLOCK = "clock.json"


def has_clock(data_dir: Path) -> bool:
    """Whether `save_clock` was called for the folder."""
    return (data_dir / _CLOCK).exists()


def load_clock(data_dir: Path) -> Clock:
    """Return the folder's clock: the machine's, unless `save_clock` was called."""
    if not has_clock(data_dir):
        return Clock()
    return Clock(int(json.loads((data_dir / _CLOCK).read_text())["offset_ms"]))


def save_clock(data_dir: Path, clock: Clock) -> None:
    """Keep the clock's distance from the machine's, so that data of the past is served as if it were now."""
    text = json.dumps({"offset_ms": clock.offset_ms}) + "\n"

    def write(path: Path) -> None:
        path.write_text(text)

    write_atomically(data_dir / _CLOCK, write)


@contextmanager
def job_storage(settings: Settings, role: str) -> Iterator[Storage]:
    """Storage for one command: attached to a running server of the same folder, else opened for the command."""
    storage = Storage.open(
        data_dir=settings.data_dir,
        redis_url=settings.redis_url,
        role=role,
        own_if_free=True,
        clock=load_clock(settings.data_dir),
        timeout_ms=settings.redis_timeout_ms,
    )
    with storage:
        yield storage
