"""A data folder has one owner at a time: the process that runs its server and writes its files.

The lock is the kernel's (flock): it goes when its process goes, however that ends. The file's text names the holder
for error messages.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from services.clock import system_ms

_FILE = "owner.lock"


@dataclass(frozen=True, slots=True)
class Owner:
    pid: int
    role: str
    since_ms: int


class FolderLock:
    """Held from `take` until `release` or the end of the process."""

    def __init__(self, folder: Path, descriptor: int) -> None:
        self.folder = folder
        self._descriptor: int | None = descriptor

    @classmethod
    def take(cls, folder: Path, role: str) -> FolderLock | Owner:
        """Lock the folder, or return who holds it."""
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / _FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return _read(folder)
        text = json.dumps({"pid": os.getpid(), "role": role, "since_ms": system_ms()})
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
        return cls(folder, descriptor)

    def release(self) -> None:
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


def _read(folder: Path) -> Owner:
    # Between locking and writing the text is empty for an instant; an owner that is just leaving empties it too.
    for _ in range(20):
        try:
            record = json.loads((folder / _FILE).read_text())
            return Owner(int(record["pid"]), str(record["role"]), int(record["since_ms"]))
        except (ValueError, KeyError):
            time.sleep(0.01)
    return Owner(0, "unknown", 0)
