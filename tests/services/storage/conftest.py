"""Servers for the storage tests: the embedded one, redis-server, and what SHORTLIST_TEST_REDIS_URL names."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.clock import Clock
from services.storage import Storage
from services.storage.server import answers

OpenStorage = Callable[..., Storage]


@pytest.fixture(scope="session")
def short_folder() -> Iterator[Path]:
    """A folder with a short path: a socket's path may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="sl-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def embedded_owner(short_folder: Path) -> Iterator[Storage]:
    with Storage.open(data_dir=short_folder / "embedded", role="serve") as storage:
        yield storage


@pytest.fixture(scope="session")
def redis_server_url(short_folder: Path) -> Iterator[str | None]:
    binary = shutil.which("redis-server")
    if binary is None:
        yield None
        return
    folder = short_folder / "redis"
    folder.mkdir()
    settings = ["--port", "0", "--save", "", "--appendonly", "yes", "--appendfsync", "always"]
    command = [binary, "--unixsocket", str(folder / "s"), "--dir", str(folder), *settings]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 10
        while not answers(folder / "s"):
            assert time.monotonic() < deadline, "redis-server did not answer within 10 s"
            time.sleep(0.01)
        yield f"unix://{folder / 's'}"
        process.terminate()


_GIVEN_URL = os.environ.get("SHORTLIST_TEST_REDIS_URL")


@pytest.fixture(params=["embedded", "redis-server", *(["url"] if _GIVEN_URL else [])])
def open_storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenStorage]:
    """Opens storages of one fresh dataset on the server under test, and cleans up."""
    url: str | None
    data_dir = tmp_path
    if request.param == "embedded":
        url, data_dir = None, request.getfixturevalue("embedded_owner").data_dir
    elif request.param == "redis-server":
        url = request.getfixturevalue("redis_server_url")
        if url is None:
            pytest.skip("redis-server is not installed")
    else:
        url = _GIVEN_URL
    dataset_key = f"test-{uuid.uuid4().hex[:12]}"
    opened: list[Storage] = []

    def open_one(clock: Clock | None = None, folder: Path | None = None) -> Storage:
        storage = Storage.open(
            data_dir=data_dir if url is None else folder or data_dir,
            redis_url=url,
            dataset_key=dataset_key,
            role="test",
            clock=clock,
        )
        opened.append(storage)
        return storage

    yield open_one
    for storage in opened[:1]:
        names = storage.client.call("KEYS", storage.names.prefix.replace("{", "[{]") + "*")
        if names:
            storage.client.call("DEL", *names)
    for storage in opened:
        storage.close()


@pytest.fixture
def storage(open_storage: OpenStorage) -> Storage:
    return open_storage()


@pytest.fixture
def embedded(embedded_owner: Storage) -> Iterator[Storage]:
    """A fresh dataset on the embedded server alone, for what does not depend on the server."""
    with Storage.open(
        data_dir=embedded_owner.data_dir, dataset_key=f"test-{uuid.uuid4().hex[:12]}", role="test"
    ) as storage:
        yield storage
