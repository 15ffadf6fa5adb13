"""The embedded server's life: with its owner, without it, stopped, killed; and who may own a data folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.storage import DataFolderInUse, ServerStartFailed, Storage, StorageUnavailable
from services.storage.ownership import FolderLock
from services.storage.server import MAX_SOCKET_PATH_BYTES, EmbeddedServer

from .world import SCHEMA, event


@pytest.fixture
def own(short_folder: Path, tmp_path: Path) -> Iterator[Storage]:
    """A storage that owns a server of its own, with short timeouts."""
    with Storage.open(data_dir=short_folder / tmp_path.name, role="serve", timeout_ms=300) as storage:
        yield storage


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True
    return text.rpartition(")")[2].split()[0] == "Z"


def writes(storage: Storage) -> bool:
    try:
        storage.items.put("probe", {})
    except StorageUnavailable:
        return False
    return True


def test_everything_is_there_after_a_restart(short_folder: Path, tmp_path: Path) -> None:
    folder = short_folder / tmp_path.name
    with Storage.open(data_dir=folder, role="serve") as storage:
        assert storage.durable and "appendfsync always" in storage.durability and storage.owner
        offset = storage.items.put("a", {"x": 1}).offset
        storage.events.append([event(1)])
        storage.consumer(SCHEMA).step()
        pid = storage.server.pid if storage.server else None
        assert storage.ping_ms() > 0 and storage.used_memory_bytes() > 100_000
    assert pid is not None and gone(pid)
    with Storage.open(data_dir=folder, role="serve") as storage:
        assert storage.streams.last_offset("items") == offset
        assert storage.items.get("a") is not None
        assert len(storage.state.hydrate("u").history) == 1
        assert storage.events.append([event(1)])[0].duplicate
        assert storage.consumer(SCHEMA).step() == 0


def test_a_server_outlives_the_thread_that_opened_it(short_folder: Path, tmp_path: Path) -> None:
    opened: list[Storage] = []
    thread = threading.Thread(
        target=lambda: opened.append(Storage.open(data_dir=short_folder / tmp_path.name, role="serve"))
    )
    thread.start()
    thread.join()
    with opened[0] as storage:
        assert storage.server is not None
        pid = storage.server.pid
        time.sleep(0.05)
        assert storage.items.put("a", {}).created and storage.server.pid == pid


def test_a_server_that_is_stopped_times_out_and_then_works_again(own: Storage) -> None:
    own.items.put("a", {"x": 1})
    assert own.server is not None and own.server.pid is not None
    os.kill(own.server.pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        with pytest.raises(StorageUnavailable, match=r"unavailable.*[Tt]imeout"):
            own.items.get("a")
        with pytest.raises(StorageUnavailable):
            own.events.append([event(1)])
        assert time.monotonic() - started < 5
    finally:
        os.kill(own.server.pid, signal.SIGCONT)
    until(lambda: writes(own))
    assert own.items.get("a") is not None
    own.events.append([event(1)])
    assert [entry.event.event_id for entry in own.events.read()] == ["e1"]


def test_a_server_that_is_killed_is_started_again_with_everything_acknowledged(own: Storage) -> None:
    consumer = own.consumer(SCHEMA)
    own.items.put("a", {"x": 1})
    own.events.append([event(1)])
    consumer.step()
    assert own.server is not None and own.server.pid is not None
    killed = own.server.pid
    os.kill(killed, signal.SIGKILL)
    with pytest.raises(StorageUnavailable):
        while True:
            own.items.get("a")
    until(lambda: writes(own))
    assert own.server.pid != killed
    document = own.items.get("a")
    assert document is not None and document.attributes == {"x": 1}
    own.events.append([event(1), event(2)])
    assert consumer.step() == 1
    assert len(own.state.hydrate("u").history) == 2


def test_a_replica_refuses_writes_and_a_full_server_too(own: Storage) -> None:
    own.items.put("a", {})
    own.client.call("REPLICAOF", "127.0.0.1", "1")
    for write in (
        lambda: own.items.put("a", {}),
        lambda: own.items.put_many([("a", {})]),
        lambda: own.events.append([event(1)]),
        lambda: own.streams.advance("events", "x", "1-0"),
    ):
        with pytest.raises(StorageUnavailable, match="READONLY"):
            write()
    own.client.call("REPLICAOF", "NO", "ONE")
    own.client.call("CONFIG", "SET", "maxmemory", "1")
    consumer = own.consumer(SCHEMA)
    with pytest.raises(StorageUnavailable, match="OOM"):
        own.items.put("a", {})
    with pytest.raises(StorageUnavailable, match="OOM"):
        consumer.step()
    own.client.call("CONFIG", "SET", "maxmemory", "0")
    assert own.items.put("a", {}).version == 2
    assert own.events.append([event(1)])[0].offset is not None


def test_durable_says_what_the_server_promises(own: Storage, redis_server_url: str | None) -> None:
    url = own.server.url if own.server else ""
    settings = {"appendfsync": "everysec", "no-appendfsync-on-rewrite": "yes", "appendonly": "no"}
    for name, value in settings.items():
        before = own.client.call("CONFIG", "GET", name)[1]
        own.client.call("CONFIG", "SET", name, value)
        with Storage.open(data_dir=own.data_dir, redis_url=url, role="test") as storage:
            assert not storage.durable and f"{name} {value}" in storage.durability
        own.client.call("CONFIG", "SET", name, before)
    own.client.call("ACL", "SETUSER", "guest", "on", "nopass", "~*", "+@all", "-config")
    with Storage.open(data_dir=own.data_dir, redis_url=url.replace("://", "://guest:x@"), role="test") as storage:
        assert not storage.durable and "cannot be read" in storage.durability
        storage.items.put("a", {})


def test_nothing_listens_and_the_url_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(StorageUnavailable, match="127.0.0.1:1") as raised:
        Storage.open(data_dir=tmp_path, redis_url="redis://me:secret@127.0.0.1:1/0", role="serve")
    assert "secret" not in str(raised.value)
    with pytest.raises(ValueError, match="dataset key"):
        Storage.open(data_dir=tmp_path, dataset_key="{x}", role="serve")


def test_a_second_owner_is_refused_by_name_and_a_job_attaches(own: Storage) -> None:
    with pytest.raises(DataFolderInUse, match=rf"process {os.getpid()} \(serve\)"):
        Storage.open(data_dir=own.data_dir, role="serve")
    own.items.put("a", {})
    code = (
        "import sys; from pathlib import Path; from services.storage import Storage\n"
        "with Storage.open(data_dir=Path(sys.argv[1]), role='import') as s:\n"
        "    print(s.owner, s.items.get('a').version); s.items.put('b', {})"
    )
    result = subprocess.run([sys.executable, "-c", code, str(own.data_dir)], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "1"]
    assert own.items.get("b") is not None


def test_a_folder_has_one_owner_with_an_outside_server_too(own: Storage, tmp_path: Path) -> None:
    url = own.server.url if own.server else ""
    with Storage.open(data_dir=tmp_path, redis_url=url, role="serve") as storage:
        assert storage.owner and storage.server is None
        with pytest.raises(DataFolderInUse):
            Storage.open(data_dir=tmp_path, redis_url=url, role="serve")
        with Storage.open(data_dir=tmp_path, redis_url=url, role="import") as job:
            assert not job.owner


def test_a_job_without_a_live_owner_owns_the_folder_while_it_runs(short_folder: Path, tmp_path: Path) -> None:
    folder = short_folder / tmp_path.name
    with Storage.open(data_dir=folder, role="import") as job:
        assert job.owner
        with pytest.raises(DataFolderInUse, match=rf"process {os.getpid()} \(import\)"):
            Storage.open(data_dir=folder, role="serve")
    with Storage.open(data_dir=folder, role="serve") as storage:
        assert storage.owner


def test_an_owner_without_a_server_is_reported(tmp_path: Path) -> None:
    lock = FolderLock.take(tmp_path, "serve")
    assert isinstance(lock, FolderLock)
    with pytest.raises(StorageUnavailable, match=r"\(serve\), has no server"):
        Storage.open(data_dir=tmp_path, role="import", start_timeout_ms=50)
    lock.release()


_OWNER = """
import sys, time
from pathlib import Path
from services.storage import Storage, server
if sys.argv[2] == "survivor":  # as on a system without a parent-death signal
    server._LAUNCHER = server._LAUNCHER.replace('"linux"', '"none"')
