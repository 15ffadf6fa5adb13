"""Who may still see a freed row: epochs of readers, and the rows waiting for them to leave."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray


class Quarantine:
    """Every publication of the writer begins a new epoch. A reader belongs to the epoch it entered in.

    A row freed by the publication that began epoch e can be seen by readers of earlier epochs only, so it is
    free again when every active reader entered at e or later. The caller holds its own lock around every call.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self._next_reader = 0
        self._entered_at: dict[int, int] = {}  # reader -> epoch, oldest first
        self._waiting: deque[tuple[int, NDArray[np.int64]]] = deque()

    def enter(self) -> int:
        """Register a reader; the answer is handed to `leave`."""
        self._next_reader += 1
        self._entered_at[self._next_reader] = self.epoch
        return self._next_reader

    def leave(self, reader: int) -> None:
        del self._entered_at[reader]

    def publish(self, freed: NDArray[np.int64]) -> None:
        """Begin an epoch in which the freed rows are no longer visible to new readers."""
        self.epoch += 1
        if freed.size:
            self._waiting.append((self.epoch, freed))

    def release(self) -> list[NDArray[np.int64]]:
        """The rows that no reader can see any more."""
        # Insertion order is entry order, so the first active reader has the lowest epoch.
        oldest = next(iter(self._entered_at.values()), self.epoch)
        released = []
        while self._waiting and self._waiting[0][0] <= oldest:
            released.append(self._waiting.popleft()[1])
        return released

    @property
    def num_waiting(self) -> int:
        """Rows freed and not yet released."""
        return sum(rows.size for _, rows in self._waiting)
