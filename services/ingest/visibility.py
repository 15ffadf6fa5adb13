"""Who has to apply a write before the next recommendation sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from services.ingest.offsets import Position
from services.processes.remote import RemoteUnavailable
from services.storage.streams import StreamName

Wait = Callable[[StreamName, str, float], Awaitable[bool]]
"""(stream, offset, timeout_ms) -> whether it is applied."""


class Visibility:
    """Waits for every process that applies a stream. A stream that nobody applies is read from storage directly."""

    def __init__(self, waits: Mapping[StreamName, Sequence[Wait]]) -> None:
        self._waits = waits

    async def wait(self, positions: Sequence[Position], timeout_ms: float) -> bool:
        """Wait until all of them are applied everywhere; False if that took longer, or somebody cannot be asked."""
        calls = [
            wait(position.stream, position.offset, timeout_ms)
            for position in positions
            for wait in self._waits.get(position.stream, ())
        ]
        try:
            return all(await asyncio.gather(*calls))
        except (RemoteUnavailable, TimeoutError):
            return False
