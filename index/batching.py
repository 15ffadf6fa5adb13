"""Searches of several threads joined into one: the index's codes are read once for all of them.

A caller that finds the index idle searches at once. Callers that come while a search runs wait for its end, at most
`max_wait_ms`, and then go together; there is no timer that a lone caller could wait for.
"""

# B = queries, K = results, D = dimensions

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Condition

import numpy as np
from numpy.typing import ArrayLike, NDArray

from index.checks import check_k, check_keys, check_queries
from index.hits import Hits
from index.searchable import Searchable
from index.tree import Filter


@dataclass(slots=True, eq=False)
class _Request:
    """One caller's search; it waits until `answer` is there."""

    query_BD: NDArray[np.float32]
    k: int
    filter: Filter | None
    exclude: NDArray[np.int64] | None
    answer: Hits | Exception | None = None

    @property
    def shared(self) -> tuple[object, object]:
        """What the queries of one search have in common; k is raised to the largest and cut afterwards."""
        return self.filter, None if self.exclude is None else self.exclude.tobytes()


class BatchingIndex:
    """An index whose `search` joins concurrent calls with the same filter and exclusions.

    The hits are those of a search alone. The counts of rows scanned and rescored are of the joined search.
    """

    def __init__(self, index: Searchable, *, max_wait_ms: float = 1.0, max_queries: int = 64) -> None:
        """max_wait_ms: the longest that a caller waits for a running search. max_queries: of one joined search."""
        if not max_wait_ms >= 0 or max_queries < 1:
            raise ValueError(f"max_wait_ms = {max_wait_ms}, max_queries = {max_queries}: expected >= 0 and >= 1")
        self._index = index
        self._max_wait_s = max_wait_ms / 1000.0
        self._max_queries = max_queries
        self._changed = Condition()
        self._num_running = 0
        self._waiting: list[_Request] = []
        self.num_searches = 0  # searches of the index so far; fewer than calls where calls were joined

    @property
    def dim(self) -> int:
        return self._index.dim

    def vectors(self, keys: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        return self._index.vectors(keys)

    def search(self, query: ArrayLike, k: int, filter: Filter | None = None, exclude: ArrayLike | None = None) -> Hits:
        """As the index's own `search`; what is wrong with one call is raised to its caller alone."""
        check_k(k)
        request = _Request(
            check_queries(query, self.dim), k, filter, None if exclude is None else np.unique(check_keys(exclude))
        )
        batch = self._join(request)
        if batch:
            try:
                self._run(batch)
            finally:
                with self._changed:
                    for each in batch:
                        if each.answer is None:
                            each.answer = RuntimeError("the thread that searched for this caller was interrupted")
                    self._num_running -= 1
                    self._changed.notify_all()
        if isinstance(request.answer, Exception):
            raise request.answer
        assert request.answer is not None
        return request.answer

    def _join(self, request: _Request) -> list[_Request]:
        """The requests that the caller shall search for, its own among them; empty once another one answered it."""
        deadline = time.monotonic() + self._max_wait_s
        with self._changed:
            self._waiting.append(request)
            while request in self._waiting:
                left = deadline - time.monotonic()
                if self._num_running == 0 or left <= 0:
                    return self._take(request)
                self._changed.wait(left)
            while request.answer is None:
                self._changed.wait()
        return []

    def _take(self, request: _Request) -> list[_Request]:
        """The request and those waiting beside it, oldest first, as far as max_queries allows."""
        batch, count = [request], request.query_BD.shape[0]
        for other in self._waiting:
            if other is not request and count + other.query_BD.shape[0] <= self._max_queries:
                batch.append(other)
                count += other.query_BD.shape[0]
        self._waiting = [each for each in self._waiting if each not in batch]
        self._num_running += 1
        return batch

    def _run(self, batch: Sequence[_Request]) -> None:
        groups: dict[tuple[object, object], list[_Request]] = {}
        for request in batch:
            groups.setdefault(request.shared, []).append(request)
        for group in groups.values():
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
        """One search for requests that differ in queries and k only."""
        first = group[0]
        query_BD = np.concatenate([request.query_BD for request in group])
        hits = self._index.search(query_BD, max(request.k for request in group), first.filter, first.exclude)
        with self._changed:
            self.num_searches += 1
        start = 0
        for request in group:
            rows = slice(start, start + request.query_BD.shape[0])
            start = rows.stop
            request.answer = replace(hits, keys=hits.keys[rows, : request.k], scores=hits.scores[rows, : request.k])
