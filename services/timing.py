"""Deadlines and stopwatches. Monotonic seconds inside, milliseconds at the border."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Deadline:
    """The time budget of one request. Stages ask what is left of it up to their own share.

    A share is the latest finishing point as a fraction of the whole budget, so time that an early stage
    did not need is there for the later ones.
    """

    __slots__ = ("budget_ms", "started")

    def __init__(self, budget_ms: float) -> None:
        self.budget_ms = budget_ms
        self.started = time.perf_counter()

    def elapsed_ms(self) -> float:
        """Milliseconds since the start."""
        return (time.perf_counter() - self.started) * 1000.0

    def left_ms(self, share: float = 1.0) -> float:
        """Milliseconds until `share` of the budget is spent; negative once it is."""
        return self.budget_ms * share - self.elapsed_ms()


class Stopwatch:
    """Milliseconds by name, for the `timings` of an answer."""

    __slots__ = ("laps", "started")

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.started = time.perf_counter()

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        """Add the time of the block to `name`, also when the block raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.laps[name] = self.laps.get(name, 0.0) + (time.perf_counter() - start) * 1000.0

    def total_ms(self) -> float:
        """Milliseconds since the stopwatch was made."""
        return (time.perf_counter() - self.started) * 1000.0
