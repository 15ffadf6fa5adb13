"""Running a platform under uvicorn: in the foreground, or in a thread for as long as a block takes."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from services.folder import load_clock
from services.platform import PARTS, Part, Platform, build_platform
from services.settings import Settings, SettingsError

START_TIMEOUT_S = 60.0


def serve(settings: Settings, only: set[str] | None = None, ready: Callable[[str], None] | None = None) -> None:
    """Serve until interrupted. `ready` is called once with the base URL when requests are answered."""
    with _listening(settings) as (listener, url), _platform(settings, only) as platform:
        server = _server(platform, settings)
        if ready is not None:
            threading.Thread(target=_when_started, args=(server, ready, url), daemon=True).start()
        server.run(sockets=[listener])


@contextmanager
def served(settings: Settings) -> Iterator[str]:
    """Serve in a thread while the block runs; yields the base URL once everything has caught up."""
    with _listening(settings) as (listener, url), _platform(settings, None) as platform:
        server = _server(platform, settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="http")
        thread.start()
        try:
            _wait_started(server)
            platform.wait_caught_up(START_TIMEOUT_S)
            yield url
        finally:
            server.should_exit = True
            thread.join()


def _platform(settings: Settings, only: set[str] | None) -> Platform:
    parts: set[Part] | None = None if only is None else {part for part in PARTS if part in only}
    if only is not None and (unknown := only - set(PARTS)):
        raise SettingsError(f"--only {','.join(sorted(unknown))}: expected some of {', '.join(PARTS)}")
    return build_platform(settings, parts, clock=load_clock(settings.data_dir))


@contextmanager
def _listening(settings: Settings) -> Iterator[tuple[socket.socket, str]]:
    """Take the port before anything slow happens, so that a port in use is told at once."""
    host, port = settings.http.host, settings.http.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise SettingsError(f"cannot listen on {host} port {port}: {error.strerror}") from None
        yield listener, f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


def _server(platform: Platform, settings: Settings) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(platform.app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=5)
    )


def _wait_started(server: uvicorn.Server) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not server.started:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the HTTP server did not start within {START_TIMEOUT_S:.0f} s")
        time.sleep(0.01)


def _when_started(server: uvicorn.Server, ready: Callable[[str], None], url: str) -> None:
    _wait_started(server)
    ready(url)
