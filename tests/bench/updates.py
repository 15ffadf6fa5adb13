"""A writer beside searches: what it costs them, and how soon a write is seen."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from index.live import LiveIndex

TICK_S = 0.01
FIRST_KEY = 10**12  # keys of items that the writer adds and removes
PROBE_KEY = 2 * 10**12  # keys of items whose appearance is timed


class Writer(threading.Thread):
    """Upserts and deletes at a fixed rate, in one call of each kind per tick; ticks that come late are not skipped.

    Half of the operations are upserts, of items the index has and of new ones in equal parts; the other half deletes
    the oldest of the new ones, or keys that are gone already, so the catalogue keeps its size.
    """

    def __init__(self, index: LiveIndex, vector_ND: NDArray[np.float32], rate_per_s: int) -> None:
        super().__init__(name="writer")
        self._index, self._vectors = index, vector_ND
        self._per_call = round(rate_per_s * TICK_S / 2)
        self._stopping = threading.Event()
        self.num_operations, self.seconds = 0, 0.0
        self.error: Exception | None = None

    def run(self) -> None:
        rng = np.random.default_rng(11)
        start = time.perf_counter()
        try:
            for tick in itertools.count():
                if self._stopping.wait(max(0.0, start + tick * TICK_S - time.perf_counter())):
                    break
                self._write(rng, tick)
        except Exception as error:  # noqa: BLE001 - raised again by stop()
            self.error = error
        self.seconds = time.perf_counter() - start

    def stop(self) -> float:
        """Operations per second that were done."""
        self._stopping.set()
        self.join()
        if self.error is not None:
            raise self.error
        return self.num_operations / self.seconds

    def _write(self, rng: np.random.Generator, tick: int) -> None:
        size = self._per_call
        known = rng.choice(len(self._vectors), size // 2, replace=False)
        new = FIRST_KEY + tick * size + np.arange(size - size // 2)
        vectors = self._vectors[np.concatenate([known, rng.integers(len(self._vectors), size=new.size)])]
        buckets = rng.integers(1000, size=size).tolist()
        self._index.upsert(np.concatenate([known, new]), vectors, [{"bucket": each} for each in buckets])
        self._index.delete(FIRST_KEY + max(0, tick - 20) * size + np.arange(size))
        self.num_operations += 2 * size


def time_searches(search: Callable[[int], object], seconds: float) -> list[float]:
    """Milliseconds of one search after another, as one client sees them."""
    times, until = [], time.perf_counter() + seconds
    for number in itertools.count():
        start = time.perf_counter()
        if start >= until:
            return times
        search(number)
        times.append((time.perf_counter() - start) * 1000.0)
    raise AssertionError


def time_visibility(index: LiveIndex, rng: np.random.Generator, count: int) -> list[float]:
    """Milliseconds from the start of an upsert to the end of the first search that answers the item."""
    times = []
    for key in range(PROBE_KEY, PROBE_KEY + count):
        vector = 2 * rng.standard_normal((1, index.dim))
        start = time.perf_counter()
        index.upsert(np.array([key]), vector, [{"bucket": 0}])
        while index.search(vector[0], 1).keys[0, 0] != key:
            pass
        times.append((time.perf_counter() - start) * 1000.0)
        index.delete(np.array([key]))
    return times
