"""How the gateway learns whether histories and popularity hold an event: in this process or over HTTP."""

from __future__ import annotations

from typing import Protocol

from services.ingest.follower import Follower
from services.processes.remote import Remote
from services.schema import DependencyState
from services.storage.streams import StreamName


class IngestClient(Protocol):
    """What the gateway needs of ingest."""

    async def wait_applied(self, stream: StreamName, offset: str, timeout_ms: float) -> bool: ...

    async def state(self) -> DependencyState: ...

    async def close(self) -> None: ...


class LocalIngest:
    """The state follower of this process."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower

    async def wait_applied(self, stream: StreamName, offset: str, timeout_ms: float) -> bool:
        """Only events make state."""
        return stream != "events" or await self._follower.progress.wait(offset, timeout_ms)

    async def state(self) -> DependencyState:
        """The follower's."""
        return self._follower.state()

    async def close(self) -> None:
        """Nothing to let go of."""


class RemoteIngest:
    """Ingest in another process."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    async def wait_applied(self, stream: StreamName, offset: str, timeout_ms: float) -> bool:
        """Ask the other process to wait."""
        return await self._remote.wait_applied(stream, offset, timeout_ms)

    async def state(self) -> DependencyState:
        """The other process's /readyz."""
        return await self._remote.state()

    async def close(self) -> None:
        """Close the connections."""
        await self._remote.close()
