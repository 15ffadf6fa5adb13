"""Attention to a shared prefix on a CPU.

Per key-value head, all queries' scores with the prefix are one product and their weighted values another; own keys are
few and different for every query, so compiled code takes them in between, in the pass that turns scores into weights.
Scores are float32 at every precision; weights are rounded to the values' dtype, as flash attention rounds them.
(torch's flash attention reaches 90 GFLOP/s on a Zen 5 core at either precision; oneDNN's products 250 and 490.)
"""

# M = queries, T = own keys, P = prefix keys, H = heads, G = key-value heads, K = head size, R = H / G, N = M R

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.cpu.floats import as_array, compiled_loose, exp2, in_parts, larger, narrow, widen
from kernels.cpu.product import linear
from kernels.prefix_attention import Sight

SHORT = 128
"""Own keys up to which compiled code takes them all, one query at a time."""
BLOCK = 128
"""Queries of longer sequences that are taken together."""
LANES = 64
"""What one turn of a vector loop takes: own scores are filled up to a multiple."""
LOG2_E = 1.4426950408889634
_ZERO, _ONE, _NONE = np.float32(0.0), np.float32(1.0), np.float32(-1e30)


def prefix_attention(
    query_MHK: Tensor,
    key_TGK: Tensor,
    value_TGK: Tensor,
    prefix_key_GPK: Tensor,
    prefix_value_GPK: Tensor,
    sight: Sight,
) -> Tensor:
    """See `kernels.prefix_attention`; arguments are checked there."""
    tensors = (query_MHK, key_TGK, value_TGK, prefix_key_GPK, prefix_value_GPK)
    if not len(query_MHK):
        return torch.empty_like(query_MHK)
    attend = _attend_long if sight.most_keys > SHORT else _attend_short
    if query_MHK.dtype == torch.float16:  # no CPU of today multiplies it faster
        query, key, value, prefix_key, prefix_value = (tensor.float() for tensor in tensors)
        return attend(query, key, value, prefix_key, prefix_value, sight).half()
    return attend(*tensors, sight)


def _attend_short(
    query_MHK: Tensor,
    key_TGK: Tensor,
    value_TGK: Tensor,
    prefix_key_GPK: Tensor,
    prefix_value_GPK: Tensor,
    sight: Sight,
) -> Tensor:
    num_queries, num_heads, head = query_MHK.shape
    num_groups, num_prefix = prefix_key_GPK.shape[:2]
    repeats = num_heads // num_groups
    num_rows = num_queries * repeats
    query_GNK = torch.empty(num_groups, num_rows, head)
    query_GNK.view(num_groups, num_queries, repeats, head).copy_(
        query_MHK.view(num_queries, num_groups, repeats, head).transpose(0, 1)
    )
    key_GTK, value_GTK = (torch.empty(num_groups, len(x), head).copy_(x.transpose(0, 1)) for x in (key_TGK, value_TGK))
    weight_NP = torch.empty(num_rows, num_prefix, dtype=query_MHK.dtype)
    total_GN = torch.empty(num_groups, num_rows)
    mixed_GNK = torch.empty(num_groups, num_rows, head)
    whole_GNK = torch.zeros(num_groups, num_rows, head, dtype=query_MHK.dtype)
    bounds = as_array(sight.bounds_M4)
    work = num_rows * (num_prefix + 10 * head)
    for group in range(num_groups):
        score_NP = linear(query_GNK[group], prefix_key_GPK[group].float()) if num_prefix else weight_NP.float()
        in_parts(
            _weigh, num_rows, work, as_array(score_NP), as_array(query_GNK[group]), as_array(key_GTK[group]),
            as_array(value_GTK[group]), bounds, repeats, np.float32(LOG2_E * head**-0.5), as_array(weight_NP),
            as_array(total_GN[group]), as_array(mixed_GNK[group]),
        )  # fmt: skip
        if num_prefix:
            whole_GNK[group] = linear(weight_NP, prefix_value_GPK[group].T)
    out_MHK = torch.empty(num_queries, num_heads, head, dtype=query_MHK.dtype)
    in_parts(
        _finish, num_queries, num_rows * num_groups * head // 4, as_array(whole_GNK), as_array(mixed_GNK),
        as_array(total_GN), as_array(out_MHK),
    )  # fmt: skip
    return out_MHK


@compiled_loose
def _score_own(query_K: Any, key_TK: Any, first: int, stop: int, score: Any, at: int) -> None:
    for key in range(first, stop):
        key_K = key_TK[key]
        total = _ZERO
        for place in range(len(query_K)):
            total += query_K[place] * key_K[place]
        score[at + key - first] = total


@compiled_loose
def _mix_own(weight: Any, at: int, value_TK: Any, first: int, stop: int, mixed_K: Any) -> None:
    """Add the values of keys first to stop by their weights from `at` on."""
    at -= first
    whole = stop - (stop - first) % 4
    for key in range(first, whole, 4):
        w0, w1, w2, w3 = weight[at + key], weight[at + key + 1], weight[at + key + 2], weight[at + key + 3]
        v0, v1, v2, v3 = value_TK[key], value_TK[key + 1], value_TK[key + 2], value_TK[key + 3]
        for place in range(len(mixed_K)):
            mixed_K[place] += (w0 * v0[place] + w1 * v1[place]) + (w2 * v2[place] + w3 * v3[place])
    for key in range(whole, stop):
        w0, v0 = weight[at + key], value_TK[key]
        for place in range(len(mixed_K)):
            mixed_K[place] += w0 * v0[place]