storage = Storage.open(data_dir=Path(sys.argv[1]), role="serve")
storage.items.put("a", {})
print(storage.server.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["ordinary", "survivor", "stopped survivor"])
def test_a_killed_owner_takes_its_server_along_or_the_next_one_ends_it(
    short_folder: Path, tmp_path: Path, kind: str
) -> None:
    folder = short_folder / tmp_path.name
    arguments = [sys.executable, "-c", _OWNER, str(folder), kind.split()[-1]]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        server_pid = int(owner.stdout.readline())
        owner.kill()
    if kind == "ordinary":
        until(lambda: gone(server_pid))
    else:
        assert not gone(server_pid)
        if kind == "stopped survivor":
            os.kill(server_pid, signal.SIGSTOP)
    assert (folder / "valkey" / "valkey.sock").exists()
    with Storage.open(data_dir=folder, role="serve") as storage:
        assert gone(server_pid)
        assert storage.items.get("a") is not None


def test_a_data_folder_whose_path_is_too_long_for_a_socket(
    tmp_path: Path, short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_folder / "run"))
    folder = tmp_path / ("x" * 120) / 'with space and "quote"'
    with Storage.open(data_dir=folder, role="serve") as storage:
        assert storage.server is not None
        socket = storage.server.socket_path
        assert len(os.fsencode(socket)) <= MAX_SOCKET_PATH_BYTES and socket.is_socket()
        assert json.loads((folder / "valkey" / "server.json").read_text())["socket"] == str(socket)
        storage.items.put("a", {})
        with Storage.open(data_dir=folder, role="job") as job:
            assert job.items.get("a") is not None and not job.owner
    assert not socket.exists()
    (short_folder / "run" / "shortlist").chmod(0o777)
    with pytest.raises(ServerStartFailed, match="only this user"):
        EmbeddedServer(folder)


def test_a_torn_last_write_is_cut_off_and_a_broken_log_is_reported(short_folder: Path, tmp_path: Path) -> None:
    folder = short_folder / tmp_path.name
    with Storage.open(data_dir=folder, role="serve") as storage:
        storage.items.put("a", {})
        storage.items.put("b", {})
    (log,) = (folder / "valkey" / "appendonlydir").glob("*.incr.aof")
    content = log.read_bytes()
    log.write_bytes(content[:-9])
    with Storage.open(data_dir=folder, role="serve") as storage:
        assert storage.items.get("a") is not None and storage.items.get("b") is None
    log.write_bytes(content.replace(b"HSET", b"XXXX"))
    with pytest.raises(ServerStartFailed, match=r"(?s)valkey\.log.*[Uu]nknown command"):
        Storage.open(data_dir=folder, role="serve")
    log.write_bytes(content)
    with Storage.open(data_dir=folder, role="serve") as storage:
        assert storage.items.get("b") is not None
