"""Searches of several threads joined into one: the index's codes are read once for all of them.

A caller that finds the index idle searches at once; there is no timer that a lone caller could wait for. Callers that
come while a search runs wait for its end, or `max_wait_ms` while fewer than `max_running` searches run, and then go
together, whatever their filters and exclusions. More searches than that at once would only take the cores from one
another, so waiting for company costs a caller at most `max_wait_ms`; but it is answered with the longest beside it.
"""

# B = queries, K = results, D = dimensions

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from threading import Event, Lock
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from index.checks import check_k, check_keys, check_queries
from index.hits import Hits
from index.tree import Filter

MAX_K_RATIO, SMALL_K = 4, 256  # a short answer is not made to wait for one that is this much longer


class Joinable(Protocol):
    """An index whose queries may have a filter and exclusions each: `LiveIndex`."""

    @property
    def dim(self) -> int: ...

    def search(
        self,
        query: ArrayLike,
        k: int,
        filter: Filter | None = None,
        exclude: ArrayLike | None = None,
        *,
        filters: Sequence[Filter | None] | None = None,
        excludes: Sequence[ArrayLike | None] | None = None,
    ) -> Hits: ...

    def vectors(self, keys: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.bool_]]: ...


@dataclass(slots=True, eq=False)
class _Request:
    """One caller's search."""

    query_BD: NDArray[np.float32]
    k: int
    filter: Filter | None
    exclude: NDArray[np.int64] | None
    answer: Hits | Exception | None = None
    moved: Event = field(default_factory=Event)  # set when it is answered, or is to search itself

    @property
    def num_queries(self) -> int:
        return len(self.query_BD)


class BatchingIndex:
    """An index whose `search` joins concurrent calls.

    The hits are those of a search alone. The counts of rows scanned and rescored are of the joined search, and
    `Hits.num_joined` says how many calls shared it.
    """

    def __init__(
        self, index: Joinable, *, max_wait_ms: float = 1.0, max_queries: int = 64, max_running: int = 2
    ) -> None:
        """max_wait_ms: the longest that a caller waits for company. max_queries: of one joined search.

        max_running: searches of the index at the same time.
        """
        if not max_wait_ms >= 0 or max_queries < 1 or max_running < 1:
            raise ValueError(
                f"max_wait_ms = {max_wait_ms}, max_queries = {max_queries}, max_running = {max_running}: "
                "expected >= 0, >= 1 and >= 1"
            )
        self._index = index
        self._max_wait_s = max_wait_ms / 1000.0
        self._max_queries = max_queries
        self._max_running = max_running
        self._lock = Lock()  # of everything below
        self._num_running = 0
        self._waiting: list[_Request] = []
        self.num_calls = 0  # answered so far
        self.num_searches = 0  # searches of the index so far; fewer than calls where calls were joined

    @property
    def dim(self) -> int:
        return self._index.dim

    def vectors(self, keys: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        return self._index.vectors(keys)

    def search(self, query: ArrayLike, k: int, filter: Filter | None = None, exclude: ArrayLike | None = None) -> Hits:
        """As the index's own `search`; what is wrong with one call is raised to its caller alone."""
        check_k(k)
        request = _Request(check_queries(query, self.dim), k, filter, None if exclude is None else check_keys(exclude))
        batch = self._join(request)
        if batch:
            try:
                self._run(batch)
            finally:
                self._leave(batch)
        while request.answer is None:
            request.moved.clear()  # it was told to search while another one took it along
            if request.answer is None:
                request.moved.wait()
        if isinstance(request.answer, Exception):
            raise request.answer
        return request.answer

    def _join(self, request: _Request) -> list[_Request]:
        """The requests that the caller shall search for, its own among them; empty where another one has taken it."""
        with self._lock:
            if self._num_running == 0:
                return self._take(request)
            self._waiting.append(request)
        patience_s: float | None = self._max_wait_s
        while True:
            request.moved.wait(patience_s)
            with self._lock:
                if request not in self._waiting:
                    return []
                if self._num_running < self._max_running:
                    return self._take(request)
                request.moved.clear()
            patience_s = None  # a search that ends tells the oldest of those waiting

    def _take(self, request: _Request) -> list[_Request]:
        """The request and those waiting beside it, oldest first, as far as max_queries allows."""
        batch, count, left = [request], request.num_queries, []
        for other in self._waiting:
            if other is request:
                continue
            if count + other.num_queries <= self._max_queries:
                batch.append(other)
                count += other.num_queries
            else:
                left.append(other)
        self._waiting = left
        self._num_running += 1
        return batch

    def _leave(self, batch: Sequence[_Request]) -> None:
        """Let the oldest of those waiting search next, and the callers of the batch go."""
        with self._lock:
            self._num_running -= 1
            self.num_calls += len(batch)
            if self._waiting:
                self._waiting[0].moved.set()
        for each in batch:
            if each.answer is None:
                each.answer = RuntimeError("the thread that searched for this caller was interrupted")
            each.moved.set()

    def _run(self, batch: Sequence[_Request]) -> None:
        for group in _group(batch):
            try:
                self._answer(group)
            except Exception as error:  # noqa: BLE001 - raised again in the threads of its callers
                if len(group) == 1:
                    group[0].answer = error
                    continue
                for request in group:
                    self._answer_alone(request)

    def _answer_alone(self, request: _Request) -> None:
        try:
            self._answer([request])
        except Exception as error:  # noqa: BLE001 - raised again in the caller's thread
            request.answer = error

    def _answer(self, group: Sequence[_Request]) -> None:
        """One search for all; k is raised to the largest and cut afterwards."""
        with self._lock:
            self.num_searches += 1
        if len(group) == 1:
            (alone,) = group
            alone.answer = self._index.search(alone.query_BD, alone.k, alone.filter, alone.exclude)
            return
        hits = self._index.search(
            np.concatenate([request.query_BD for request in group]),
            max(request.k for request in group),
            filters=[request.filter for request in group for _ in range(request.num_queries)],
            excludes=[request.exclude for request in group for _ in range(request.num_queries)],
        )
        start = 0
        for request in group:
            rows = slice(start, start + request.num_queries)
            start = rows.stop
            request.answer = replace(
                hits,
                keys=hits.keys[rows, : request.k],
                scores=hits.scores[rows, : request.k],
                num_matched=max(hits.matched_per_query[rows], default=0),
                matched_per_query=(),
                num_joined=len(group),
            )


def _group(batch: Sequence[_Request]) -> Iterator[list[_Request]]:
    """Requests whose numbers of results do not lie far apart."""
    group: list[_Request] = []
    for request in sorted(batch, key=lambda each: each.k):
        if group and request.k > max(SMALL_K, MAX_K_RATIO * group[0].k):
            yield group
            group = []
        group.append(request)
    yield group
