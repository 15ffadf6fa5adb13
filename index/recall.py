"""What approximate searches find, measured while they are answered: every n-th is also answered exactly, beside it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Lock, Thread

import numpy as np

from index.hits import Hits


class RecallSample:
    """The recall of the last measured searches. Thread-safe; one measurement at a time, callers never wait for it."""

    def __init__(self, every: int, window: int) -> None:
        self._every = every
        self._lock = Lock()
        self._num_searches = 0
        self._found: deque[tuple[int, int]] = deque(maxlen=window)  # results found, results there were
        self._running: Thread | None = None

    def note(self, measure: Callable[[], tuple[Hits, Hits]]) -> None:
        """Count a search. Where its turn has come, and no other is being measured, measure it on a thread.

        measure: the answer as it was given and the exact one, of one moment of the index.
        """
        with self._lock:
            due = self._num_searches % self._every == 0
            self._num_searches += 1
            if due and (self._running is None or not self._running.is_alive()):
                self._running = Thread(target=self._measure, args=(measure,), name="index-recall", daemon=True)
                self._running.start()

    def _measure(self, measure: Callable[[], tuple[Hits, Hits]]) -> None:
        counts = count_found(*measure())
        with self._lock:
            self._found.append(counts)

    def wait(self) -> None:
        """Until the measurement that runs, if one does, is counted."""
        running = self._running
        if running is not None:
            running.join()

    def read(self) -> tuple[float | None, int]:
        """The recall, None where nothing was measured or to be found, and of how many searches it is."""
        with self._lock:
            found, there = (sum(each) for each in zip(*self._found, strict=True)) if self._found else (0, 0)
            return (found / there if there else None), len(self._found)


def count_found(given: Hits, exact: Hits) -> tuple[int, int]:
    """Results of the exact answer that the given one has, and how many there were; a tie with the last is as good."""
    found = there = 0
    for keys, scores, wanted in zip(given.keys, given.scores, exact.scores, strict=True):
        count = int((wanted > -np.inf).sum())
        there += count
        if count:
            found += int(((scores >= wanted[count - 1]) & (keys != -1)).sum())
    return found, there
