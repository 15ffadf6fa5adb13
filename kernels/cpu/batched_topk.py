"""Exact filtered top-k of several queries at once: a blocked integer GEMM tells which rows deserve a closer look.

# B = queries, N = rows, D = dimensions, W = mask words, G = masks, T = rows of a tile, K = results, C = candidates kept

Tiles of codes, their nibbles joined to int8, are multiplied with int8 query codes (oneDNN through torch). What that
coarser query can be off by, scale_i * ||code_i|| * ||query - its code||, is added to the bounds of one query's scan; a
row that may still reach the threshold is scored again against the query's 11 bit steps while its own code is in cache.
From there on everything is as for one query.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.codes import (
    CODE_MAX,
    UNIT,
    UPPER_MIDDLE,
    UPPER_UNIT,
    Codes,
    encode_query,
    encode_query_coarsely,
    rotate_query,
)
from kernels.cpu.compile import compiled
from kernels.cpu.filtered_topk import PARALLEL_BYTES, Scorer, filtered_topk, merge_candidates
from kernels.cpu.nibbles import join_planes
from kernels.cpu.scan_codes import compact_candidates, list_rows, replace_least
from kernels.cpu.threads import count_cores, scan_pool
from kernels.filtered_topk import TopK

TILE_ROWS = 16_384  # the tile's codes and scores stay within the shared cache; smaller ones cost GEMM efficiency
BLOCK_ROWS = 64  # rows that every query looks at before the next; few, for one that reaches costs a second look at all
MAX_BATCH = 64  # queries of one pass: bounds the scores of a tile to 4 MiB per thread
DENSE_SHARE = 0.5  # of rows admitted: from here on multiplying the others too costs less than gathering
_NO_BONUS = np.empty(0)
_FIRST_CANDIDATES = 4096
_NUM_TERMS = 9


class Batch(NamedTuple):
    """Queries prepared for a pass."""

    step_BD: NDArray[np.int16]
    coarse_BD: NDArray[np.int8]
    term_BP: NDArray[np.float64]  # see `_encode`


class _Found(NamedTuple):
    row_BC: NDArray[np.int64]
    upper_BC: NDArray[np.float64]
    heap_BK: NDArray[np.float64]
    count_B: NDArray[np.int64]  # -1: the candidates of this query did not fit


@compiled
def _dot(code_TD: NDArray[np.int8], place: int, step_D: NDArray[np.int16]) -> np.int32:
    total = np.int32(0)
    for dimension in range(step_D.shape[0]):
        total = np.int32(total + np.int32(np.int32(code_TD[place, dimension]) * np.int32(step_D[dimension])))
    return total


@compiled
def _describe_tile(
    code_TD: NDArray[np.int8],
    twice: tuple[int, int],
    scale_N: NDArray[np.float32],
    share_N: NDArray[np.uint8],
    unit: float,
    row_T: NDArray[np.int64],
    scale_T: NDArray[np.float32],
    residual_T: NDArray[np.float64],
    length_T: NDArray[np.float64],
) -> None:
    """Scale, and upper bounds of the residual's norm and of scale * ||what the code stands for||, of every row.

    twice: factor and shift that make of a code twice the step that it stands for.
    """
    factor, shift = np.int32(twice[0]), np.int32(twice[1])
    for place in range(row_T.shape[0]):
        total = np.int32(0)
        for dimension in range(code_TD.shape[1]):
            step = np.int32(factor * np.int32(code_TD[place, dimension]) + shift)
            total = np.int32(total + np.int32(step * step))
        scale = scale_N[row_T[place]]
        scale_T[place] = scale
        residual = np.float64(scale) * np.float64(share_N[row_T[place]]) * unit
        residual_T[place] = residual * (1 + 1e-9)
        length_T[place] = np.float64(scale) * 0.5 * np.sqrt(np.float64(total)) * (1 + 1e-9)


@compiled
def _count_reaching(
    dot_R: NDArray[np.int32],
    scale_R: NDArray[np.float32],
    residual_R: NDArray[np.float64],
    length_R: NDArray[np.float64],
    terms: tuple[float, float, float, float, float],
    threshold: float,
) -> int:
    """How many rows of a block reach the threshold; a function of its own, so that the loop becomes vector code."""
    coarse_scale, coarse_error, shift, query_norm, base = terms
    reaching = 0
    for place in range(dot_R.shape[0]):
        inner = np.float64(scale_R[place]) * (coarse_scale * np.float64(dot_R[place]) + shift)
        outer = length_R[place] * coarse_error + residual_R[place] * query_norm
        reaching += 1 if inner + outer + base >= threshold else 0
    return reaching


@compiled
def _select(
    dot_BT: NDArray[np.int32],
    code_TD: NDArray[np.int8],
    scale_T: NDArray[np.float32],
    residual_T: NDArray[np.float64],
    length_T: NDArray[np.float64],
    row_T: NDArray[np.int64],
    mask_GW: NDArray[np.uint64],
    group_B: NDArray[np.int64],
    step_BD: NDArray[np.int16],
    term_BP: NDArray[np.float64],
    heap_BK: NDArray[np.float64],
    row_BC: NDArray[np.int64],
    upper_BC: NDArray[np.float64],
    count_B: NDArray[np.int64],
) -> None:
    """Add the rows of one tile to the candidates of every query. heap_BK: as in `scan_words`, one row per query."""
    num_rows = row_T.shape[0]
    room = row_BC.shape[1]
    for start in range(0, num_rows, BLOCK_ROWS):
        last = min(start + BLOCK_ROWS, num_rows)
        scale_R, residual_R, length_R = scale_T[start:last], residual_T[start:last], length_T[start:last]
        for query in range(dot_BT.shape[0]):
            count = count_B[query]
            if count < 0:
                continue
            heap_K = heap_BK[query]
            coarse_scale = term_BP[query, 6]
            coarse_error = term_BP[query, 7]
            shift = term_BP[query, 8]
            mean_score = term_BP[query, 1]
            query_norm = term_BP[query, 3]
            slack = term_BP[query, 4]
            base = mean_score + slack
            terms = (coarse_scale, coarse_error, shift, query_norm, base)
            dot_R = dot_BT[query, start:last]
            if not _count_reaching(dot_R, scale_R, residual_R, length_R, terms, heap_K[0]):
                continue
            query_scale = term_BP[query, 0]
            scale_error = term_BP[query, 2]
            mask_W = mask_GW[group_B[query]]
            for place in range(start, last):
                scale = np.float64(scale_T[place])
                residual = residual_T[place]
                inner = scale * (coarse_scale * np.float64(dot_BT[query, place]) + shift)
                outer = length_T[place] * coarse_error + residual * query_norm
                if not inner + outer + base >= heap_K[0]:
                    continue
                row = row_T[place]
                if (mask_W[row >> 6] >> np.uint64(row & 63)) & np.uint64(1) == np.uint64(0):
                    continue
                steps = query_scale * np.float64(_dot(code_TD, place, step_BD[query])) + term_BP[query, 5]
                middle = mean_score + scale * steps
                width = scale * scale_error + residual * query_norm + slack
                if middle + width >= heap_K[0]:
                    if count == room:
                        count = compact_candidates(row_BC[query], upper_BC[query], count, heap_K[0])
                        if 2 * count > room:
                            count = -1
                            break
                    row_BC[query, count] = row
                    upper_BC[query, count] = middle + width
                    count += 1
                    if middle - width > heap_K[0]:
                        replace_least(heap_K, middle - width)
            count_B[query] = count


def batched_topk(
    query_BD: NDArray[np.float32],
    vector_ND: NDArray[np.float32],
    codes: Codes,
    key_N: NDArray[np.int64],
    mask_GW: NDArray[np.uint64],
    group_B: NDArray[np.int64],
    k: int,
    num_threads: int | None,
) -> list[TopK]:
    """See `kernels.batched_topk`; arguments are checked there."""
    found: list[TopK] = []
    for first in range(0, query_BD.shape[0], MAX_BATCH):
        chunk = slice(first, first + MAX_BATCH)
        found += _run(query_BD[chunk], vector_ND, codes, key_N, mask_GW, group_B[chunk], k, num_threads)
    return found


def _run(
    query_BD: NDArray[np.float32],
    vector_ND: NDArray[np.float32],
    codes: Codes,
    key_N: NDArray[np.int64],
    mask_GW: NDArray[np.uint64],
    group_B: NDArray[np.int64],
    k: int,
    num_threads: int | None,
) -> list[TopK]:
    union_W = mask_GW[0] if len(mask_GW) == 1 else np.bitwise_or.reduce(mask_GW[np.unique(group_B)], axis=0)
    num_union = int(np.bitwise_count(union_W).sum())
    threads = num_threads or count_cores()
    parts = min(threads, max(1, num_union * len(query_BD) * codes.mean_D.size // (4 * PARALLEL_BYTES)))
    edges = [union_W.size * part // parts for part in range(parts + 1)]
    batch = _encode(query_BD, codes)
    k = min(k, max(num_union, 1))

    def scan(part: int) -> _Found:
        return _scan_part(batch, codes, union_W, edges[part], edges[part + 1], mask_GW, group_B, k)

    def finish(queries: range) -> list[TopK]:
        return [
            _finish(
                query_BD[query],
                batch.term_BP[query, 1],
                vector_ND,
                codes,
                key_N,
                mask_GW[group_B[query]],
                k,
                query,
                scanned,
            )
            for query in queries
        ]

    futures = [scan_pool().submit(scan, part) for part in range(1, parts)]
    scanned = [scan(0), *(future.result() for future in futures)]
    size = len(query_BD)
    shares = [range(size * part // parts, size * (part + 1) // parts) for part in range(parts)]
    rescored = [scan_pool().submit(finish, share) for share in shares[1:]]
    return [*finish(shares[0]), *(best for future in rescored for best in future.result())]


def _finish(
    query_D: NDArray[np.float32],
    mean_score: float,
    vector_ND: NDArray[np.float32],
    codes: Codes,
    key_N: NDArray[np.int64],
    mask_W: NDArray[np.uint64],
    k: int,
    query: int,
    scanned: list[_Found],
) -> TopK:
    num_matched = int(np.bitwise_count(mask_W).sum())
    if any(each.count_B[query] < 0 for each in scanned):
        return filtered_topk(query_D, vector_ND, codes, key_N, mask_W, k, "stream", 1, _NO_BONUS)
    found = [
        (each.row_BC[query, : each.count_B[query]], each.upper_BC[query, : each.count_B[query]], each.heap_BK[query])
        for each in scanned
    ]
    k = min(k, num_matched)
    if k == 0:
        return TopK(np.empty(0, np.int64), np.empty(0, np.float64), 0, 0)
    row_C, upper_C, _ = merge_candidates(found, k)
    order = np.argsort(-upper_C)
    row_C, upper_C = row_C[order], upper_C[order]
    return Scorer(query_D, vector_ND, codes, key_N, mean_score).best(row_C, upper_C, _NO_BONUS, k, num_matched)


def _encode(query_BD: NDArray[np.float32], codes: Codes) -> Batch:
    step_BD = np.empty(query_BD.shape, np.int16)
    coarse_BD = np.empty(query_BD.shape, np.int8)
    term_BP = np.empty((len(query_BD), _NUM_TERMS))
    factor, shift = (1.0, 0.0) if codes.is_fine else (16.0, -UPPER_MIDDLE)
    for place, query_D in enumerate(query_BD):
        fine = encode_query(query_D, codes.mean_D, codes.rotation_DD)
        rotated_D = rotate_query(query_D, codes.rotation_DD)
        coarse = encode_query_coarsely(rotated_D)
        step_BD[place], coarse_BD[place] = fine.steps(query_D.size), coarse.step_D
        rounding = CODE_MAX * float(np.abs(rotated_D).sum()) * 2.0**-44
        coarse_shift = coarse.scale * shift * int(coarse.step_D.sum(dtype=np.int64))
        term_BP[place] = (
            *(fine.scale * factor, fine.mean_score, fine.scale_error, fine.norm, fine.slack),
            *(fine.scale * shift * fine.sum_steps, coarse.scale * factor, coarse.error, coarse_shift + rounding),
        )
    return Batch(step_BD, coarse_BD, term_BP)


def _scan_part(
    batch: Batch,
    codes: Codes,
    union_W: NDArray[np.uint64],
    first_word: int,
    last_word: int,
    mask_GW: NDArray[np.uint64],
    group_B: NDArray[np.int64],
    k: int,
) -> _Found:
    """Candidates of all queries among the rows of some words."""
    size, dim = batch.step_BD.shape
    room = max(_FIRST_CANDIDATES, 4 * k)
    found = _Found(
        np.empty((size, room), np.int64),
        np.empty((size, room)),
        np.full((size, k), -np.inf),
        np.zeros(size, np.int64),
    )
    words = union_W[first_word:last_word]
    num_rows = min(last_word * 64, len(codes.upper_NP)) - first_word * 64
    num_matched = int(np.bitwise_count(words).sum())
    if num_matched >= DENSE_SHARE * num_rows:
        row_M = np.arange(first_word * 64, first_word * 64 + num_rows)
    else:
        row_M = np.empty(num_matched, np.int64)
        list_rows(words, row_M)
        row_M += first_word * 64
    twice, unit, share_N = (2, 0), UNIT, codes.share_N
    if not codes.is_fine:
        twice, unit, share_N = (32, -round(2 * UPPER_MIDDLE)), UPPER_UNIT, codes.upper_share_N
    unit *= float(np.sqrt(dim))
    tile = min(TILE_ROWS, max(row_M.size, 1))
    scale_T = np.empty(tile, np.float32)
    residual_T, length_T = np.empty((2, tile))  # float64: a length can pass the largest float32
    joined = np.empty((tile, dim), np.int8)
    buffer = torch.empty(size * tile, dtype=torch.int32)
    coarse = torch.from_numpy(batch.coarse_BD)
    for first in range(0, row_M.size, tile):
        row_T = row_M[first : first + tile]
        count = row_T.size
        code_TD = joined[:count]
        join_planes(codes.upper_NP, codes.lower_NP, row_T, code_TD)
        dots = buffer[: size * count].view(size, count)
        torch._int_mm(coarse, torch.from_numpy(code_TD).t(), out=dots)
        _describe_tile(code_TD, twice, codes.scale_N, share_N, unit, row_T, scale_T, residual_T, length_T)
        _select(
            dots.numpy(),
            code_TD,
            scale_T,
            residual_T,
            length_T,
            row_T,
            mask_GW,
            group_B,
            batch.step_BD,
            batch.term_BP,
            found.heap_BK,
            found.row_BC,
            found.upper_BC,
            found.count_B,
        )
    return found


@cache
def has_exact_product() -> bool:
    """Whether torch's int8 product is exact here; on processors without VNNI instructions it may saturate."""
    left = torch.full((4, 128), CODE_MAX, dtype=torch.int8)
    left[1], left[2, ::2] = -CODE_MAX, -CODE_MAX
    right = torch.full((64, 128), CODE_MAX, dtype=torch.int8)
    right[1::4], right[2::4, ::2] = -CODE_MAX, -CODE_MAX
    expected = left.to(torch.int32) @ right.to(torch.int32).t()
    return bool(torch.equal(torch._int_mm(left, right.t()), expected))
