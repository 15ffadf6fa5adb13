"""Triton kernels that read the rows: the sample that sets thresholds, the fused scan, the rescore.

# B = queries, N = rows, D = dimensions, W = mask words of 32 bits, S = sampled rows, C = candidates of a query

One program of the scan owns ROWS rows. It reads their mask words first and ends where none is set; otherwise it
loads only admitted rows, scores them for up to QUERIES queries by one chain of tensor-core products, and appends
what reaches a query's threshold. Scores below it never leave the registers.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load_bits(mask_ptr, word, query, num_words, batch, SHARED: tl.constexpr):
    """int32 words [words, QUERIES], or [words, 1] where all queries share one mask."""
    if SHARED:
        words = tl.load(mask_ptr + word, mask=word < num_words, other=0)[:, None]
    else:
        inside = (word < num_words)[:, None] & (query < batch)[None, :]
        words = tl.load(mask_ptr + query.to(tl.int64)[None, :] * num_words + word[:, None], mask=inside, other=0)
    return words


@triton.jit
def _score_rows(
    row_ptr, scale_ptr, query_ptr, row, needed, query, batch,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, QUERIES: tl.constexpr, INT8: tl.constexpr,
):  # fmt: skip
    """float32 scores [ROWS, QUERIES]; rows that are not needed are not read and score 0."""
    kind: tl.constexpr = tl.int32 if INT8 else tl.float32
    total = tl.zeros([ROWS, QUERIES], kind)
    offset = row.to(tl.int64) * DIM
    for start in tl.static_range(0, DIM, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        if DIM % BLOCK_D == 0:
            row_mask = needed[:, None]
            query_mask = (query < batch)[None, :]
        else:
            row_mask = needed[:, None] & (column < DIM)[None, :]
            query_mask = (query < batch)[None, :] & (column < DIM)[:, None]
        tile = tl.load(row_ptr + offset[:, None] + column[None, :], mask=row_mask, other=0)
        part = tl.load(query_ptr + query[None, :] * DIM + column[:, None], mask=query_mask, other=0)
        total = tl.dot(tile, part, total, out_dtype=kind)
    if INT8:
        return total.to(tl.float32) * tl.load(scale_ptr + row, mask=needed, other=0)[:, None]
    else:
        return total


@triton.jit(do_not_specialize=["num_rows", "num_words", "batch", "stride", "num_samples", "num_maxima"])
def sample_scores(
    row_ptr, scale_ptr, query_ptr, mask_ptr, maximum_ptr,
    num_rows, num_words, batch, stride, num_samples, num_maxima,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, QUERIES: tl.constexpr,
    GROUP: tl.constexpr, INT8: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Write, for each GROUP of sampled rows, the best admitted score of every query, or -inf: maximum[B, num_maxima].

    One row of every `stride` is sampled, at a place that varies; a program's samples lie far apart, so rows that
    were stored together do not share a group.
    """
    program = tl.program_id(0)
    query = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    sample = program.to(tl.int64) + tl.arange(0, ROWS).to(tl.int64) * tl.num_programs(0)
    row = sample * stride + ((sample * 2654435761) >> 16) % stride
    inside = (sample < num_samples) & (row < num_rows)
    row = tl.where(inside, row, 0)
    if SHARED:
        words = tl.load(mask_ptr + row // 32, mask=inside, other=0)[:, None]
    else:
        wanted = inside[:, None] & (query < batch)[None, :]
        words = tl.load(mask_ptr + query.to(tl.int64)[None, :] * num_words + row[:, None] // 32, mask=wanted, other=0)
    admit = ((words >> (row % 32).to(tl.int32)[:, None]) & 1) != 0
    needed = tl.max(admit.to(tl.int32), 1) != 0
    score = _score_rows(
        row_ptr, scale_ptr, query_ptr, row, needed, query, batch, DIM, BLOCK_D, ROWS, QUERIES, INT8
    )  # fmt: skip
    score = tl.where(admit, score, float("-inf"))
    best = tl.max(tl.reshape(score, [ROWS // GROUP, GROUP, QUERIES]), 1)
    group = program * (ROWS // GROUP) + tl.arange(0, ROWS // GROUP)
    at = query.to(tl.int64)[None, :] * num_maxima + group[:, None]
    tl.store(maximum_ptr + at, best, mask=(query < batch)[None, :] & (group < num_maxima)[:, None])


@triton.jit(do_not_specialize=["num_rows", "num_words", "batch", "room"])
def scan_rows(
    row_ptr, scale_ptr, query_ptr, mask_ptr, threshold_ptr, count_ptr, out_score_ptr, out_row_ptr,
    num_rows, num_words, batch, room,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, QUERIES: tl.constexpr,
    INT8: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Append (score, row) of every admitted row that reaches its query's threshold to out[B, room], in any order.

    count[B] ends as the number of rows that reached the threshold, which may exceed room: then some were dropped.
    """
    first = tl.program_id(0) * ROWS
    query = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    word = first // 32 + tl.arange(0, ROWS // 32)
    words = _load_bits(mask_ptr, word, query, num_words, batch, SHARED)
    if tl.max(tl.max((words != 0).to(tl.int32), 1), 0) != 0:
        row = first + tl.arange(0, ROWS)
        bits = (words[:, None, :] >> tl.arange(0, 32)[None, :, None]) & 1
        bits = tl.reshape(bits, [ROWS, 1 if SHARED else QUERIES])
        admit = (bits != 0) & (row < num_rows)[:, None]
        needed = tl.max(admit.to(tl.int32), 1) != 0
        score = _score_rows(
            row_ptr, scale_ptr, query_ptr, row, needed, query, batch, DIM, BLOCK_D, ROWS, QUERIES, INT8
        )  # fmt: skip
        # A threshold of +inf would still admit rows of score +inf: queries past the batch are masked by number.
        threshold = tl.load(threshold_ptr + query, mask=query < batch, other=float("inf"))
        hit = admit & (query < batch)[None, :] & (score >= threshold[None, :])
        flag = hit.to(tl.int32)
        hits = tl.sum(flag, 0)
        if tl.sum(hits, 0) != 0:
            base = tl.atomic_add(count_ptr + query, hits, mask=hits > 0, sem="relaxed")
            place = base[None, :] + tl.cumsum(flag, 0) - flag
            at = query.to(tl.int64)[None, :] * room + place
            kept = hit & (place < room)
            tl.store(out_score_ptr + at, score, mask=kept)
            tl.store(out_row_ptr + at, tl.broadcast_to(row[:, None], [ROWS, QUERIES]), mask=kept)


@triton.jit(do_not_specialize=["size"])
def rescore_rows(
    vector_ptr, query_ptr, row_ptr, count_ptr, out_score_ptr, size,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """out[B, size]: float64 inner products of query [B,D] float32 and the listed rows, rounded to float32."""
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    query = tl.program_id(1).to(tl.int64)
    listed = place < tl.load(count_ptr + query)
    row = tl.load(row_ptr + query * size + place, mask=listed, other=0).to(tl.int64)
    total = tl.zeros([ROWS], tl.float64)
    for start in tl.static_range(0, DIM, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        part = tl.load(query_ptr + query * DIM + column, mask=column < DIM, other=0).to(tl.float64)
        tile = tl.load(
            vector_ptr + row[:, None] * DIM + column[None, :], mask=listed[:, None] & (column < DIM)[None, :], other=0
        )
        total += tl.sum(tile.to(tl.float32).to(tl.float64) * part[None, :], 1)
    tl.store(out_score_ptr + query * size + place, total.to(tl.float32), mask=listed)
