"""A thread that applies one stream, in order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import structlog

from services.clock import system_ms
from services.ingest.offsets import Progress
from services.ingest.retrying import RetryingThread
from services.metrics import Metrics
from services.schema import DependencyState
from services.storage.streams import START, Entry, StreamName, Streams, offset_tuple

BLOCK_MS = 250
"""How long one read waits at the server; an entry ends the wait at once, a stop has to await its end."""

Apply = Callable[[Sequence[Entry]], str]
"""Takes in entries, oldest first, and returns the offset that is reached with them."""


class StreamGap(Exception):
    """Entries were trimmed, or lost, before this follower had applied them."""


class Follower:
    """Reads a stream after the last applied entry, waiting at the server, and applies what comes."""

    def __init__(
        self,
        name: str,
        stream: StreamName,
        *,
        streams: Streams,
        after: str,
        apply: Apply,
        batch_size: int,
        metrics: Metrics,
        logger: structlog.typing.FilteringBoundLogger,
        behind: Follower | None = None,
    ) -> None:
        """behind: begin only once that follower has caught up for the first time."""
        self.name = name
        self.stream = stream
        self.progress = Progress(after)
        self._streams = streams
        self._apply = apply
        self._batch_size = batch_size
        self._applied = metrics.applied.labels(name)
        self._behind = behind
        self._gap_checked = False
        self._behind_since_ms: int | None = system_ms()
        self._caught_up = threading.Event()
        self._thread = RetryingThread(name, self._step, metrics=metrics, logger=logger, on_failure=self._fall_behind)
        self.start = self._thread.start
        self.stop = self._thread.stop
        self.join = self._thread.join
        metrics.watch_lag(name, self.lag_ms)

    def wait_caught_up(self, timeout_s: float) -> bool:
        """Wait until everything that was there at the start is applied."""
        return self._caught_up.wait(timeout_s)

    def lag_ms(self) -> float:
        """Age of the oldest entry that is not applied; 0 while caught up."""
        since = self._behind_since_ms
        return 0.0 if since is None else float(max(0, system_ms() - since))

    def state(self) -> DependencyState:
        """Ready once it has caught up for the first time, and while it does not fail."""
        failure = self._thread.failure
        if failure is not None:
            return DependencyState(ready=False, detail=f"retrying: {failure}")
        if not self._thread.running:
            return DependencyState(ready=False, detail="not running")
        if not self._caught_up.is_set():
            return DependencyState(ready=False, detail=f"catching up, at {self.progress.offset}")
        return DependencyState(ready=True, detail=f"at {self.progress.offset}")

    def _step(self) -> None:
        if self._behind is not None and not self._behind.wait_caught_up(0.2):
            return
        # While it fails or catches up it does not wait at the server, so that its state changes at once.
        waits = self._caught_up.is_set() and self._thread.failure is None
        after = self.progress.offset
        entries = self._streams.read(self.stream, after, self._batch_size, BLOCK_MS if waits else None)
        if not self._gap_checked or len(entries) == self._batch_size:
            # Checked after the read, before anything is applied: while we are behind, a trim may overtake us.
            gap = find_gap(self._streams, self.stream, after)
            if gap is not None:
                raise StreamGap(f"{gap}; start this process again so that it builds its state anew")
            self._gap_checked = True
        if entries:
            self._behind_since_ms = offset_tuple(entries[0].offset)[0]
            self.progress.advance(self._apply(entries))
            self._applied.inc(len(entries))
        if len(entries) < self._batch_size:
            self._behind_since_ms = None
            self._caught_up.set()

    def _fall_behind(self) -> None:
        self._gap_checked = False
        if self._behind_since_ms is None:
            self._behind_since_ms = system_ms()


def find_gap(streams: Streams, stream: StreamName, offset: str) -> str | None:
    """Say what keeps a follower at `offset` from going on with the stream; None where nothing does."""
    if offset == START:
        return None
    at, last = offset_tuple(offset), streams.last_offset(stream)
    if at > offset_tuple(last):
        return f"the {stream} stream ends at {last}, before {offset}: it is another stream, or has lost entries"
    first = streams.first_offset(stream)
    if at < offset_tuple(last) and (first is None or at < offset_tuple(first)):
        # A trim keeps the entry at the oldest offset that somebody needs, so ours is behind it.
        return f"the {stream} stream begins at {first or 'nothing'}, after {offset}: entries between were trimmed"
    return None
