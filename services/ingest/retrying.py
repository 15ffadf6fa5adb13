"""A thread that repeats one step for as long as the process lives.

A failure is logged, counted, shown in /readyz and retried with backoff; the thread never dies silently.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from services.metrics import Metrics

FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 2.0


class RetryingThread:
    """Calls `step` over and over; after a failure it waits longer each time, until a step succeeds."""

    def __init__(
        self,
        name: str,
        step: Callable[[], None],
        *,
        metrics: Metrics,
        logger: structlog.typing.FilteringBoundLogger,
        on_failure: Callable[[], None] | None = None,
    ) -> None:
        self.failure: str | None = None
        """Why the last step failed; None while all is well."""
        self._name = name
        self._step = step
        self._metrics = metrics
        self._logger = logger.bind(follower=name)
        self._on_failure = on_failure
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def running(self) -> bool:
        """Whether the thread lives."""
        return self._thread.is_alive()

    @property
    def stopping(self) -> bool:
        """Whether the thread is to end."""
        return self._stopping.is_set()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the step at hand; `join` waits for that."""
        self._stopping.set()

    def join(self) -> None:
        """Wait until the thread has ended."""
        if self._thread.is_alive():
            self._thread.join()

    def pause(self, seconds: float) -> None:
        """Sleep inside a step, unless the thread is to end."""
        self._stopping.wait(seconds)

    def _run(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while not self._stopping.is_set():
            try:
                self._step()
            except Exception as error:  # noqa: BLE001 - whatever fails is shown and tried again
                if self._stopping.is_set():
                    return
                self._note(error, backoff_s)
                self._stopping.wait(backoff_s)
                backoff_s = min(MAX_BACKOFF_S, backoff_s * 2)
            else:
                backoff_s = FIRST_BACKOFF_S
                if self.failure is not None:
                    self._logger.info("follower recovered")
                    self.failure = None

    def _note(self, error: Exception, backoff_s: float) -> None:
        first = self.failure is None
        self.failure = f"{type(error).__name__}: {error}"
        self._metrics.follower_errors.labels(self._name).inc()
        # The whole trace once, then a line per attempt: a server that is away for an hour fills no disk.
        self._logger.error(
            "follower failed", retry_in_s=backoff_s, error=self.failure, exc_info=error if first else None
        )
        if self._on_failure is not None:
            self._on_failure()
