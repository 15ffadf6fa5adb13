"""Batches made ahead, on a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

_Batch = TypeVar("_Batch")


def batches(make: Callable[[int], _Batch], indices: Sequence[int], depth: int) -> Iterator[_Batch]:
    """Yield make(i) for each index in order, with up to `depth` batches made ahead; 0 makes each when it is asked for.

    `make` runs on one thread, in order. What it raises is raised here, in the place of its batch. Closing the
    iterator ends the thread once the batch it is making is done.
    """
    if depth < 0:
        raise ValueError(f"depth is {depth}; expected 0 or more")
    if depth == 0:
        yield from map(make, indices)
        return
    ready: queue.Queue[tuple[_Batch | None, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def work() -> None:
        for index in indices:
            try:
                made: tuple[_Batch | None, BaseException | None] = (make(index), None)
            except BaseException as error:  # noqa: BLE001 - handed over, and raised where the batch is taken
                made = (None, error)
            while not stop.is_set():
                try:
                    ready.put(made, timeout=0.05)
                    break
                except queue.Full:
                    continue
            if stop.is_set() or made[1] is not None:
                return

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        for _ in indices:
            batch, error = ready.get()
            if error is not None:
                raise error
            yield batch  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
