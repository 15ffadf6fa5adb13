import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from index.batching import BatchingIndex
from index.config import IndexConfig
from index.filter import parse_filter
from index.live import LiveIndex
from tests.index.worlds import SCHEMA

DIM = 6


class SlowIndex:
    """An index whose searches last a while and can be held open."""

    def __init__(self, index):
        self.index, self.dim, self.sizes = index, index.dim, []
        self.entered, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def search(self, query, k, filter=None, exclude=None, **each):
        self.sizes.append(len(query))
        self.entered.set()
        assert self.gate.wait(10)
        if k == 13:
            raise RuntimeError("k is 13")
        return self.index.search(query, k, filter, exclude, **each)

    def vectors(self, keys):
        return self.index.vectors(keys)


@pytest.fixture
def index():
    rng = np.random.default_rng(0)
    index = LiveIndex(IndexConfig(dim=DIM, schema=SCHEMA))
    index.upsert(np.arange(500), rng.standard_normal((500, DIM)), [{"year": n % 7} for n in range(500)])
    return index


def start_together(batching, slow, calls, waiting):
    """The answers of calls that all came while another search ran."""
    slow.gate.clear()
    slow.entered.clear()
    with ThreadPoolExecutor(len(calls) + 1) as pool:
        first = pool.submit(batching.search, np.ones(DIM), 1)
        assert slow.entered.wait(10)
        futures = [pool.submit(batching.search, *call) for call in calls]
        until = time.monotonic() + 10
        while len(batching._waiting) < waiting:
            assert time.monotonic() < until
            time.sleep(0.001)
        slow.gate.set()
        first.result(10)
        return [future.exception(10) or future.result() for future in futures]


def test_calls_during_a_search_are_joined(index):
    slow = SlowIndex(index)
    batching = BatchingIndex(slow, max_wait_ms=10_000)
    rng = np.random.default_rng(1)
    tree = parse_filter("year < 4", SCHEMA)
    calls = [
        (rng.standard_normal((1 + n % 2, DIM)), 1 + n, (None, tree)[n % 2], (None, [3, 5])[n // 4]) for n in range(8)
    ]
    answers = start_together(batching, slow, calls, 8)
    for call, hits in zip(calls, answers, strict=True):
        expected = index.search(*call)
        assert (hits.keys == expected.keys).all() and (hits.scores == expected.scores).all()
        assert hits.num_matched == expected.num_matched and hits.num_joined == 8
    assert slow.sizes == [1, 12] and batching.num_searches == 2 and batching.num_calls == 9


def test_a_short_answer_does_not_wait_for_a_much_longer_one(index):
    slow = SlowIndex(index)
    batching = BatchingIndex(slow, max_wait_ms=10_000)
    calls = [(np.ones(DIM), k) for k in (400, 5, 256, 1, 300)]
    answers = start_together(batching, slow, calls, 5)
    assert [hits.num_joined for hits in answers] == [2, 3, 3, 3, 2] and slow.sizes == [1, 3, 2]
    assert [hits.keys.shape[1] for hits in answers] == [k for _, k in calls]


def test_a_lone_caller_does_not_wait(index):
    batching = BatchingIndex(index, max_wait_ms=10_000)
    start = time.perf_counter()
    batching.search(np.ones(DIM), 5)
    assert time.perf_counter() - start < 5
    assert batching.num_searches == 1


def test_nobody_waits_longer_than_max_wait(index):
    slow = SlowIndex(index)
    batching = BatchingIndex(slow, max_wait_ms=1)
    slow.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(batching.search, np.ones(DIM), 1) for _ in range(2)]
        until = time.monotonic() + 10
        while len(slow.sizes) < 2:  # both are inside the index, although neither has ended
            assert time.monotonic() < until
            time.sleep(0.001)
        slow.gate.set()
        assert all(future.result(10).keys.shape == (1, 1) for future in futures)


def test_no_more_searches_than_max_running(index):
    slow = SlowIndex(index)
    batching = BatchingIndex(slow, max_wait_ms=0, max_running=2, max_queries=2)
    slow.gate.clear()
    with ThreadPoolExecutor(9) as pool:
        futures = [pool.submit(batching.search, np.ones(DIM), 1) for _ in range(9)]
        until = time.monotonic() + 10
        while len(batching._waiting) < 9 - sum(slow.sizes) or len(slow.sizes) < 2:
            assert time.monotonic() < until
            time.sleep(0.001)
        time.sleep(0.02)
        assert len(slow.sizes) == 2
        slow.gate.set()
        assert all(future.result(10).keys.shape == (1, 1) for future in futures)
    assert sum(slow.sizes) == 9 and batching.num_calls == 9 and batching._num_running == 0


def test_a_wrong_call_fails_alone(index):
    slow = SlowIndex(index)
    batching = BatchingIndex(slow, max_wait_ms=10_000)
    answers = start_together(batching, slow, [(np.ones(DIM), 13), (np.ones(DIM), 4)], 2)
    assert isinstance(answers[0], RuntimeError) and answers[1].keys.shape == (1, 4)
    with pytest.raises(ValueError, match="query"):
        batching.search(np.full(DIM, np.nan), 3)
    with pytest.raises(RuntimeError, match="13"):
        batching.search(np.ones(DIM), 13)
    assert batching.search(np.ones(DIM), 2).keys.shape == (1, 2)


def test_a_joined_search_has_at_most_max_queries(index):
    slow = SlowIndex(index)
    batching = BatchingIndex(slow, max_wait_ms=10_000, max_queries=4)
    start_together(batching, slow, [(np.ones((2, DIM)), 3)] * 5, 5)
    assert max(slow.sizes) == 4 and sum(slow.sizes) == 11


def test_many_threads_get_their_own_answers(index):
    batching = BatchingIndex(index)
    queries = np.random.default_rng(2).standard_normal((400, DIM))
    expected = index.search(queries, 10).keys
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda query: batching.search(query, 10).keys[0], queries))
    assert (np.stack(found) == expected).all()
    assert batching.num_searches <= 400


def test_settings_that_cannot_be_are_named(index):
    with pytest.raises(ValueError, match="max_queries = 0"):
        BatchingIndex(index, max_queries=0)
