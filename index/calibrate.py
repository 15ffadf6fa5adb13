"""The costs that the planner weighs, measured on the rows of an index on the machine that it runs on."""

# B = queries, N = rows, D = dimensions, W = mask words

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from index.bits import Words
from index.code_rows import CodeRows
from index.planner import Costs
from kernels.batched_topk import batched_topk, has_batches
from kernels.filtered_topk import Backend, Strategy, filtered_topk
from kernels.sign_codes import SignCodes
from kernels.sign_topk import sign_topk

MIN_ROWS = 16_384  # below, every way takes well under a millisecond, and the clock tells little
MAX_ROWS = 1 << 17  # measured rows: enough to leave the private caches, few enough for 50 ms
NUM_GATHERED = 512
ROUNDS = 3
FEW, MANY = 4, 16  # queries of the measured passes


def calibrate(
    vector_ND: NDArray[np.float32],
    code_rows: CodeRows,
    key_N: NDArray[np.int64],
    live_W: Words,
    backend: Backend,
    num_threads: int | None,
) -> Costs:
    """Costs of the kernels as called by a search; the defaults for an index of too few rows to tell.

    Takes about 30 ms at 128 dimensions. The kernels must have been compiled before.
    """
    num_words = min(live_W.size, MAX_ROWS // 64)
    num_rows = num_words * 64
    if backend == "reference" or num_rows < MIN_ROWS:
        return Costs()
    vector_ND, key_N = vector_ND[:num_rows], key_N[:num_rows]
    codes, signs = code_rows.first(num_rows), code_rows.signs
    query_BD = np.random.default_rng(0).standard_normal((MANY, vector_ND.shape[1])).astype(np.float32)
    every_W = live_W[:num_words]
    sparse_W = every_W & np.uint64(0x1111_1111_1111_1111)  # every fourth row: enough for all threads to take part
    few_W = np.where(np.arange(num_words) < NUM_GATHERED // 16, sparse_W, np.uint64(0))

    def one(strategy: Strategy, mask_W: Words) -> float:
        options = {"strategy": strategy, "backend": backend, "num_threads": num_threads}
        return _time(lambda: filtered_topk(query_BD[0], vector_ND, codes, key_N, mask_W, 1, **options))  # type: ignore[arg-type]

    def several(count: int) -> float:
        group_B = np.zeros(count, np.int64)
        options = {"backend": backend, "num_threads": num_threads}
        return _time(
            lambda: batched_topk(query_BD[:count], vector_ND, codes, key_N, every_W[None], group_B, 1, **options)  # type: ignore[arg-type]
        )

    def look(signs: SignCodes) -> object:
        return sign_topk(query_BD[0], signs, every_W, NUM_GATHERED, backend=backend, num_threads=num_threads)

    sparse, few = (max(1, int(np.bitwise_count(words).sum())) for words in (sparse_W, few_W))
    default = Costs()
    start = one("compact", few_W)
    if not has_batches(vector_ND.shape[1]):
        batch, batch_query = default.batch, default.batch_query
    else:
        with_few, with_many = several(FEW), several(MANY)
        batch_query = max(0.0, with_many - with_few) / (MANY - FEW) / num_rows
        batch = max(0.0, with_few / num_rows - FEW * batch_query)
    return Costs(
        stream=max(0.0, one("stream", every_W) - start) / num_rows,
        compact=max(0.0, one("compact", sparse_W) - start) / sparse,
        gather=one("gather", few_W) / few,
        batch=batch,
        batch_query=batch_query,
        signs=default.signs if signs is None else _time(lambda: look(signs.first(num_rows))) / num_rows,
        start=start,
    )


def _time(run: Callable[[], object]) -> float:
    """Nanoseconds of the fastest of some rounds."""
    best = np.inf
    for _ in range(ROUNDS):
        began = time.perf_counter_ns()
        run()
        best = min(best, time.perf_counter_ns() - began)
    return float(best)
