"""Histories as a few weighted means of item embeddings."""

# B = members, N = candidate rows, H = heads, D = embedding dimensions

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.embeddings import HashEmbedding
from models.history import HistoryBatch, HistoryEncoder


class PooledHistory(nn.Module):
    """Meets a candidate as the inner products of H pooled vectors with its embedding, and one elementwise product."""

    def __init__(self, table: HashEmbedding, num_actions: int, num_heads: int) -> None:
        super().__init__()
        self.encoder = HistoryEncoder(table, num_actions, num_heads)
        self.width = num_heads + table.dim

    def encode(self, histories: HistoryBatch) -> tuple[Tensor, ...]:
        """Return float32[B, H, D]."""
        return (self.encoder(histories),)

    def meet(
        self, kept: tuple[Tensor, ...], ids_ND: Tensor, member_N: Tensor, grid_BC: Tensor, place_N: Tensor
    ) -> Tensor:
        """Return float32[N, H + D]."""
        (pooled_BHD,) = kept
        num_heads, dim = pooled_BHD.shape[1:]
        pooled_NHD = functional.embedding(member_N, pooled_BHD.flatten(1)).reshape(-1, num_heads, dim)
        similar_NH = torch.einsum("nhd,nd->nh", pooled_NHD, ids_ND)
        return torch.cat([similar_NH, pooled_NHD[:, -1] * ids_ND], dim=1)
