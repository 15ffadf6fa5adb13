"""Places in the streams: how a write is named on the wire, and who has applied it."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import re
import threading
from typing import NamedTuple, cast

from services.storage.streams import START, StreamName, offset_tuple

_WIRE = re.compile(r"(items|users|events):([0-9]{1,20}-[0-9]{1,20})", re.ASCII)
Order = tuple[int, int]


class Position(NamedTuple):
    """An entry of a stream. On the wire `items:1700000000000-0`."""

    stream: StreamName
    offset: str

    def __str__(self) -> str:
        return f"{self.stream}:{self.offset}"


def parse_position(text: str) -> Position:
    """The reverse of `str(position)`; ValueError for anything else."""
    match = _WIRE.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text!r} is not an offset; expected one that a write answered with, like items:1700000000000-0"
        )
    return Position(cast(StreamName, match[1]), match[2])


class Progress:
    """How far a follower has come, and everybody who waits for it. Thread-safe; waits on event loops."""

    def __init__(self, offset: str = START) -> None:
        self._lock = threading.Lock()
        self._offset = offset
        self._order = offset_tuple(offset)
        self._waiting: list[tuple[Order, int, asyncio.AbstractEventLoop, asyncio.Future[bool]]] = []
        self._tickets = itertools.count()

    @property
    def offset(self) -> str:
        """The last entry applied."""
        return self._offset

    def advance(self, offset: str) -> None:
        """Everything up to `offset` is applied: wake who waits for it."""
        with self._lock:
            self._offset, self._order = offset, offset_tuple(offset)
            while self._waiting and self._waiting[0][0] <= self._order:
                _, _, loop, future = heapq.heappop(self._waiting)
                if not loop.is_closed():
                    loop.call_soon_threadsafe(_wake, future)

    async def wait(self, offset: str, timeout_ms: float) -> bool:
        """Wait until the entry is applied; False if that took longer than `timeout_ms`."""
        order = offset_tuple(offset)
        loop = asyncio.get_running_loop()
        with self._lock:
            if order <= self._order:
                return True
            if timeout_ms <= 0:
                return False
            future: asyncio.Future[bool] = loop.create_future()
            heapq.heappush(self._waiting, (order, next(self._tickets), loop, future))
        try:
            return await asyncio.wait_for(future, timeout_ms / 1000.0)
        except TimeoutError:
            return False
        finally:
            self._forget(future)

    @property
    def num_waiting(self) -> int:
        """Waits under way."""
        return len(self._waiting)

    def _forget(self, future: asyncio.Future[bool]) -> None:
        """Drop a wait that ended by itself: one for an offset that never comes would stay for ever."""
        with self._lock:
            left = [waiting for waiting in self._waiting if waiting[3] is not future]
            if len(left) < len(self._waiting):
                heapq.heapify(left)
                self._waiting = left


def _wake(future: asyncio.Future[bool]) -> None:
    if not future.done():
        future.set_result(True)
