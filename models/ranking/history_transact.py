"""Histories encoded anew for every candidate: early fusion."""

# B = members, L = history places, N = candidate rows, D = embedding dimensions
# E = width of a token, H = heads, S = width of a head

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.embeddings import HashEmbedding
from models.history import NUM_RECENCY, HistoryBatch

_NUM_HEADS = 2
_NUM_LAST = 5


class TransactHistory(nn.Module):
    """TransAct as LiRank runs it: a transformer over (item, action, candidate) tokens.

    LiRank (arXiv 2402.06859), section 3.6, after TransAct (arXiv 2306.00248): item, action and candidate embeddings
    are joined in every token (early fusion), then post-norm layers whose feed-forward part is half as wide as the
    token, then the maximum over the places beside the last five outputs. The encoder runs once per candidate, and
    costs accordingly. Departures: how long ago an action was is read with it; no random window of the newest actions
    is hidden in training, as requests are replayed from what was known before them.
    """

    def __init__(self, table: HashEmbedding, num_actions: int, num_layers: int, dropout: float) -> None:
        super().__init__()
        self._table = [table]  # in a list: the owner registers the table, once
        token = 3 * table.dim
        if token % _NUM_HEADS:
            raise ValueError(f"dim is {table.dim}; expected an even number for {_NUM_HEADS} heads")
        self.width = (1 + _NUM_LAST) * token
        self.action = nn.Linear(num_actions + NUM_RECENCY, table.dim)
        self.layers = nn.ModuleList(_Layer(token, dropout) for _ in range(num_layers))

    def encode(self, histories: HistoryBatch) -> tuple[Tensor, ...]:
        """Return the members' share of the tokens float32[B, L, 2 D] and the used places bool[B, L]."""
        actions_BLD = self.action(torch.cat([histories.actions, histories.recency], dim=2))
        return torch.cat([self._table[0](histories.keys), actions_BLD], dim=2), histories.used

    def meet(
        self, kept: tuple[Tensor, ...], ids_ND: Tensor, member_N: Tensor, grid_BC: Tensor, place_N: Tensor
    ) -> Tensor:
        """Return float32[N, 6 E]."""
        entries_BLX, used_BL = kept
        used_NL1 = used_BL[member_N][:, :, None]
        candidate_NLD = ids_ND[:, None, :].expand(-1, entries_BLX.shape[1], -1)
        tokens_NLE = torch.cat([entries_BLX[member_N], candidate_NLD], dim=2)
        # Very low rather than -inf: a member without a history has no place to look at and must stay finite.
        bias_N11L = (~used_NL1).to(tokens_NLE.dtype).mul(-1e9).transpose(1, 2)[:, None]
        for layer in self.layers:
            tokens_NLE = layer(tokens_NLE, bias_N11L)
        largest_NE = tokens_NLE.masked_fill(~used_NL1, -1e9).amax(dim=1) * used_NL1.any(dim=1)
        last_NLE = functional.pad(tokens_NLE * used_NL1, (0, 0, _NUM_LAST, 0))[:, -_NUM_LAST:]
        return torch.cat([largest_NE, last_NLE.flatten(1)], dim=1)


class _Layer(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.joint = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, width))
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens_NLE: Tensor, bias_N11L: Tensor) -> Tensor:
        queries_NHLS, keys_NHLS, values_NHLS = (
            part.reshape(*part.shape[:2], _NUM_HEADS, -1).transpose(1, 2)
            for part in self.joint(tokens_NLE).chunk(3, dim=2)
        )
        read_NHLS = functional.scaled_dot_product_attention(queries_NHLS, keys_NHLS, values_NHLS, bias_N11L)
        read_NLE = self.out(read_NHLS.transpose(1, 2).flatten(2))
        tokens_NLE = self.attention_norm(tokens_NLE + self.dropout(read_NLE))
        fused: Tensor = self.feed_norm(tokens_NLE + self.dropout(self.feed(tokens_NLE)))
        return fused
