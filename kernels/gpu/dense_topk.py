"""Filtered top-k of a batch of queries on a GPU: buffers allocated once, a run that never waits for the device.

# B = queries, N = rows, D = dimensions, W = mask words, K = results, C = candidates to keep, S = sampled rows

1. A sample of the rows gives each query a threshold that about twice C rows reach.
2. One scan appends the rows that reach it (`kernels.gpu.scan`).
3. The best C by (score, key) are selected; with codes and vectors they are rescored and the best K selected again.
4. The hits are ordered and padded (`kernels.gpu.select`).

The threshold is the SAMPLE_RANK-th best of a sample, so the number of rows that reach it varies: for rows in random
order about as Gamma(64) / 64. Fewer than half or more than twice the expected number is a failure that the status
reports; it has a probability below 1e-6 a query, except where more rows tie than the buffer has room for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.dense_topk import DenseRows, DenseTopK, check_request, encode_queries
from kernels.gpu.scan import rescore_rows, sample_scores, scan_rows
from kernels.gpu.select import rank_hits, select_best, set_threshold

SAMPLE_RANK = 64
LEAST_TARGET = 4096  # rows that should reach the threshold: keeps the sample at 1/64 of the rows or less
SCAN_ROWS = 128
SAMPLE_ROWS = 64
SAMPLE_GROUP = 16  # only a group's best counts; with far more groups than SAMPLE_RANK hardly any good row is lost
SELECT_BLOCK = 2048
SELECT_WARPS = 8
RANK_BLOCK = 128
RANK_OTHERS = 16  # hits that a program compares at once: 128 x 16 stay in registers
RESCORE_ROWS = 16


class Workspace:
    """Buffers for one batch size, k and rescore depth over rows of one shape. Not for concurrent use."""

    def __init__(self, rows: DenseRows, *, batch: int, k: int, rescore: int = 4) -> None:
        """`rows` gives the shape, kind and device; `run` may be given other rows of the same."""
        if batch < 1 or k < 1 or rescore < 1:
            raise ValueError(f"batch {batch}, k {k}, rescore {rescore}: expected at least 1 each")
        self.request = (batch, k, rescore)
        self._kind = _kind_of(rows)
        num_rows = rows.scanned.shape[0]
        self._rescores = rows.code_ND is not None and rows.vector_ND is not None
        self._size = min(rescore * k if self._rescores else k, num_rows)
        target = max(2 * self._size, LEAST_TARGET)
        self._room = 2 * target
        self._stride = target // SAMPLE_RANK
        samples = -(-num_rows // self._stride) if num_rows > self._room else 0
        self._group = SAMPLE_GROUP if samples >= 16 * SAMPLE_GROUP * SAMPLE_RANK else 1
        self._sample_programs = -(-samples // SAMPLE_ROWS)
        self._num_samples = samples
        maxima = self._sample_programs * (SAMPLE_ROWS // self._group)

        def empty(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=rows.scanned.device)

        self._maximum = empty(torch.float32, batch, maxima)
        self._threshold = empty(torch.float32, batch).fill_(-torch.inf)  # stays so where nothing is sampled
        self._count = empty(torch.int32, batch)
        self._status = empty(torch.int32, batch)
        self._candidate_score = empty(torch.float32, batch, self._room)
        self._candidate_row = empty(torch.int32, batch, self._room)
        self._kept_score = empty(torch.float32, batch, self._size)
        self._kept_row = empty(torch.int32, batch, self._size)
        self._kept_count = empty(torch.int32, batch)
        self._best_score = empty(torch.float32, batch, k)
        self._best_row = empty(torch.int32, batch, k)
        self._best_count = empty(torch.int32, batch)
        self._hits = DenseTopK(
            empty(torch.float32, batch, k), empty(torch.int64, batch, k), empty(torch.int32, batch, k), self._status
        )

    def run(self, query_BD: Tensor, rows: DenseRows, mask: Tensor) -> DenseTopK:
        """Queue the search on the current stream and return the hits, which the next run overwrites.

        Hits of a query whose status is not OK must not be used: run it through the reference, as
        `kernels.dense_topk.dense_topk` does. For a CUDA graph: run once outside it, which compiles the kernels; then
        capture a run, and copy new queries and masks into the tensors that were captured.
        Raises ValueError for arguments that do not fit the workspace.
        """
        batch, k, rescore = self.request
        if _kind_of(rows) != self._kind or query_BD.ndim != 2 or len(query_BD) != batch:
            raise ValueError(
                f"workspace for {batch} queries over {self._kind}, got {list(query_BD.shape)} over {_kind_of(rows)}"
            )
        check_request(query_BD, rows, mask, k, rescore)
        codes = None
        if rows.code_ND is not None and rows.mean_D is not None:
            codes = encode_queries(query_BD, rows.mean_D)
        query = query_BD.half() if codes is None else codes.code_BD
        self._scan(query, rows, mask)
        score, row, count = self._kept_score, self._kept_row, self._kept_count
        self._select(self._candidate_score, self._candidate_row, self._count, rows.key_N, (score, row, count), True)
        if self._rescores and rows.vector_ND is not None:
            dim = query_BD.shape[1]
            rescore_rows[(-(-self._size // RESCORE_ROWS), batch)](
                rows.vector_ND, query_BD, row, count, score, self._size,
                DIM=dim, BLOCK_D=block_of(dim), ROWS=RESCORE_ROWS,
            )  # fmt: skip
        best = (self._best_score, self._best_row, self._best_count)
        self._select(score, row, count, rows.key_N, best, False)
        hits = self._hits
        rank_hits[(-(-k // RANK_BLOCK), batch)](
            *best, rows.key_N, hits.score_BK, hits.key_BK, hits.row_BK, k, BLOCK=RANK_BLOCK, OTHERS=RANK_OTHERS
        )
        if codes is not None and not self._rescores:
            hits.score_BK.mul_(codes.scale_B[:, None]).add_(codes.mean_score_B[:, None])
        return hits

    def _scan(self, query: Tensor, rows: DenseRows, mask: Tensor) -> None:
        """Set the thresholds, then collect the candidates."""
        num_rows, dim = rows.scanned.shape
        batch = len(query)
        # Little-endian: bit r % 32 of 32-bit word r // 32 is bit r % 64 of 64-bit word r // 64.
        word = mask.view(torch.int32)
        num_words = word.shape[-1]
        queries = queries_of(batch)
        shape = {"DIM": dim, "BLOCK_D": block_of(dim), "QUERIES": queries}
        kind = {"INT8": rows.code_ND is not None, "SHARED": mask.ndim == 1}
        scale = rows.key_N if rows.scale_N is None else rows.scale_N  # not read without codes
        self._count.zero_()
        if self._num_samples:
            sample_scores[(self._sample_programs, -(-batch // queries))](
                rows.scanned, scale, query, word, self._maximum,
                num_rows, num_words, batch, self._stride, self._num_samples, self._maximum.shape[1],
                ROWS=SAMPLE_ROWS, GROUP=self._group, **shape, **kind,
            )  # fmt: skip
            set_threshold[(batch,)](
                self._maximum,
                self._threshold,
                self._maximum.shape[1],
                SAMPLE_RANK,
                BLOCK=SELECT_BLOCK,
                num_warps=SELECT_WARPS,
            )
        scan_rows[(-(-num_rows // SCAN_ROWS), -(-batch // queries))](
            rows.scanned, scale, query, word, self._threshold, self._count,
            self._candidate_score, self._candidate_row, num_rows, num_words, batch, self._room,
            ROWS=SCAN_ROWS, **shape, **kind,
        )  # fmt: skip

    def _select(
        self, score: Tensor, row: Tensor, count: Tensor, key_N: Tensor, out: tuple[Tensor, Tensor, Tensor], check: bool
    ) -> None:
        select_best[(len(count),)](
            score, row, count, key_N, self._threshold, self._status, *out, score.shape[1], out[0].shape[1],
            CHECK=check, BLOCK=SELECT_BLOCK, num_warps=SELECT_WARPS,
        )  # fmt: skip


def block_of(dim: int) -> int:
    """Dimensions that one product covers: a power of two, at least what int8 tensor cores take, at most 128."""
    return min(128, max(32, 1 << (dim - 1).bit_length()))


def queries_of(batch: int) -> int:
    """Queries that one program scores: at least the 16 that a product takes, at most what registers hold."""
    return min(32, max(16, 1 << (batch - 1).bit_length()))


def _kind_of(rows: DenseRows) -> tuple[object, ...]:
    scanned, vector = rows.scanned, rows.vector_ND
    return (tuple(scanned.shape), scanned.dtype, None if vector is None else vector.dtype, scanned.device)
