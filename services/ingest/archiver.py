"""Events and documents into files, in the background: what training and replay read."""

from __future__ import annotations

import structlog

from services.ingest.retrying import RetryingThread
from services.metrics import Metrics
from services.schema import DependencyState
from services.storage.storage import Storage


class Archiver:
    """Lets the archive and the catalogues take in what is new, every so often."""

    def __init__(
        self,
        storage: Storage,
        *,
        interval_s: float,
        metrics: Metrics,
        logger: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self._storage = storage
        self._interval_s = interval_s
        self._thread = RetryingThread("archive", self._step, metrics=metrics, logger=logger)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after what is being written."""
        self._thread.stop()

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()

    def state(self) -> DependencyState:
        """A full disk must not fill the log's memory unseen: an archive that fails is not ready."""
        failure = self._thread.failure
        if failure is not None:
            return DependencyState(ready=False, detail=f"retrying: {failure}")
        return DependencyState(ready=self._thread.running, detail="ok" if self._thread.running else "not running")

    def flush(self) -> None:
        """Write whatever waits, now."""
        self._storage.archive.step(flush=True)
        for catalogue in self._storage.catalogue.values():
            catalogue.step(flush=True)

    def _step(self) -> None:
        self._thread.pause(self._interval_s)
        self.flush()
