"""Histories as a strictly causal sequence that all candidates of a request read."""

# B = members, L = history places, C = candidates of a member, N = candidate rows, D = embedding dimensions
# E = width, H = heads, S = width of a head

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.embeddings import HashEmbedding
from models.history import NUM_RECENCY, HistoryBatch

_NUM_HEADS = 2


class CausalHistory(nn.Module):
    """A transformer in which a candidate stands where the history's next entry would: one encoding per request.

    Queries and keys are states of items, values are states plus what was done with the item; an entry sees strictly
    earlier entries, a candidate sees all entries and no other candidate. So the keys and values of the history are
    the same for every candidate. AttnMVP (arXiv 2603.06589's author): no interleaved action tokens, half the length
    of a generative sequence. Departures: pre-norm blocks with a feed-forward part; a bias per head that falls with
    the log of the distance in places, in place of rotary positions, so that heads start at different recencies; an
    empty slot with a zero value to look at, so that an empty history reads as nothing.
    """

    def __init__(self, table: HashEmbedding, num_actions: int, num_layers: int, dropout: float) -> None:
        super().__init__()
        self._table = [table]  # in a list: the owner registers the table, once
        self.width = 2 * table.dim
        self.state = nn.Linear(table.dim, self.width)
        self.action = nn.Linear(num_actions + NUM_RECENCY, self.width)
        self.layers = nn.ModuleList(_Layer(self.width, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(self.width)

    def encode(self, histories: HistoryBatch) -> tuple[Tensor, ...]:
        """Return keys and values float32[B, H, L, S] of each layer, and the used places bool[B, L]."""
        used_BL = histories.used
        states_BLE = self.state(self._table[0](histories.keys))
        actions_BLE = self.action(torch.cat([histories.actions, histories.recency], dim=2))
        places_L = torch.arange(used_BL.shape[1], device=used_BL.device)
        distance_LL = places_L[:, None] - places_L
        masked_BLL = (distance_LL <= 0) | ~used_BL[:, None, :]
        kept: list[Tensor] = []
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, _Layer)
            keys_BHLS, values_BHLS = layer.remember(states_BLE, actions_BLE)
            kept += [keys_BHLS, values_BHLS]
            if number + 1 < len(self.layers):
                states_BLE = layer(states_BLE, keys_BHLS, values_BHLS, distance_LL, masked_BLL)
        return (*kept, used_BL)

    def meet(
        self, kept: tuple[Tensor, ...], ids_ND: Tensor, member_N: Tensor, grid_BC: Tensor, place_N: Tensor
    ) -> Tensor:
        """Return float32[N, E].  grid_BC, place_N: as in `Candidates`."""
        used_BL = kept[-1]
        num_places = used_BL.shape[1]
        states_BCE = self.state(ids_ND)[grid_BC]
        distance_1L = torch.arange(num_places, 0, -1, device=used_BL.device)[None]
        masked_B1L = ~used_BL[:, None, :]
        for number, layer in enumerate(self.layers):
            states_BCE = layer(states_BCE, kept[2 * number], kept[2 * number + 1], distance_1L, masked_B1L)
        met: Tensor = self.norm(states_BCE).flatten(0, 1)[place_N]
        return met


class _Layer(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.slope = nn.Parameter(torch.linspace(0.0, 1.5, _NUM_HEADS))
        self.forward_norm = nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.dropout = nn.Dropout(dropout)

    def remember(self, states_BLE: Tensor, actions_BLE: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values float32[B, H, L, S] of history entries."""
        normed_BLE = self.norm(states_BLE)
        return _heads(self.key(normed_BLE)), _heads(self.value(normed_BLE + actions_BLE))

    def forward(
        self, states_BCE: Tensor, keys_BHLS: Tensor, values_BHLS: Tensor, distance_CL: Tensor, masked_BCL: Tensor
    ) -> Tensor:
        queries_BHCS = _heads(self.query(self.norm(states_BCE)))
        scores_BHCL = queries_BHCS @ keys_BHLS.transpose(2, 3) / math.sqrt(queries_BHCS.shape[3])
        scores_BHCL = scores_BHCL - self.slope[:, None, None] * distance_CL.clamp(min=1).float().log()
        scores_BHCL = scores_BHCL.masked_fill(masked_BCL[:, None], -1e9)
        empty_BHC1 = torch.zeros_like(scores_BHCL[..., :1])
        shares_BHCL = torch.softmax(torch.cat([scores_BHCL, empty_BHC1], dim=3), dim=3)[..., :-1]
        read_BCE = (shares_BHCL @ values_BHLS).transpose(1, 2).flatten(2)
        states_BCE = states_BCE + self.dropout(self.out(read_BCE))
        stepped: Tensor = states_BCE + self.dropout(self.feed(self.forward_norm(states_BCE)))
        return stepped


def _heads(x_BLE: Tensor) -> Tensor:
    return x_BLE.reshape(*x_BLE.shape[:2], _NUM_HEADS, -1).transpose(1, 2)
