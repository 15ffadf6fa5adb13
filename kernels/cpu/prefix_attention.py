"""Attention to a shared prefix on a CPU.

Per key-value head, all queries' scores with the prefix are one product and their weighted values another; own keys are
few and different for every query, so compiled code takes them in between, in the pass that turns scores into weights.
Scores are float32 at every precision; weights are rounded to the values' dtype, as flash attention rounds them.
(torch's flash attention reaches 90 GFLOP/s on a Zen 5 core at either precision; oneDNN's products 250 and 490.)
"""

# M = queries, T = own keys, P = prefix keys, H = heads, G = key-value heads, K = head size, R = H / G, N = M R

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.cpu.floats import as_array, compiled_loose, exp2, in_parts, narrow, widen
from kernels.cpu.product import linear
from kernels.prefix_attention import Sight

SHORT = 256
"""Own keys up to which compiled code takes them all, one query at a time."""
BLOCK = 128
"""Queries of longer sequences that are taken together."""
LANES = 16
LOG2_E = 1.4426950408889634
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


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
    key_GKT = torch.zeros(num_groups, head, len(key_TGK) + LANES)  # a block of lanes may begin at the last key
    key_GKT[:, :, : len(key_TGK)] = key_TGK.permute(1, 2, 0)
    own_GTK = torch.empty(num_groups, len(value_TGK), head).copy_(value_TGK.transpose(0, 1))
    weight_NP = torch.empty(num_rows, num_prefix, dtype=query_MHK.dtype)
    total_GN = torch.empty(num_groups, num_rows)
    mixed_GNK = torch.empty(num_groups, num_rows, head)
    whole_GNK = torch.zeros(num_groups, num_rows, head, dtype=query_MHK.dtype)
    bounds = as_array(sight.bounds_M4)
    work = num_rows * (num_prefix + 10 * head)
    for group in range(num_groups):
        score_NP = linear(query_GNK[group], prefix_key_GPK[group].float()) if num_prefix else weight_NP.float()
        in_parts(
            _weigh, num_rows, work, as_array(score_NP), as_array(query_GNK[group]), as_array(key_GKT[group]),
            as_array(own_GTK[group]), bounds, repeats, np.float32(LOG2_E * head**-0.5), as_array(weight_NP),
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
def _score_own(query_K: Any, key_KT: Any, first: int, stop: int, score: Any, at: int) -> None:
    """Write the scores of keys first to stop from `at` on, in whole blocks of lanes."""
    head = len(query_K)
    whole = head - head % 4
    for start in range(first, stop, LANES):
        block = score[at : at + LANES]
        for lane in range(LANES):
            block[lane] = _ZERO
        for place in range(0, whole, 4):
            q0, q1, q2, q3 = query_K[place], query_K[place + 1], query_K[place + 2], query_K[place + 3]
            k0, k1 = key_KT[place, start : start + LANES], key_KT[place + 1, start : start + LANES]
            k2, k3 = key_KT[place + 2, start : start + LANES], key_KT[place + 3, start : start + LANES]
            for lane in range(LANES):
                block[lane] += (q0 * k0[lane] + q1 * k1[lane]) + (q2 * k2[lane] + q3 * k3[lane])
        for place in range(whole, head):
            for lane in range(LANES):
                block[lane] += query_K[place] * key_KT[place, start + lane]
        at += LANES


@compiled_loose
def _weigh(
    score_NP: Any, query_NK: Any, key_KT: Any, own_TK: Any, bounds_M4: Any, repeats: int, scale: Any, weight_NP: Any,
    total_N: Any, mixed_NK: Any, start: int, stop: int,
) -> None:  # fmt: skip
    """Turn scores into weights, 1 for the largest; sum them, and the own values by their weights."""
    num_prefix, head = score_NP.shape[1], query_NK.shape[1]
    own_score = np.empty(SHORT + 3 * LANES, np.float32)
    for row in range(start, stop):
        first, first_stop, own, own_stop = bounds_M4[row // repeats]
        in_first, in_own = first_stop - first, own_stop - own
        at_own = (in_first + LANES - 1) // LANES * LANES
        _score_own(query_NK[row], key_KT, first, first_stop, own_score, 0)
        _score_own(query_NK[row], key_KT, own, own_stop, own_score, at_own)
        score_P, weight_P, mixed_K = score_NP[row], weight_NP[row], mixed_NK[row]
        best = own_score[at_own]
        for place in range(in_first):
            best = max(best, own_score[place])
        for place in range(in_own):
            best = max(best, own_score[at_own + place])
        for place in range(num_prefix):
            best = max(best, score_P[place])
        base = best * scale
        total = _ZERO
        for place in range(num_prefix):
            weight = exp2(score_P[place] * scale - base)
            weight_P[place] = narrow(weight, weight_NP)
            total += weight
        for place in range(head):
            mixed_K[place] = _ZERO
        for part in range(2):
            size, at, key = (in_first, 0, first) if part == 0 else (in_own, at_own, own)
            for place in range(size):
                weight = exp2(own_score[at + place] * scale - base)
                total += weight
                value_K = own_TK[key + place]
                for column in range(head):
                    mixed_K[column] += weight * value_K[column]
        total_N[row] = total


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
    for start, stop, first, first_stop, own, shared_stop in _blocks(sight):
        key, value = (
            torch.cat([prefix, x[first:first_stop].transpose(0, 1), x[own:shared_stop].transpose(0, 1)], 1)
            for prefix, x in ((prefix_key_GPK, key_TGK), (prefix_value_GPK, value_TGK))
        )
        stops = sight.bounds_M4[start:stop, 3] - shared_stop
        bounds = torch.zeros(stop - start, 4, dtype=torch.int32)
        bounds[:, 3] = stops
        rest = slice(shared_stop, shared_stop + int(stops.max()))
        out_MHK[start:stop] = _attend_short(
            query_MHK[start:stop], key_TGK[rest], value_TGK[rest], key, value, Sight(bounds)
        )
    return out_MHK


def _blocks(sight: Sight) -> Iterator[tuple[int, int, int, int, int, int]]:
    """Yield (first query, past the last, first, first stop, own, end of the own keys that all but one's self see)."""
    own_stops = sight.bounds_M4[:, 3].tolist()
    for start, end, first, first_stop, own in sight.groups:
        while start < end:
            lowest = highest = own_stops[start]
            stop = start
            while stop < end and stop - start < BLOCK:
                lowest, highest = min(lowest, own_stops[stop]), max(highest, own_stops[stop])
                if highest - lowest >= SHORT:
                    break
                stop += 1
            yield start, stop, first, first_stop, own, min(own_stops[start:stop]) - 1
            start = stop
