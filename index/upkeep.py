"""What an index does beside its readers and writers: growth ahead of need, compaction, sorting, centring of codes.

A piece of work reads what writers change without holding them off, then holds them off for the moment in which it
catches up with what they changed meanwhile and shows the result. Writers that outrun it grow by themselves.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from index.bits import list_bits
from index.memory import give_back_freed
from index.rows import RowArrays
from index.state import State
from index.writing import Writer

GROW_FROM = 0.75  # of the capacity
COMPACT_BELOW = 0.8  # of the rows in use
MIN_COMPACT_ROWS = 4096
COMPACT_ROWS = 512  # moved at once
MEAN_ROWS = 256  # the first time so many rows are alive, their mean centres the codes for good
CATCH_UP_ROWS, CATCH_UP_ROUNDS = 1024, 16  # copied while writers wait; tries to come down to that beside them
AHEAD_SHARE, MAX_AHEAD_ROWS = 32, 1 << 15  # memory kept ready for new rows: 1/32 of the rows, at most so many
MIN_AHEAD_ROWS = 512
TRIM_ROWS = 1 << 17  # sorting so many leaves megabytes of freed memory with the C library
PAUSE_S = 0.002  # between two steps of compaction, for the writers
QUIET_S = 2.0  # without work for so long, memory goes back to the system
RETRY_S = 0.05  # where readers of old moments hold rows that work has to wait for


class Upkeep:
    """The pending work of one index, a step at a time and by one thread at a time."""

    def __init__(self, state: State, writer: Writer) -> None:
        self._state, self._writer = state, writer
        self._working = threading.RLock()
        self.left_memory = False

    def _steps(self) -> Iterator[tuple[Callable[[], bool], Callable[[], bool]]]:
        """When a piece of work is due, and the work, the most urgent first."""
        yield self._wants_memory, self._populate
        yield self._wants_key_room, self._enlarge_keys
        yield self._wants_copy, self._grow
        yield self._wants_mean, self._centre
        yield self._wants_sorting, self._sort
        yield self._wants_compaction, self._compact

    @property
    def is_due(self) -> bool:
        return any(wanted() for wanted, _ in self._steps())

    def step(self) -> bool:
        """Do the most urgent piece of work; whether anything was done."""
        with self._working:
            return any(wanted() and work() for wanted, work in self._steps())

    def catch_up(self) -> None:
        """Do everything that is due, apart from what readers of old moments hold up."""
        while self.step():
            pass
        self.trim()

    # Memory

    def _ahead(self) -> int:
        state = self._state
        ahead = min(state.num_rows // AHEAD_SHARE, MAX_AHEAD_ROWS)
        return min(state.arrays.capacity, state.num_rows + ahead) if ahead >= MIN_AHEAD_ROWS else 0

    def _wants_memory(self) -> bool:
        state, ahead = self._state, self._ahead()
        left = state.arrays.populated_rows - state.num_rows
        return ahead > state.arrays.populated_rows and 2 * left < ahead - state.num_rows

    def _populate(self) -> bool:
        state, arrays = self._state, self._state.arrays
        arrays.populated_rows = max(arrays.populated_rows, state.num_rows)
        arrays.populate(self._ahead())
        return True

    # Key map

    def _wants_key_room(self) -> bool:
        return self._state.row_of.is_nearly_full

    def _enlarge_keys(self) -> bool:
        state = self._state
        old = state.row_of
        larger = old.begin_larger()
        with state.write_lock, state.publish_lock:
            reader = state.quarantine.enter()  # so that no key below changes its row's content
            larger.copy_slots(old)
            key_N = state.arrays.key_N
            state.watch()
        try:
            larger.fill(key_N)
            with state.write_lock, state.publish_lock:
                key_N = state.arrays.key_N
                larger.follow(old, np.unique(key_N[state.touched(last=True)]), key_N)
                state.row_of = larger
        finally:
            with state.publish_lock:
                state.quarantine.leave(reader)
        return True

    # Replaced arrays

    def _wants_copy(self) -> bool:
        arrays = self._state.arrays
        return self._state.num_rows >= GROW_FROM * arrays.capacity or arrays.columns.wants_copy

    def _grow(self) -> bool:
        def begin(source: RowArrays) -> RowArrays:
            full = self._state.num_rows >= GROW_FROM * source.capacity
            return source.begin_growth(source.capacity * 3 // 2 if full else source.capacity)

        return self._replace(begin)

    def _wants_mean(self) -> bool:
        return not self._state.arrays.has_mean and self._state.num_items >= MEAN_ROWS

    def _centre(self) -> bool:
        return self._replace(RowArrays.begin_centring)

    def _replace(self, begin: Callable[[RowArrays], RowArrays]) -> bool:
        """Show a replacement of the arrays; not, where a writer replaced them first."""
        state = self._state
        with state.write_lock:
            source, rows = state.arrays, np.arange(state.written_rows)
            state.watch()
        replacement = begin(source)
        for _ in range(CATCH_UP_ROUNDS):
            replacement.copy_rows(source, rows)
            with state.write_lock:
                rows = state.touched()
                if rows.size <= CATCH_UP_ROWS or state.arrays is not source:
                    return self._finish(source, replacement, rows)
        with state.write_lock:
            return self._finish(source, replacement, np.union1d(rows, state.touched()))

    def _finish(self, source: RowArrays, replacement: RowArrays, rows: NDArray[np.int64]) -> bool:
        self._state.touched(last=True)
        if self._state.arrays is source:
            replacement.copy_rows(source, rows)
            replacement.finish(source)
            self._state.replace(replacement)
        return True

    # Order of columns

    def _wants_sorting(self) -> bool:
        return self._state.arrays.columns.wants_sorting

    def _sort(self) -> bool:
        self._state.arrays.columns.sort()
        self.left_memory = self.left_memory or self._state.num_rows >= TRIM_ROWS
        return True

    def trim(self) -> None:
        """Give back what sorting left with the C library. Whoever takes memory next waits for the system's pages."""
        if self.left_memory:
            self.left_memory = False
            give_back_freed()

    # Compaction

    def _wants_compaction(self) -> bool:
        num_rows = self._state.num_rows
        return num_rows > MIN_COMPACT_ROWS and self._state.num_items < COMPACT_BELOW * num_rows

    def _compact(self) -> bool:
        """Where many rows stand empty, move some of the last live ones into them, and give up the rows at the end.

        An item moves as an upsert does, so readers keep what they see. False where no row could be moved or given up.
        """
        state = self._state
        with state.write_lock:
            state.release()
            free = np.sort(np.concatenate([np.empty(0, np.int64), *state.free]))
            # Rows at the end that nobody can see are not rows any more.
            kept = free.size - _count_at_end(free, state.num_rows)
            given_up = free.size - kept
            with state.publish_lock:
                state.num_rows -= given_up
            free = free[:kept]
            live_W = state.arrays.live_W[: (state.num_rows + 63) // 64]
            last_words = np.flatnonzero(live_W)[-(COMPACT_ROWS // 64) :]
            last = np.zeros_like(live_W)
            last[last_words] = live_W[last_words]
            rows = list_bits(last)[::-1][: free.size]
            to = free[: rows.size]
            better = to < rows
            rows, to = rows[better], to[better]
            state.free = [free[to.size :]]
            if rows.size:
                self._writer.move(rows, to)
        return bool(given_up or rows.size)


def _count_at_end(free: NDArray[np.int64], num_rows: int) -> int:
    """How many of the sorted rows are the last ones, without a gap."""
    gaps = np.flatnonzero(free[::-1] != num_rows - 1 - np.arange(free.size))
    return int(gaps[0]) if gaps.size else free.size


class Background:
    """A thread that does an upkeep's work when it is woken. It does not keep the index alive, and ends with it."""

    def __init__(self, upkeep: Upkeep) -> None:
        self._wake, self._closed = threading.Event(), threading.Event()
        self._upkeep = weakref.ref(upkeep, lambda _, wake=self._wake: wake.set())  # type: ignore[misc]
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def wake(self) -> None:
        """Have work looked for; starts the thread where it does not run, as after a fork."""
        self._wake.set()
        if (self._thread is None or not self._thread.is_alive()) and not self._closed.is_set():
            with self._starting:
                if self._thread is None or not self._thread.is_alive():
                    arguments = (self._upkeep, self._wake, self._closed)
                    self._thread = threading.Thread(target=_tend, args=arguments, name="index-upkeep", daemon=True)
                    self._thread.start()

    def close(self) -> None:
        """End the thread after its present step; no other is started."""
        self._closed.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()


def _tend(of: weakref.ref[Upkeep], wake: threading.Event, closed: threading.Event) -> None:
    timeout = None
    while True:
        woken = wake.wait(timeout)
        wake.clear()
        upkeep = of()
        if upkeep is None or closed.is_set():
            return
        while not closed.is_set() and upkeep.step():
            closed.wait(PAUSE_S)
        if not woken and not upkeep.is_due:
            upkeep.trim()
        timeout = RETRY_S if upkeep.is_due else QUIET_S if upkeep.left_memory else None
        del upkeep
