"""Filtered top-k of a batch of queries in plain torch: the definition of correct, on any device."""

# B = queries, N = rows, D = dimensions, W = mask words, M = admitted rows, K = results, C = rows that are rescored

from __future__ import annotations

import torch
from torch import Tensor

from kernels.dense_topk import DenseRows, DenseTopK, encode_queries

ROWS_AT_ONCE = 1 << 20  # bounds the copy of the rows at higher precision


def dense_topk(query_BD: Tensor, rows: DenseRows, mask: Tensor, k: int, rescore: int) -> DenseTopK:
    """See `kernels.dense_topk`; arguments are checked there."""
    batch = query_BD.shape[0]
    device = query_BD.device
    score_BK = torch.full((batch, k), -torch.inf, device=device)
    key_BK = torch.full((batch, k), -1, dtype=torch.int64, device=device)
    row_BK = torch.full((batch, k), -1, dtype=torch.int32, device=device)
    for query in range(batch):
        admitted_M = list_rows(mask if mask.ndim == 1 else mask[query], rows.key_N.numel())
        score, row = _search(query_BD[query : query + 1], rows, admitted_M, k, rescore)
        score_BK[query, : row.numel()] = score
        key_BK[query, : row.numel()] = rows.key_N[row]
        row_BK[query, : row.numel()] = row.int()
    return DenseTopK(score_BK, key_BK, row_BK, torch.zeros(batch, dtype=torch.int32, device=device))


def list_rows(mask_W: Tensor, num_rows: int) -> Tensor:
    """The rows whose bit is set, ascending."""
    bit = torch.arange(64, device=mask_W.device)
    return torch.nonzero(((mask_W[:, None] >> bit) & 1).flatten()[:num_rows])[:, 0]


def _search(query_1D: Tensor, rows: DenseRows, admitted_M: Tensor, k: int, rescore: int) -> tuple[Tensor, Tensor]:
    starts = range(0, max(1, admitted_M.numel()), ROWS_AT_ONCE)
    parts = [admitted_M[start : start + ROWS_AT_ONCE] for start in starts]
    if rows.code_ND is None:
        vector_ND, query_D = rows.scanned, query_1D[0].half().float()
        return _best(torch.cat([vector_ND[part].float() @ query_D for part in parts]), admitted_M, rows.key_N, k)
    assert rows.scale_N is not None and rows.mean_D is not None
    code_ND = rows.code_ND
    codes = encode_queries(query_1D, rows.mean_D)
    # Sums of products of int8 are whole numbers that float64 holds exactly.
    code_D = codes.code_BD[0].double()
    dot_M = torch.cat([code_ND[part].double() @ code_D for part in parts])
    coarse_M = rows.scale_N[admitted_M] * dot_M.float()
    if rows.vector_ND is None:
        score, row = _best(coarse_M, admitted_M, rows.key_N, k)
        return score * codes.scale_B + codes.mean_score_B, row
    _, row_C = _best(coarse_M, admitted_M, rows.key_N, rescore * k)
    score_C = (rows.vector_ND[row_C].double() * query_1D.double()).sum(1).float()
    return _best(score_C, row_C, rows.key_N, k)


def _best(score_M: Tensor, row_M: Tensor, key_N: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Scores and rows of the k best, score descending, then key ascending."""
    by_key = key_N[row_M].argsort()
    order = by_key[score_M[by_key].argsort(descending=True, stable=True)][:k]
    return score_M[order], row_M[order]
