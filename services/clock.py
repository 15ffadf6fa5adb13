"""The platform's now, which may lie apart from the machine's: data of the past can be served as if it were now."""

from __future__ import annotations

import time
from collections.abc import Callable


def system_ms() -> int:
    """Return the machine's time in milliseconds UTC."""
    return time.time_ns() // 1_000_000


class Clock:
    """Milliseconds UTC, shifted by a fixed offset. The caller keeps the offset wherever it must survive a restart."""

    def __init__(self, offset_ms: int = 0, source: Callable[[], int] = system_ms) -> None:
        """`source` answers the machine's time in ms; tests pass their own."""
        self._offset_ms = offset_ms
        self._source = source

    @classmethod
    def starting_at(cls, ts_ms: int, source: Callable[[], int] = system_ms) -> Clock:
        """Return a clock that shows `ts_ms` at this moment and runs on from there."""
        return cls(ts_ms - source(), source)

    @property
    def offset_ms(self) -> int:
        return self._offset_ms

    def now_ms(self) -> int:
        return self._source() + self._offset_ms

    def arrival_ms(self) -> int:
        """Return the machine's own time, for what has to do with arrival and not with the data (retry windows)."""
        return self._source()
