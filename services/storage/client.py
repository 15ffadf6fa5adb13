"""A small typed client of the Redis protocol: commands, pipelines, scripts and optimistic transactions.

It uses redis-py's connections and pool (URLs, TLS, authentication, parsing) and leaves out its command layer, whose
replies depend on the protocol version and whose default retries would send a write twice. Replies here are what the
server sent: bytes, int, None and lists of those.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis.exceptions import ConnectionError as ServerGone
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as ServerSilent

from services.storage.errors import CommandFailed, StorageUnavailable

Argument = bytes | str | int | float
Command = tuple[Argument, ...]

MAX_PIPELINE_COMMANDS = 1_000
MAX_CONNECTIONS = 512

_PASSING = re.compile(r"\b(READONLY|OOM|MISCONF|NOREPLICAS|LOADING|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|BUSY|EXECABORT)\b")


class Script:
    """A Lua script, sent by its digest once the server has it."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.digest = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

    def command(self, keys: Sequence[str], arguments: Sequence[Argument]) -> Command:
        return ("EVALSHA", self.digest, len(keys), *keys, *arguments)


class Client:
    """Thread-safe; each call takes a connection of a pool and gives it back.

    A connection that died while idle is replaced before it is used, so the client is well again as soon as the
    server is. Nothing is sent twice.
    """

    def __init__(self, url: str, *, timeout_ms: int) -> None:
        """`url`: redis://, rediss:// or unix://.  `timeout_ms` bounds connecting and every read and write."""
        if timeout_ms <= 0:
            raise ValueError(f"timeout_ms is {timeout_ms}; expected more than 0")
        self.timeout_ms = timeout_ms
        self._address = re.sub(r"//[^@/]*@", "//", url)
        self._pool: Any = redis.ConnectionPool.from_url(
            url,
            socket_timeout=timeout_ms / 1000,
            socket_connect_timeout=timeout_ms / 1000,
            max_connections=MAX_CONNECTIONS,
            protocol=2,
        )

    def close(self) -> None:
        self._pool.disconnect()

    def call(self, *command: Argument) -> Any:
        """Run one command and return its reply."""
        with self._connection() as connection:
            return _exchange(connection, [command])[0]

    def pipeline(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands in as few round trips as possible; not atomic. Raises the first error after all have run."""
        replies: list[Any] = []
        with self._connection() as connection:
            for start in range(0, len(commands), MAX_PIPELINE_COMMANDS):
                replies += _exchange(connection, commands[start : start + MAX_PIPELINE_COMMANDS])
        return replies

    def atomically(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands as one transaction (MULTI/EXEC) in one round trip."""
        with self._connection() as connection:
            return list(_exchange(connection, [("MULTI",), *commands, ("EXEC",)])[-1])

    def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """Run a script, sending its source if the server does not know it (it forgets at a restart)."""
        with self._connection() as connection:
            try:
                return _exchange(connection, [script.command(keys, arguments)])[0]
            except NoScriptError:
                return _exchange(connection, [("EVAL", script.source, len(keys), *keys, *arguments)])[0]

    def run_many(self, script: Script, calls: Sequence[tuple[Sequence[str], Sequence[Argument]]]) -> list[Any]:
        """Run one script many times, pipelined."""
        replies: list[Any] = []
        step = MAX_PIPELINE_COMMANDS
        with self._connection() as connection:
            for start in range(0, len(calls), step):
                commands = [script.command(keys, arguments) for keys, arguments in calls[start : start + step]]
                replies += _exchange(connection, [("SCRIPT", "LOAD", script.source), *commands])[1:]
        return replies

    @contextmanager
    def watching(self, *keys: str) -> Iterator[Watch]:
        """Read under WATCH, then commit only if none of `keys` has changed since."""
        with self._connection() as connection:
            watch = Watch(connection, keys)
            try:
                yield watch
            finally:
                watch.release()

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        connection = None
        try:
            connection = self._pool.get_connection()
            yield connection
        except (ServerGone, ServerSilent) as error:
            raise StorageUnavailable(f"storage at {self._address} is unavailable: {error}") from error
        except ResponseError as error:
            if _is_passing(error):
                raise StorageUnavailable(f"storage at {self._address} refuses: {_text(error)}") from error
            raise CommandFailed(f"storage at {self._address}: {_text(error)}") from error
        except RedisError as error:
            raise CommandFailed(f"storage at {self._address}: {error}") from error
        finally:
            if connection is not None:
                self._pool.release(connection)


class Watch:
    """One optimistic transaction; see `Client.watching`."""

    def __init__(self, connection: Any, keys: Sequence[str]) -> None:
        self._connection = connection
        self._begin: list[Command] = [("WATCH", *keys)]
        self._watching = False

    def read(self, commands: Sequence[Command]) -> list[Any]:
        replies = _exchange(self._connection, [*self._begin, *commands])[len(self._begin) :]
        self._begin, self._watching = [], True
        return replies

    def commit(self, commands: Sequence[Command]) -> bool:
        """Return False, having changed nothing, if a watched key changed since it was read."""
        reply = _exchange(self._connection, [("MULTI",), *commands, ("EXEC",)])[-1]
        self._watching = False
        return reply is not None

    def release(self) -> None:
        if self._watching and self._connection.is_connected:
            _exchange(self._connection, [("UNWATCH",)])
            self._watching = False


def _exchange(connection: Any, commands: Sequence[Command]) -> list[Any]:
    """Send commands, read every reply, then raise the first error among them."""
    # Any way out other than a full set of replies leaves answers on the wire: such a connection is closed, not reused.
    complete = False
    try:
        connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        replies: list[Any] = []
        for _ in commands:
            try:
                replies.append(connection.read_response(disconnect_on_error=False))
            except ResponseError as error:
                replies.append(error)
        complete = True
    finally:
        if not complete:
            connection.disconnect()
    # Only a transaction's reply holds other commands' replies, errors among them.
    inner = replies[-1] if commands[-1][0] == "EXEC" and isinstance(replies[-1], list) else []
    for reply in (*replies, *inner):
        if isinstance(reply, RedisError):
            raise reply
    return replies


def _is_passing(error: ResponseError) -> bool:
    code = getattr(error, "status_code", None) or ""
    return bool(_PASSING.search(f"{code} {error}")) or type(error).__name__ in _PASSING_CLASSES


# Their code is not in the message, and releases of redis-py before 8 do not keep it beside the message.
_PASSING_CLASSES = {
    "ReadOnlyError",
    "OutOfMemoryError",
    "MasterDownError",
    "ClusterDownError",
    "TryAgainError",
    "ExecAbortError",
}


def _text(error: ResponseError) -> str:
    code = getattr(error, "status_code", None)
    return f"{code} {error}" if code else f"{error}"
