"""Run by `test_fallbacks`: every kind of search, on whatever this process was left with, against the definition.

Prints what ran, as JSON.
"""

import json
import os
import sys


def main() -> None:
    wish = sys.argv[1]
    if wish == "no numba":
        sys.modules["numba"] = None  # type: ignore[assignment]  # any import of it fails from here on
    elif wish == "one core":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from index.live import LiveIndex

    strategies = set()
    for dim in (128, 33):
        strategies |= search_everything(LiveIndex, dim)
    print(json.dumps({"strategies": sorted(strategies), "compiled_for": compiled_for()}))


def compiled_for() -> str | None:
    """The processor that numba compiles for."""
    try:
        from numba.core.registry import cpu_target
    except ImportError:
        return None
    return str(cpu_target.target_context.codegen().magic_tuple()[1])


def search_everything(make, dim: int) -> set[str]:
    import numpy as np

    from index.batching import BatchingIndex
    from index.config import IndexConfig
    from index.filter import parse_filter
    from tests.index.worlds import SCHEMA, best_items, listed

    rng = np.random.default_rng(dim)
    vectors = rng.standard_normal((2000, dim)).astype(np.float32) + 0.5
    vectors[1000:1400] = vectors[:400]  # ties
    vectors[1400:1420] = 0.0
    vectors[1420:1440] *= 1e-30
    vectors[1440:1460, 3] = 100.0  # codes at their limits
    vectors[1460:1480, 3] = -100.0
    index = make(IndexConfig(dim=dim, schema=SCHEMA, signals=("count",)))
    values = [{"year": n % 50} for n in range(len(vectors))]
    index.upsert(np.arange(len(vectors)), vectors, values)
    index.add_signals(np.arange(len(vectors)), np.arange(len(vectors), dtype=float)[:, None] % 70)
    index.warm_up()
    items = {n: (vector, value) for n, (vector, value) in enumerate(zip(vectors, values, strict=True))}
    queries = rng.standard_normal((20, dim)).astype(np.float32)
    queries[0], queries[1, 1:] = 0.0, 0.0
    trees = [None, *(parse_filter(text, SCHEMA) for text in ("year = 3", "year < 25", "year >= 1", "year > 90"))]
    ran = set()

    def check(hits, place, query, k, tree, gone):
        assert hits.exact and listed(hits, place) == best_items(query, items, k, tree, gone), (hits.strategy, place)
        ran.update(hits.strategy.split("+"))

    gone = list(range(0, 2000, 3))
    for number, tree in enumerate(trees):
        query = queries[number]
        check(index.search(query, 20, tree), 0, query, 20, tree, ())
        check(index.search(query, 20, tree, gone), 0, query, 20, tree, gone)
        check(BatchingIndex(index).search(query, 3000, tree, gone), 0, query, 3000, tree, gone)
    each = [trees[number % 4] for number in range(20)]
    excludes = [gone[: number * 4] for number in range(20)]
    hits = index.search(queries, 15, filters=each, excludes=[np.array(own, np.int64) for own in excludes])
    for place, (query, tree, own) in enumerate(zip(queries, each, excludes, strict=True)):
        check(hits, place, query, 15, tree, own)
    counted = index.search_signal("count", 5, trees[2], gone)
    expected = sorted((-(n % 70), n) for n in items if n % 50 < 25 and n % 3)[:5]
    assert counted.keys[0].tolist() == [n for _, n in expected]
    return ran


if __name__ == "__main__":
    main()
