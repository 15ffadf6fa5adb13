"""Callers of one index at once: what `BatchingIndex` joins, by the number of searches that it lets run together.

`python -m tests.bench.search_load [--quick] [--rows N] [--json FILE]`: closed loops of 1 to 64 callers, one query of
128 dimensions and 100 results each, without a filter. Throughput and percentiles by callers and `max_running`.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np

from index.batching import BatchingIndex
from index.live import LiveIndex
from tests.bench.embeddings import clustered, near
from tests.bench.record import Record
from tests.bench.retrieval import DIM, K, fill

CALLERS, RUNNING = (1, 4, 16, 64), (1, 2, 3, 4)


def load(
    index: LiveIndex, query_BD: np.ndarray, callers: int, running: int, seconds: float
) -> tuple[list[float], float]:
    """Milliseconds of every call, and calls per search."""
    searches, times = BatchingIndex(index, max_running=running), []
    stop = time.perf_counter() + seconds

    def call(number: int) -> None:
        while (start := time.perf_counter()) < stop:
            searches.search(query_BD[number % len(query_BD)], K)
            times.append((time.perf_counter() - start) * 1000.0)
            number += callers

    threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times, searches.num_calls / searches.num_searches


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 s for each measurement in place of 3")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    rng, record = np.random.default_rng(5), Record("search_load")
    vector_ND = clustered(rng, options.rows, DIM)
    query_BD = near(rng, vector_ND, 256)
    index = fill(vector_ND, rng.integers(1000, size=options.rows), len(os.sched_getaffinity(0)))
    index.warm_up()
    seconds = 1.0 if options.quick else 3.0
    for callers in CALLERS:
        for running in RUNNING if callers > 1 else (1,):
            times, joined = load(index, query_BD, callers, running, seconds)
            note = f"{len(times) / seconds:.0f} calls/s, {joined:.1f} calls a search"
            record.add_samples(f"{callers} callers, max_running {running}", times, "ms", note)
    record.write(options.json)
    print(record.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
