"""The door to storage: one object with everything the services read and write."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType

from models.data.schema import FeatureSchema
from services.clock import Clock
from services.storage.archive import EventArchive
from services.storage.artifacts import ArtifactRegistry
from services.storage.catalogue import Catalogue
from services.storage.client import Client
from services.storage.consumer import StateConsumer
from services.storage.documents import DocumentStore
from services.storage.errors import CommandFailed, DataFolderInUse, StorageUnavailable
from services.storage.events import EventLog
from services.storage.names import Names
from services.storage.ownership import FolderLock, Owner
from services.storage.ranker_offsets import RankerOffsetStore
from services.storage.scenarios import ScenarioStore
from services.storage.server import EmbeddedServer, answers, recorded_socket, socket_url
from services.storage.state import Popularity, UserStateStore
from services.storage.streams import Streams

OWNING_ROLES = frozenset({"serve"})
"""Roles that must own the data folder. Any other attaches to a live owner's server."""

DEFAULT_TIMEOUT_MS = 5_000


class Storage:
    """Documents, events, state and streams of one dataset. Thread-safe; open one per process."""

    def __init__(
        self,
        client: Client,
        *,
        data_dir: Path,
        dataset_key: str,
        clock: Clock,
        server: EmbeddedServer | None = None,
        lock: FolderLock | None = None,
    ) -> None:
        """Use `open`."""
        self.data_dir = data_dir
        self.clock = clock
        self.server = server
        """The embedded server, where this process runs it."""
        self.client = client
        self.names = Names(dataset_key)
        self._lock = lock
        self._pid = os.getpid()
        self.streams = Streams(client, self.names)
        self.items = DocumentStore(client, self.names, self.streams, clock, "items")
        self.users = DocumentStore(client, self.names, self.streams, clock, "users")
        self.events = EventLog(client, self.names, self.streams, clock)
        self.state = UserStateStore(client, self.names)
        self.popularity = Popularity(client, self.names)
        self.scenarios = ScenarioStore(client, self.names, clock)
        self.ranker_offsets = RankerOffsetStore(client, self.names)
        self.archive = EventArchive(
            data_dir / "events", client=client, names=self.names, streams=self.streams, events=self.events
        )
        self.catalogue = {
            store.name: Catalogue(data_dir / "catalogue" / store.name, store=store, streams=self.streams)
            for store in (self.items, self.users)
        }
        self.artifacts = ArtifactRegistry(data_dir / "artifacts", clock)
        self.durable, self.durability = _durability(client)

    @classmethod
    def open(
        cls,
        *,
        data_dir: Path,
        redis_url: str | None = None,
        dataset_key: str = "shortlist",
        role: str,
        own_if_free: bool = False,
        clock: Clock | None = None,
        timeout_ms: int = DEFAULT_TIMEOUT_MS,
        start_timeout_ms: int = 120_000,
    ) -> Storage:
        """Connect to `redis_url`, or without one to the data folder's embedded server.

        With role "serve" this process owns the folder, and runs the embedded server. Any other role attaches to the
        server of a live owner, and owns the folder itself for as long as it is open where there is none; with
        `redis_url` it needs no owner, and owns the folder only where `own_if_free` asks for it: jobs that write
        archive or catalogue do.
        timeout_ms bounds every read and write; start_timeout_ms how long a server may take to replay its log.

        Raises DataFolderInUse (with the owner's pid and role), ServerStartFailed, StorageUnavailable.
        """
        Names(dataset_key)
        data_dir = Path(data_dir).absolute()
        clock = clock or Clock()
        server: EmbeddedServer | None = None
        lock: FolderLock | None = None
        if redis_url is None or role in OWNING_ROLES:
            lock_or_socket = _own_or_attach(data_dir, role, start_timeout_ms)
            if isinstance(lock_or_socket, FolderLock):
                lock = lock_or_socket
            else:
                redis_url = socket_url(lock_or_socket)
        elif own_if_free:
            held = FolderLock.take(data_dir, role)
            lock = held if isinstance(held, FolderLock) else None
        try:
            if redis_url is None:
                server = EmbeddedServer(data_dir)
                server.start(start_timeout_ms)
                redis_url = server.url
            client = Client(redis_url, timeout_ms=timeout_ms)
            client.call("PING")
            return cls(client, data_dir=data_dir, dataset_key=dataset_key, clock=clock, server=server, lock=lock)
        except BaseException:
            if server is not None:
                server.stop()
            if lock is not None:
                lock.release()
            raise

    @property
    def owner(self) -> bool:
        """Whether this process owns the data folder: it alone runs archive and catalogue, and the embedded server."""
        return self._lock is not None

    def consumer(self, schema: FeatureSchema) -> StateConsumer:
        """Return the consumer that keeps histories, seen items and popularity up to the events stream."""
        return StateConsumer(self.client, self.names, self.streams, self.events, self.clock, schema)

    def ping_ms(self) -> float:
        """Return the round trip to the server in ms. Raises StorageUnavailable."""
        started = time.perf_counter()
        self.client.call("PING")
        return (time.perf_counter() - started) * 1000

    def used_memory_bytes(self) -> int:
        """Return the memory the server's data takes."""
        text = self.client.call("INFO", "memory")
        fields = dict(line.split(b":", 1) for line in text.splitlines() if b":" in line)
        return int(fields[b"used_memory"])

    def close(self) -> None:
        """Close connections; end the server and give the folder free where this process owns them."""
        self.client.close()
        if os.getpid() != self._pid:
            return  # a forked child; the server is its parent's
        if self.server is not None:
            self.server.stop()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Storage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _own_or_attach(data_dir: Path, role: str, timeout_ms: int) -> FolderLock | Path:
    deadline = time.monotonic() + timeout_ms / 1000
    while True:
        held = FolderLock.take(data_dir, role)
        if isinstance(held, FolderLock):
            return held
        assert isinstance(held, Owner)
        if role in OWNING_ROLES:
            raise DataFolderInUse(data_dir, held.pid, held.role)
        socket = recorded_socket(data_dir, held.pid)
        if socket is not None and answers(socket):
            return socket
        if time.monotonic() > deadline:
            raise StorageUnavailable(
                f"the owner of {data_dir}, process {held.pid} ({held.role}), has no server that answers"
            )
        time.sleep(0.02)


def _durability(client: Client) -> tuple[bool, str]:
    """Return whether an answered write is on disk, and why (not), by the server's own settings."""
    settings: dict[str, str] = {}
    try:
        for name in ("appendonly", "appendfsync", "no-appendfsync-on-rewrite"):
            reply = client.call("CONFIG", "GET", name)
            if len(reply) == 2:
                settings[name] = reply[1].decode()
    except CommandFailed as error:
        return False, f"unknown: the server's settings cannot be read ({error})"
    text = ", ".join(f"{name} {value}" for name, value in settings.items()) or "no settings reported"
    durable = (
        settings.get("appendonly") == "yes"
        and settings.get("appendfsync") == "always"
        and settings.get("no-appendfsync-on-rewrite") == "no"
    )
    return durable, text
