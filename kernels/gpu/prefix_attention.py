"""Attention to a shared prefix in Triton: one pass over the prefix's keys and the own keys, softmax kept running.

# M = queries, T = own keys, P = prefix keys, H = heads, G = key-value heads, K = head size, R = H / G

A program takes ROWS pairs of a query and one of the R heads that share a key-value head, so a tile of keys is read
once for all of them (Dao et al. 2022, FlashAttention; the packing of grouped heads is that of FlashInfer). Queries lie
in order, so what a program's own keys span is a few sequences; the loop runs over that span and masks by each row's
bounds.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, backends, contiguous_format, empty_like

from kernels.prefix_attention import Sight

LOG2_E = 1.4426950408889634
ROWS = 64
KEYS = 64
NUM_WARPS = 4
NUM_STAGES = 2


@triton.jit
def _take_in(q, k, v, seen, best, total, mixed, scale, PRECISION: tl.constexpr):
    """The running softmax after one more tile of keys: the largest score, the sum of weights, the weighted values."""
    score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    score = tl.where(seen, score, float("-inf"))
    now = tl.maximum(best, tl.max(score, 1))
    # A row that has seen nothing yet keeps -inf, and -inf - -inf is no number.
    base = tl.where(now == float("-inf"), 0.0, now)
    weight = tl.exp2(score - base[:, None])
    kept = tl.exp2(best - base)
    mixed = tl.dot(weight.to(v.dtype), v, mixed * kept[:, None], input_precision=PRECISION)
    return now, total * kept + tl.sum(weight, 1), mixed


@triton.jit(do_not_specialize=["num_queries", "num_prefix"])
def attend(
    query_ptr, key_ptr, value_ptr, prefix_key_ptr, prefix_value_ptr, bounds_ptr, out_ptr,
    num_queries, num_prefix, scale,
    query_m, query_h, key_t, key_g, value_t, value_g, prefix_key_g, prefix_key_p, prefix_value_g, prefix_value_p,
    HEAD: tl.constexpr, BLOCK_K: tl.constexpr, REPEATS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """ROWS rows of one key-value head. scale: log2(e) / sqrt(K); strides in elements, out[M, H, K] contiguous."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1)
    query = (row // REPEATS).to(tl.int64)
    head = group * REPEATS + row % REPEATS
    inside = query < num_queries
    place = tl.arange(0, BLOCK_K)
    in_head = place < HEAD
    q_at = query_ptr + query[:, None] * query_m + head[:, None] * query_h + place[None, :]
    q = tl.load(q_at, mask=inside[:, None] & in_head[None, :], other=0)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, BLOCK_K], tl.float32)

    for start in range(0, num_prefix, KEYS):
        key = start + tl.arange(0, KEYS)
        there = key < num_prefix
        tile = there[:, None] & in_head[None, :]
        at = group * prefix_key_g + key[:, None] * prefix_key_p + place[None, :]
        k = tl.load(prefix_key_ptr + at, mask=tile, other=0)
        at = group * prefix_value_g + key[:, None] * prefix_value_p + place[None, :]
        v = tl.load(prefix_value_ptr + at, mask=tile, other=0)
        best, total, mixed = _take_in(q, k, v, there[None, :], best, total, mixed, scale, PRECISION)

    first = tl.load(bounds_ptr + query * 4, mask=inside, other=0)
    first_stop = tl.load(bounds_ptr + query * 4 + 1, mask=inside, other=0)
    own = tl.load(bounds_ptr + query * 4 + 2, mask=inside, other=0)
    own_stop = tl.load(bounds_ptr + query * 4 + 3, mask=inside, other=0)
    lowest = tl.min(tl.where(inside, tl.where(first < first_stop, first, own), 2147483647), 0)
    for start in range(lowest, tl.max(own_stop, 0), KEYS):
        key = start + tl.arange(0, KEYS)
        in_first = (key[None, :] >= first[:, None]) & (key[None, :] < first_stop[:, None])
        in_own = (key[None, :] >= own[:, None]) & (key[None, :] < own_stop[:, None])
        tile = (key < tl.max(own_stop, 0))[:, None] & in_head[None, :]
        wide = key.to(tl.int64)[:, None]
        k = tl.load(key_ptr + wide * key_t + group * key_g + place[None, :], mask=tile, other=0)
        v = tl.load(value_ptr + wide * value_t + group * value_g + place[None, :], mask=tile, other=0)
        best, total, mixed = _take_in(q, k, v, in_first | in_own, best, total, mixed, scale, PRECISION)

    out = mixed / tl.where(inside, total, 1.0)[:, None]
    at = out_ptr + (query * (REPEATS * tl.num_programs(1)) + head)[:, None] * HEAD + place[None, :]
    tl.store(at, out.to(out_ptr.dtype.element_ty), mask=inside[:, None] & in_head[None, :])


def prefix_attention(
    query_MHK: Tensor,
    key_TGK: Tensor,
    value_TGK: Tensor,
    prefix_key_GPK: Tensor,
    prefix_value_GPK: Tensor,
    sight: Sight,
) -> Tensor:
    """See `kernels.prefix_attention`; arguments are checked there."""
    num_queries, num_heads, head = query_MHK.shape
    num_groups = key_TGK.shape[1]
    out_MHK = empty_like(query_MHK, memory_format=contiguous_format)
    if not num_queries:
        return out_MHK
    attend[(triton.cdiv(num_queries * (num_heads // num_groups), ROWS), num_groups)](
        query_MHK, key_TGK, value_TGK, prefix_key_GPK, prefix_value_GPK, sight.bounds_on(query_MHK.device), out_MHK,
        num_queries, prefix_key_GPK.shape[1], head**-0.5 * LOG2_E,
        *query_MHK.stride()[:2], *key_TGK.stride()[:2], *value_TGK.stride()[:2],
        *prefix_key_GPK.stride()[:2], *prefix_value_GPK.stride()[:2],
        **shape_of(num_heads // num_groups, head, query_MHK.element_size()),
        PRECISION="tf32" if backends.cuda.matmul.allow_tf32 else "ieee",
        num_warps=NUM_WARPS, num_stages=NUM_STAGES,
    )  # fmt: skip
    return out_MHK


def shape_of(repeats: int, head: int, num_bytes: int) -> dict[str, int]:
    """The kernel's compile-time shape: a product takes at least 16 of a head, a power of two.

    num_bytes: of an element; tiles of keys stay within 16 KiB.
    """
    return {
        "HEAD": head,
        "BLOCK_K": max(16, triton.next_power_of_2(head)),
        "REPEATS": repeats,
        "ROWS": ROWS,
        "KEYS": max(16, min(KEYS, (16 << 10) // (num_bytes * triton.next_power_of_2(head)))),
    }
