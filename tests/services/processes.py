"""The `shortlist` command as processes of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx

SHORTLIST = [sys.executable, "-m", "services.cli"]


def run(*arguments: str, data_dir: Path, expect: int = 0, **variables: str) -> str:
    environment = os.environ | {"SHORTLIST_DATA_DIR": str(data_dir), "COLUMNS": "200"} | variables
    done = subprocess.run([*SHORTLIST, *arguments], env=environment, capture_output=True, text=True, timeout=170)
    output = done.stdout + done.stderr
    assert done.returncode == expect, output
    return output


@contextmanager
def started(*arguments: str, data_dir: Path, log: Path, **variables: str) -> Iterator[str]:
    """A `shortlist serve` process that is ready; yields its base URL, interrupts it afterwards."""
    with log.open("w") as output:
        process, url = start(*arguments, data_dir=data_dir, output=output, **variables)
        try:
            wait_ready(process, url, log)
            yield url
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


def start(*arguments: str, data_dir: Path, output: IO[str], **variables: str) -> tuple[subprocess.Popen[bytes], str]:
    """Start a process on a free port; return it with its base URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"SHORTLIST_DATA_DIR": str(data_dir)} | variables
    command = [*SHORTLIST, *arguments, "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    return process, f"http://127.0.0.1:{port}"


def wait_ready(process: subprocess.Popen[bytes], url: str, log: Path, timeout_s: float = 60.0) -> None:
    """Wait until /readyz says yes; fail with the log if the process ends or the time is up."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(f"{url}/readyz", timeout=2.0).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"not ready within {timeout_s:.0f} s: {log.read_text()}")