@compiled_loose
def _weigh(
    score_NP: Any, query_NK: Any, key_TK: Any, value_TK: Any, bounds_M4: Any, repeats: int, scale: Any, weight_NP: Any,
    total_N: Any, mixed_NK: Any, start: int, stop: int,
) -> None:  # fmt: skip
    """Turn scores into weights, 1 for the largest; sum them, and the own values by their weights."""
    num_prefix, head = score_NP.shape[1], query_NK.shape[1]
    own_weight = np.empty(SHORT + LANES, np.float32)
    for row in range(start, stop):
        first, first_stop, own, own_stop = bounds_M4[row // repeats]
        at_own = first_stop - first
        size = at_own + own_stop - own
        _score_own(query_NK[row], key_TK, first, first_stop, own_weight, 0)
        _score_own(query_NK[row], key_TK, own, own_stop, own_weight, at_own)
        end = (size + LANES - 1) // LANES * LANES
        own_weight[size:end] = _NONE
        score_P, weight_P, mixed_K = score_NP[row], weight_NP[row], mixed_NK[row]
        best = _NONE
        for place in range(end):
            best = larger(best, own_weight[place])
        for place in range(num_prefix):
            best = larger(best, score_P[place])
        base = best * scale
        own_total, total = _ZERO, _ZERO
        for place in range(end):
            weight = exp2(own_weight[place] * scale - base)
            own_weight[place] = weight
            own_total += weight
        for place in range(num_prefix):
            weight = exp2(score_P[place] * scale - base)
            weight_P[place] = narrow(weight, weight_NP)
            total += weight
        total_N[row] = own_total + total
        for place in range(head):
            mixed_K[place] = _ZERO
        _mix_own(own_weight, 0, value_TK, first, first_stop, mixed_K)
        _mix_own(own_weight, at_own, value_TK, own, own_stop, mixed_K)


@compiled_loose
def _finish(whole_GNK: Any, mixed_GNK: Any, total_GN: Any, out_MHK: Any, start: int, stop: int) -> None:
    """Add both parts, divide by the sum of weights, and put heads beside one another."""
    repeats = out_MHK.shape[1] // whole_GNK.shape[0]
    for query in range(start, stop):
        for group in range(whole_GNK.shape[0]):
            for repeat in range(repeats):
                row = query * repeats + repeat
                whole_K, mixed_K, out_K = (
                    whole_GNK[group, row],
                    mixed_GNK[group, row],
                    out_MHK[query, group * repeats + repeat],
                )
                share = _ONE / total_GN[group, row]
                for place in range(len(out_K)):
                    out_K[place] = narrow(np.float32((widen(whole_K[place]) + mixed_K[place]) * share), out_MHK)


def _attend_long(
    query_MHK: Tensor,
    key_TGK: Tensor,
    value_TGK: Tensor,
    prefix_key_GPK: Tensor,
    prefix_value_GPK: Tensor,
    sight: Sight,
) -> Tensor:
    """Block by block of queries: own keys that a whole block sees are as good as a prefix's."""
    out_MHK = torch.empty_like(query_MHK, memory_format=torch.contiguous_format)
    for block in _blocks_of(sight):
        key, value = (
            torch.cat([prefix, *(x[part].transpose(0, 1) for part in block.shared)], 1)
            for prefix, x in ((prefix_key_GPK, key_TGK), (prefix_value_GPK, value_TGK))
        )
        out_MHK[block.queries] = _attend_short(
            query_MHK[block.queries], key_TGK[block.own], value_TGK[block.own], key, value, block.sight
        )
    return out_MHK


@dataclass(frozen=True, slots=True)
class _Block:
    queries: slice
    shared: tuple[slice, slice]
    """Own keys that all of its queries see."""
    own: slice
    """Other own keys, and which of those each query sees."""
    sight: Sight


@lru_cache(maxsize=8)  # every layer of a pass asks for the same
def _blocks_of(sight: Sight) -> list[_Block]:
    own_stops = sight.bounds_M4[:, 3].tolist()
    blocks = []
    for start, end, first, first_stop, own in sight.groups:
        while start < end:
            stop = start + 1
            lowest = highest = own_stops[start]
            while stop < min(end, start + BLOCK) and abs(own_stops[stop] - own_stops[start]) < SHORT // 2:
                lowest, highest = min(lowest, own_stops[stop]), max(highest, own_stops[stop])
                stop += 1
            bounds = torch.zeros(stop - start, 4, dtype=torch.int32)
            bounds[:, 3] = sight.bounds_M4[start:stop, 3] - (lowest - 1)
            shared = (slice(first, first_stop), slice(own, lowest - 1))
            blocks.append(_Block(slice(start, stop), shared, slice(lowest - 1, highest), Sight(bounds)))
            start = stop
    return blocks
